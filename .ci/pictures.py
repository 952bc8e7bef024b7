"""Draw the documentation's pictures, light and dark; `--check` only reports whether they are up to date.

The script compares the picture of the architecture with the template. It is an error if the picture lacks a function,
API, queue, table or bus of the template, or if the template lacks an arrow of the picture.
"""

import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "pictures"
THEMES = {
    "light": {"text": "#1f2328", "dim": "#59636e", "line": "#59636e", "box": "#f6f8fa", "edge": "#d1d9e0"},
    "dark": {"text": "#f0f6fc", "dim": "#9198a1", "line": "#9198a1", "box": "#151b23", "edge": "#3d444d"},
}
ACCENTS = {
    "light": {"": "#d1d9e0", "door": "#0969da", "function": "#bc4c00", "store": "#8250df", "twilio": "#cf222e"},
    "dark": {"": "#3d444d", "door": "#4493f8", "function": "#db6d28", "store": "#ab7df8", "twilio": "#f85149"},
}
STYLE = "font-family:-apple-system,BlinkMacSystemFont,'Segoe UI','Noto Sans',Helvetica,Arial,sans-serif;font-size:16px"

NAMESPACE = "http://www.w3.org/2000/svg"
MARKER = 'refX="7" refY="4" markerWidth="8" markerHeight="8"'


class Box(NamedTuple):
    """A box with text; `kind` decides the colour of its edge."""

    x: int
    y: int
    width: int
    height: int
    title: str
    lines: tuple[str, ...] = ()
    kind: str = ""
    dashed: bool = False


class Arrow(NamedTuple):
    """A line through points, with a head at its end, and text in its middle or at the position `at`."""

    points: tuple[tuple[int, int], ...]
    text: str = ""
    at: tuple[int, int] | None = None
    dashed: bool = False
    both: bool = False


class Picture(NamedTuple):
    """A picture; `what` is its description for screen readers."""

    what: str
    width: int
    height: int
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    top: int = 0

    def svg(self, theme: str) -> str:
        """Return the picture as SVG."""
        colours, accents = THEMES[theme], ACCENTS[theme]
        head = f'<path d="M0 0L8 4L0 8z" fill="{colours["line"]}"/>'
        height = self.height - self.top
        size = f'viewBox="0 {self.top} {self.width} {height}" width="{self.width}" height="{height}"'
        lines = [
            f'<svg xmlns="{NAMESPACE}" {size} role="img" style="{STYLE}">',
            f"<title>{escape(self.what)}</title>",
            f'<defs><marker id="head" viewBox="0 0 8 8" {MARKER} orient="auto-start-reverse">{head}</marker></defs>',
            *(line for box in self.boxes for line in _box(box, colours, accents)),
            *(line for arrow in self.arrows for line in _arrow(arrow, colours)),
            "</svg>\n",
        ]
        return "\n".join(lines)


def _box(box: Box, colours: dict[str, str], accents: dict[str, str]) -> Iterator[str]:
    fill = "none" if box.dashed else colours["box"]
    dash = ' stroke-dasharray="4 4"' if box.dashed else ""
    yield (
        f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="6" fill="{fill}"'
        f' stroke="{accents[box.kind]}" stroke-width="1.5"{dash}/>'
    )
    middle = box.x + box.width / 2
    top = box.y + 21 if box.dashed else box.y + box.height / 2 - 9 * len(box.lines) + 6
    if box.title:
        yield (
            f'<text x="{middle:g}" y="{top:g}" text-anchor="middle" fill="{colours["text"]}" font-weight="600">'
            f"{escape(box.title)}</text>"
        )
    for number, line in enumerate(box.lines, 1):
        yield (
            f'<text x="{middle:g}" y="{top + 18 * number:g}" text-anchor="middle" fill="{colours["dim"]}"'
            f' font-size="14">{escape(line)}</text>'
        )


def _arrow(arrow: Arrow, colours: dict[str, str]) -> Iterator[str]:
    path = "M" + "L".join(f"{x} {y}" for x, y in arrow.points)
    dash = ' stroke-dasharray="4 3"' if arrow.dashed else ""
    start = ' marker-start="url(#head)"' if arrow.both else ""
    heads = f'{start} marker-end="url(#head)"'
    yield f'<path d="{path}" fill="none" stroke="{colours["line"]}" stroke-width="1.5"{dash}{heads}/>'
    if arrow.text:
        (x1, y1), (x2, y2) = arrow.points[:2]
        x, y = arrow.at or ((x1 + x2) / 2, (y1 + y2) / 2 - 6)
        for number, line in enumerate(arrow.text.split("\n")):
            yield (
                f'<text x="{x:g}" y="{y + 16 * number:g}" text-anchor="middle" fill="{colours["dim"]}"'
                f' font-size="14">{escape(line)}</text>'
            )


# ---------------------------------------------------------------- the template


class _Loader(yaml.SafeLoader):
    """A YAML loader that supports CloudFormation's short forms."""


def _short_form(loader: _Loader, tag: str, node: yaml.Node) -> Any:
    match node:
        case yaml.ScalarNode():
            return {tag: loader.construct_scalar(node)}
        case yaml.SequenceNode():
            return {tag: loader.construct_sequence(node, deep=True)}
        case yaml.MappingNode():
            return {tag: loader.construct_mapping(node, deep=True)}
    raise TypeError(node)


_Loader.add_multi_constructor("!", _short_form)

FUNCTION = "AWS::Serverless::Function"
TYPES = {
    FUNCTION,
    "AWS::Serverless::HttpApi",
    "AWS::SQS::Queue",
    "AWS::DynamoDB::Table",
    "AWS::Events::EventBus",
}
"""The types of resources that the picture must show or `LEFT_OUT` must list."""


class Stack:
    """The resources of the template, and the arrows between them."""

    def __init__(self, template: Path) -> None:
        """Read the template."""
        self.resources: dict[str, Any] = yaml.load(template.read_text(), _Loader)["Resources"]  # noqa: S506 a safe loader
        self.names = {name for name, resource in self.resources.items() if resource["Type"] in TYPES}
        self.arrows = set(self._arrows())

    def handler(self, name: str) -> str:
        """Return the name of a function's file."""
        return str(self.resources[name]["Properties"]["Handler"]).partition(".")[0]

    def _http_events(self) -> Iterator[tuple[str, Any]]:
        for name, resource in self.resources.items():
            if resource["Type"] == FUNCTION:
                for event in resource["Properties"].get("Events", {}).values():
                    if event["Type"] == "HttpApi":
                        yield name, event["Properties"]

    def _arrows(self) -> Iterator[tuple[str, str]]:
        for name, event in self._http_events():
            yield event["ApiId"]["Ref"], name
        for name, resource in self.resources.items():
            properties = resource.get("Properties", {})
            match resource["Type"]:
                case "AWS::Lambda::EventSourceMapping":
                    queue, function = properties["EventSourceArn"]["GetAtt"], properties["FunctionName"]["Ref"]
                    yield queue.removesuffix(".Arn"), function.removesuffix(".Alias")
                case "AWS::Events::Rule":
                    for target in properties["Targets"]:
                        yield properties["EventBusName"]["Ref"], target["Arn"]["GetAtt"].removesuffix(".Arn")
                case kind if kind == FUNCTION:
                    for value in properties.get("Environment", {}).get("Variables", {}).values():
                        if isinstance(value, dict) and value.get("Ref") in self.names:
                            yield name, value["Ref"]


# ---------------------------------------------------------------- the pictures

LEFT_OUT = {
    "Deliveries": "stands in the webhook's box",
    "Ledger": "stands in the boxes of send_sms and resolve",
    "BufferDeadLetterQueue": "the end of the buffer",
    "DeadLetterQueue": "the end of scheduled and asynchronous invocations",
}
"""The resources without their own boxes, and where the picture mentions them."""

PLACES = {
    "GetSmsFunction": (352, 54, 150, 28),
    "ListSmsFunction": (352, 88, 150, 28),
    "RawRequestFunction": (352, 122, 150, 28),
    "SendSmsFunction": (352, 156, 150, 50),
    "ResolveFunction": (352, 236, 150, 50),
    "WebhookFunction": (352, 322, 150, 50),
    "PollMessagesFunction": (352, 388, 150, 50),
    "RotateConnectionFunction": (352, 464, 150, 50),
    "ActionsApi": (150, 82, 140, 70),
    "SendQueue": (150, 172, 140, 50),
    "FailedQueue": (150, 238, 140, 50),
    "EventBus": (150, 322, 140, 50),
    "BufferQueue": (150, 388, 140, 50),
    "WebhookApi": (540, 322, 108, 50),
}
LINES = {
    "SendSmsFunction": ("once per key: ledger",),
    "ResolveFunction": ("every minute: ledger",),
    "WebhookFunction": ("signed? published?",),
    "PollMessagesFunction": ("on your schedule",),
    "RotateConnectionFunction": ("for Secrets Manager",),
    "ActionsApi": ("HTTP API,", "AWS signature"),
    "SendQueue": ("SQS",),
    "FailedQueue": ("SQS",),
    "EventBus": ("EventBridge",),
    "BufferQueue": ("if the bus is down",),
    "WebhookApi": ("HTTP API",),
}
DRAWN: dict[tuple[str, str], Arrow] = {
    ("ActionsApi", "SendSmsFunction"): Arrow(((290, 117), (340, 117))),
    ("SendQueue", "SendSmsFunction"): Arrow(((290, 190), (350, 190))),
    ("SendSmsFunction", "FailedQueue"): Arrow(((352, 202), (322, 202), (322, 254), (292, 254))),
    ("ResolveFunction", "EventBus"): Arrow(((352, 274), (322, 274), (322, 336), (292, 336))),
    ("WebhookApi", "WebhookFunction"): Arrow(((540, 347), (504, 347))),
    ("WebhookFunction", "EventBus"): Arrow(((352, 354), (292, 354))),
    ("EventBus", "SendQueue"): Arrow(((150, 336), (130, 336), (130, 206), (148, 206))),
    ("BufferQueue", "WebhookFunction"): Arrow(((290, 404), (322, 404), (322, 366), (350, 366)), both=True),
}
"""The arrows that are drawn; an arrow of a group starts or ends at one of its members."""
OUTSIDE = (
    Arrow(((110, 66), (340, 66)), "invoke", (225, 58)),
    Arrow(((110, 117), (148, 117))),
    Arrow(((110, 190), (148, 190))),
    Arrow(((150, 356), (112, 356))),
    Arrow(((512, 117), (682, 117)), "REST, over TLS", (597, 109)),
    Arrow(((502, 261), (682, 261)), "what became of it?", (592, 253)),
    Arrow(((684, 347), (650, 347))),
    Arrow(((502, 413), (682, 413)), "what is new?", (592, 405)),
    Arrow(((502, 489), (682, 489)), "new credentials", (592, 481)),
    Arrow(((352, 489), (292, 489))),
)


def architecture(stack: Stack) -> Picture:
    """Return the picture of the resources that the template deploys."""
    boxes = [
        Box(2, 44, 108, 178, "your callers", ("AWS services,", "programs,", "people"), ""),
        Box(2, 322, 108, 66, "your rules", ("and their", "targets")),
        Box(684, 44, 76, 470, "Twilio", (), "twilio"),
        Box(342, 26, 170, 188, "actions", (), "function", dashed=True),
        Box(150, 464, 140, 50, "Secrets Manager", ("connections",), "store"),
    ]
    for name, (x, y, width, height) in PLACES.items():
        kind = stack.resources[name]["Type"]
        is_function = kind == FUNCTION
        colour = "function" if is_function else "door" if kind.endswith("HttpApi") else "store"
        title = stack.handler(name) if is_function else name
        boxes.append(Box(x, y, width, height, title, LINES.get(name, ()), colour))
    return Picture(
        "Callers reach the actions by invoking them, through the Actions API or through the send queue; the actions "
        "speak to Twilio. Twilio calls the webhook, which publishes events on the bus for your rules.",
        762,
        516,
        tuple(boxes),
        (*DRAWN.values(), *OUTSIDE),
        top=24,
    )


def faults(stack: Stack) -> list[str]:
    """Return the differences between the picture and the template."""
    found = [f"{name} has no place in the picture" for name in sorted(stack.names - PLACES.keys() - LEFT_OUT.keys())]
    found += [f"{name} is not in the template" for name in sorted((PLACES.keys() | LEFT_OUT.keys()) - stack.names)]
    return found + [f"the template has no arrow from {a} to {b}" for a, b in sorted(DRAWN.keys() - stack.arrows)]


SEND = Picture(
    "A key is claimed in the ledger before the message goes to Twilio. Twilio's answer makes it sent or not sent. "
    "Without an answer it is unknown, until a callback or the list of messages tells, or until it is reported.",
    780,
    270,
    (
        Box(2, 40, 122, 54, "a request", ("with a key",)),
        Box(186, 40, 140, 54, "claimed", ("in the ledger",), "store"),
        Box(396, 40, 140, 54, "at Twilio", ("once per key",), "twilio"),
        Box(618, 40, 160, 54, "not sent", ("event Message Failed",), "door"),
        Box(618, 126, 160, 54, "sent", ("event Message Sent",), "door"),
        Box(618, 212, 160, 54, "reported", ("Outcome Unknown",), "door"),
        Box(396, 212, 140, 54, "unknown", ("not sent again",), "function"),
    ),
    (
        Arrow(((124, 67), (184, 67)), "write"),
        Arrow(((326, 67), (394, 67)), "send"),
        Arrow(((536, 58), (616, 58)), "refused", (576, 52)),
        Arrow(((536, 82), (577, 82), (577, 146), (616, 146)), "accepted", (545, 108)),
        Arrow(((466, 94), (466, 210)), "no answer,\nor a 5xx", (428, 126)),
        Arrow(((536, 226), (577, 226), (577, 162), (616, 162)), "callback\nor list", (540, 168)),
        Arrow(((536, 248), (616, 248)), "15 min", (577, 262)),
        Arrow(((698, 40), (698, 14), (256, 14), (256, 38)), "the same key again", (477, 10), dashed=True),
    ),
    top=-6,
)
WEBHOOK = Picture(
    "The webhook checks the signature, then whether the signed text was read in another way before, then whether the "
    "event was published before. New events go to the bus, or to the buffer if the bus is down.",
    780,
    210,
    (
        Box(2, 20, 118, 54, "Twilio", ("posts",), "twilio"),
        Box(162, 20, 130, 54, "signature", ("secret and URL",), "function"),
        Box(334, 20, 130, 54, "reading", ("first, or the same",), "store"),
        Box(506, 20, 120, 54, "event", ("not yet published",), "store"),
        Box(668, 20, 110, 54, "bus", ("your rules",), "door"),
        Box(162, 144, 130, 54, "403", ("nothing published",)),
        Box(334, 144, 130, 54, "403", ("and an alarm",)),
        Box(506, 144, 120, 54, "200", ("published before",)),
        Box(668, 144, 110, 54, "buffer", ("up to 10 hours",), "store"),
    ),
    (
        Arrow(((120, 47), (160, 47))),
        Arrow(((292, 47), (332, 47)), "yes", (312, 41)),
        Arrow(((464, 47), (504, 47)), "yes", (484, 41)),
        Arrow(((626, 47), (666, 47)), "200", (646, 41)),
        Arrow(((227, 74), (227, 142)), "no", (242, 97)),
        Arrow(((399, 74), (399, 142)), "no", (414, 97)),
        Arrow(((566, 74), (566, 142)), "no", (581, 97)),
        Arrow(((723, 76), (723, 142)), "down", (745, 97), both=True),
    ),
)


def pictures() -> dict[Path, str]:
    """Return all pictures as SVG, by their files."""
    stack = Stack(ROOT / "template.yaml")
    if found := faults(stack):
        raise SystemExit("\n".join(found))
    drawn = {"architecture": architecture(stack), "send": SEND, "webhook": WEBHOOK}
    return {FOLDER / f"{name}-{theme}.svg": picture.svg(theme) for name, picture in drawn.items() for theme in THEMES}


def main(arguments: list[str]) -> int:
    """Write the pictures, or compare them with their files; return the exit code."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write(f"{__doc__}\n")
        return 2
    old = [path for path, text in pictures().items() if not path.exists() or path.read_text() != text]
    for path in old:
        if arguments:
            sys.stderr.write(f"{path.relative_to(ROOT)} is not up to date: run 'make pictures'.\n")
        else:
            path.write_text(pictures()[path])
    return 1 if arguments and old else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
