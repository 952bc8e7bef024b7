"""The sizes of the packages that are uploaded."""

import zipfile
from io import BytesIO
from pathlib import Path

from bench import bundle
from bench.environment import Environment
from bench.samples import Figures, Samples

_MB = 1024 * 1024


def measure(environment: Environment) -> Figures:
    """Return the sizes of the layer, a function's code and the baselines, also zipped as `sam deploy` does it."""
    folders = {
        "layer": bundle.LAYER,
        "a function": environment.functions["send_sms"].path[0],
        "baseline as shipped": bundle.shipped_baseline(),
        "baseline compiled": environment.baselines["baseline compiled"].path[0],
    }
    figures: Figures = {}
    for name, folder in folders.items():
        figures[f"size/{name}/zipped"] = Samples.one(_zipped(folder) / _MB, "MB")
        figures[f"size/{name}/unzipped"] = Samples.one(sum(file.stat().st_size for file in _files(folder)) / _MB, "MB")
    return figures


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _zipped(folder: Path) -> int:
    content = BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
        for file in _files(folder):
            archive.write(file, file.relative_to(folder))
    return len(content.getvalue())
