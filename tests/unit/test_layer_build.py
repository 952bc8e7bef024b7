"""The layer from `sam build` has the compiled packages that Lambda needs on both architectures, and nothing else."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DEPLOYED, ROOT
from tests.layer import SOURCE, build, files

MACHINES = {"x86_64": b"\x3e\x00", "aarch64": b"\xb7\x00"}
"""The numbers of the processors in an ELF header."""
RUNTIME = {"boto3", "botocore"}
"""The packages that Lambda's runtime contains."""
UNCHECKED_HASH = 1


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the built layer."""
    return build(tmp_path_factory.mktemp("layer"))


@pytest.mark.parametrize(("architecture", "number"), MACHINES.items(), ids=MACHINES)
def test_compiled_modules_are_there_for_each_architecture(layer: Path, architecture: str, number: bytes) -> None:
    """Each compiled module exists for both architectures, and its code is for the architecture in its name."""
    suffix = f".cpython-313-{architecture}-linux-gnu.so"
    modules = {path: path.name.partition(".")[0] for path in files(layer) if path.suffix == ".so"}
    own = {path: name for path, name in modules.items() if path.name.endswith(suffix)}

    assert {"_core"} == set(own.values()) == set(modules.values())
    assert {number} == {path.read_bytes()[18:20] for path in own}


def test_every_source_is_compiled_for_good(layer: Path) -> None:
    """Each source file has bytecode with an unchecked hash.

    Lambda cannot cache bytecode, so it must neither compare the source with it nor compile it again.
    """
    sources = [path for path in files(layer) if path.suffix == ".py"]
    tag = sys.implementation.cache_tag
    compiled = {path: (path.parent / "__pycache__" / f"{path.stem}.{tag}.pyc").read_bytes() for path in sources}

    assert {importlib.util.MAGIC_NUMBER} == {code[:4] for code in compiled.values()}
    assert {UNCHECKED_HASH} == {int.from_bytes(code[4:8], "little") for code in compiled.values()}
    assert len(compiled) == sum(path.suffix == ".pyc" for path in files(layer))


def test_tracebacks_name_lambdas_paths(layer: Path) -> None:
    """Bytecode has Lambda's paths for tracebacks. No file has a path of the machine that built the layer."""
    compiled = next((layer / "twilio_connector" / "__pycache__").glob("errors.*.pyc"))

    assert b"/opt/python/twilio_connector/errors.py" in compiled.read_bytes()
    assert [] == [path for path in files(layer) if os.fsencode(layer.parent) in path.read_bytes()]


@pytest.mark.parametrize("pattern", ["boto*", "bin", "**/tests", "**/test", "**/*.pyi", "**/RECORD"])
def test_only_what_runs_is_in_it(layer: Path, pattern: str) -> None:
    """The layer has no packages of the runtime, tests, type stubs, scripts or installer's notes."""
    assert [] == list(layer.glob(pattern))


def test_licences_are_in_it(layer: Path) -> None:
    """Each package in the layer has its licence."""
    assert [] == [
        package.name
        for package in layer.glob("*.dist-info")
        if not any("LICENSE" in path.name.upper() for path in package.rglob("*"))
    ]


STUBS = {
    "charset_normalizer": "requests",  # guesses a text's encoding, which nothing here needs
    "typing_extensions": "aws_lambda_powertools.metrics",  # backports of features that Python 3.13 has
    "urllib3.http2": "urllib3",  # enables HTTP/2, but the connector uses HTTP/1.1
}
"""The modules with a stub in the layer, and the package that imports each. The real ones slow down cold starts."""


def stubs() -> list[str]:
    """Return the names of the modules in the folder of stubs."""
    folder = SOURCE / "stubs"
    paths = [path.relative_to(folder) for path in folder.rglob("*.py")]
    return sorted(".".join(path.parts).removesuffix(".py").removesuffix(".__init__") for path in paths)


def test_each_stub_has_its_reason() -> None:
    """`STUBS` lists each stub, with the package that imports it."""
    assert sorted(STUBS) == stubs()


@pytest.mark.parametrize(("name", "package"), STUBS.items(), ids=STUBS)
def test_a_stub_is_needed(name: str, package: str) -> None:
    """The package still imports the module. If it no longer does, delete the stub."""
    script = "import sys, importlib; importlib.import_module(sys.argv[1]); print(sys.argv[2] in sys.modules)"
    command = [sys.executable, "-I", "-c", script, package, name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert "True" == done.stdout.strip()


@pytest.mark.parametrize("name", STUBS)
def test_the_layer_has_the_stub(layer: Path, name: str) -> None:
    """The layer has the stub in place of the real module.

    A package that moves the module would otherwise bring the real one back, or fail to import it.
    """
    own = importlib.util.find_spec(name)
    path = layer.joinpath(*name.split("."))

    assert own
    assert own.origin
    shipped = path / "__init__.py" if own.submodule_search_locations else path.with_suffix(".py")
    assert shipped.read_bytes() != Path(own.origin).read_bytes()


def test_it_is_small(layer: Path) -> None:
    """The unzipped layer takes less than 8 MB of the 250 MB that Lambda allows."""
    assert sum(path.stat().st_size for path in files(layer)) < 8_000_000


def imported() -> set[str]:
    """Return the modules that functions and layer import anywhere in their code, except those of the runtime."""
    names: set[str] = set()
    for node in (node for source in DEPLOYED for node in ast.walk(ast.parse(source.read_text()))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name for name in names if name.partition(".")[0] not in RUNTIME}


def test_whatever_is_imported_is_in_it(layer: Path) -> None:
    """Each imported module is in the layer.

    A package that only the development environment has would be missed on Lambda, and not before.
    """
    script = (
        "import sys, importlib.util, importlib\n"
        "sys.path += sys.argv[1:3]\n"
        "own = {'twilio_connector'}  # needs the runtime's boto3\n"
        "for name in sys.argv[3:]:\n"
        "    assert importlib.util.find_spec(name), name\n"
        "    name.partition('.')[0] in own or importlib.import_module(name)\n"
    )
    command = [sys.executable, "-I", "-S", "-c", script, str(layer), str(ROOT / "functions"), *imported()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (0, "") == (done.returncode, done.stderr)
