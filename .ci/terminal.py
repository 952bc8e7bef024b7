"""Draw the terminal output of `make demo`, light and dark, from a real run on the local stack."""

import os
import subprocess
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

from rich.console import Console
from rich.style import Style
from rich.text import Text

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "pictures"
COLUMNS = 80
SHOWN = (
    "Deploy with sam deploy",
    "Send an SMS through the API",
    "Ask twice with one idempotency key",
    "Put a message on the send queue",
    "Receive an SMS, as an event on EventBridge",
    "Refuse a bad input before Twilio is asked",
)
"""The steps that the picture shows."""

WIDTH, LINE, MARGIN = 712, 19, 14
THEMES = {
    "light": {"": "#1f2328", "color(2)": "#1a7f37", "color(6)": "#1b7c83", "dim": "#59636e", "background": "#f6f8fa"},
    "dark": {"": "#f0f6fc", "color(2)": "#3fb950", "color(6)": "#39c5cf", "dim": "#9198a1", "background": "#151b23"},
}
FONT = "font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;font-size:14px"


def record() -> str:
    """Run the demo on the local stack, and return its output with colours."""
    environment = os.environ | {"FORCE_COLOR": "1", "TTY_INTERACTIVE": "0", "COLUMNS": str(COLUMNS)}
    environment.pop("CI", None)
    command = [sys.executable, "-m", "local", "demo"]
    return subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def chosen(printed: Text) -> Iterator[Text]:
    """Yield the output lines of the steps that the picture shows."""
    yield Text("$ make demo")
    shown = False
    for line in printed.split("\n"):
        if not line.plain:
            return
        if line.plain.startswith("✓"):
            shown = line.plain.removeprefix("✓ ").startswith(SHOWN)
        if shown:
            yield line


def draw(lines: list[Text], theme: str) -> str:
    """Return the lines as an SVG picture."""
    colours, console = THEMES[theme], Console(width=COLUMNS)
    height = 2 * MARGIN + LINE * len(lines)
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"'
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" style="{FONT}">',
        "<title>Parts of what make demo prints: each step with its request, and the answer or the event</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="{colours["background"]}"/>',
    ]
    for number, line in enumerate(lines, 1):
        spans = "".join(
            f'<tspan fill="{colours[_colour(part.style)]}">{escape(part.text)}</tspan>' for part in line.render(console)
        )
        svg.append(f'<text x="{MARGIN}" y="{MARGIN - 5 + LINE * number}" xml:space="preserve">{spans}</text>')
    return "\n".join([*svg, "</svg>\n"])


def _colour(style: Style | None) -> str:
    if style is None:
        return ""
    return "dim" if style.dim else style.color.name if style.color else ""


if __name__ == "__main__":
    run = list(chosen(Text.from_ansi(record())))
    for name in THEMES:
        (FOLDER / f"demo-{name}.svg").write_text(draw(run, name))
