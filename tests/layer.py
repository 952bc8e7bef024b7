"""Build the layer without SAM, and list its files."""

import os
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

from tests.conftest import ROOT

SOURCE = ROOT / "layers" / "twilio"


def build(folder: Path) -> Path:
    """Build the layer as SAM does, in a copy of its folder; return the folder that Lambda mounts as /opt/python."""
    shutil.copytree(SOURCE, folder / "scratch")
    make = ["make", "--silent", "--makefile", str(SOURCE / "Makefile"), "build-TwilioLayer"]
    subprocess.run(make, cwd=folder / "scratch", env=os.environ | {"ARTIFACTS_DIR": str(folder)}, check=True)
    return folder / "python"


def files(layer: Path) -> list[Path]:
    """Return the files of the layer."""
    return [path for path in layer.rglob("*") if path.is_file()]


def digests(layer: Path) -> dict[str, str]:
    """Return a digest of each file, by its path in the layer."""
    return {str(path.relative_to(layer)): sha256(path.read_bytes()).hexdigest() for path in files(layer)}
