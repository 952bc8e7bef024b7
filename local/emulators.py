"""The two servers of the local stack: ministack in place of AWS, emulate in place of Twilio."""

import json
import os
import shutil
import subprocess
from itertools import chain
from pathlib import Path

from local import ROOT, processes
from local.aws import REGION

NAMES = ("ministack", "emulate")

_NODE_ENVIRONMENT = ROOT / ".venv-node"
_OLDEST_NODE = 20
_EMULATE = ROOT / ".local" / "emulate"
_INSTALL_SECONDS = 120


def start(folder: Path) -> None:
    """Start both emulators on the loopback address, on their earlier ports unless other programs use those now."""
    ports = choose_ports(folder)
    for name in ("layers", "tmp"):  # left by an earlier ministack, whose layers had the same ARNs
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "tmp").mkdir()
    _start_ministack(folder, ports["ministack"])
    _start_emulate(folder, ports["emulate"])


def wait(folder: Path) -> None:
    """Wait until both emulators answer."""
    for name in NAMES:
        processes.wait_until_answers(folder, name, _health(folder, name))


def are_healthy(folder: Path) -> bool:
    """Return whether both emulators run and answer."""
    alive = all(processes.is_alive(folder, name) for name in NAMES)
    return alive and all(processes.answers(_health(folder, name)) for name in NAMES)


def stop(folder: Path) -> bool:
    """Stop both emulators; return whether at least one was running."""
    stopped = [processes.stop(folder, name) for name in NAMES]
    return any(stopped)


def url(folder: Path, name: str) -> str:
    """Return the address of an emulator."""
    ports = json.loads((folder / "ports.json").read_text())
    return f"http://127.0.0.1:{ports[name]}"


def choose_ports(folder: Path) -> dict[str, int]:
    """Return the stack's earlier ports, with new ones for those that other programs use now; store them in a file."""
    file = folder / "ports.json"
    known: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
    ports = {
        name: known[name] if name in known and processes.is_free(known[name]) else processes.free_port()
        for name in NAMES
    }
    file.write_text(json.dumps(ports))
    return ports


def _health(folder: Path, name: str) -> str:
    return url(folder, name) + ("/_ministack/ready" if name == "ministack" else "/")


def _start_ministack(folder: Path, port: int) -> None:
    environment = {
        "AUTH": "true",  # it checks signatures, and gives functions only the rights of their roles
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",  # also for the functions
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "HOME": str(folder / "tmp"),
        "IOT_MTLS_ENABLED": "0",  # no second port
        # It retries an alias's asynchronous invocations even if the template forbids that: delay them past this run.
        "LAMBDA_ASYNC_RETRY_BASE_SECONDS": "86400",
        "LAMBDA_ASYNC_RETRY_MAX_SECONDS": "86400",
        "LANG": "C.UTF-8",
        "MINISTACK_REGION": REGION,
        "PATH": os.defpath,
        "STATE_DIR": str(folder / "tmp"),
        "TMPDIR": str(folder / "tmp"),
    }
    program = ROOT / ".venv-ministack" / "bin" / "ministack"
    processes.start(folder, processes.Job("ministack", [program], environment, folder))


def _start_emulate(folder: Path, port: int) -> None:
    preloads = [("--import", ROOT / "local" / "emulate" / name) for name in ("loopback.mjs", "fragment.mjs")]
    program = _EMULATE / "node_modules" / "emulate" / "dist" / "index.js"
    command = [_install_emulate(), *chain(*preloads), program, "--service", "twilio", "--port", port]
    processes.start(folder, processes.Job("emulate", command, {"PATH": os.defpath}, folder))


def _install_emulate() -> Path:
    """Install emulate if it is not installed yet; return the path of the Node.js that runs it."""
    with processes.exclusive(ROOT / ".local" / "emulate.lock"):
        node, npm = _node()
        wanted = ROOT / "local" / "emulate" / "package-lock.json"
        installed = _EMULATE / "installed.json"
        if not installed.exists() or installed.read_text() != wanted.read_text():
            shutil.rmtree(_EMULATE, ignore_errors=True)
            _EMULATE.mkdir()
            for file in (wanted, wanted.with_name("package.json")):
                shutil.copy(file, _EMULATE)
            command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"]
            path = f"{node.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
            _run(processes.Job("npm ci", command, os.environ | {"PATH": path}, _EMULATE), "npm")
            shutil.copy(wanted, installed)
    return node


def _node() -> tuple[Path, Path]:
    """Return the paths of Node.js and npm: this machine's, or else those that `make` installs from PyPI."""
    own = [shutil.which(name) for name in ("node", "npm")]
    if own[0] and own[1] and _version(own[0]) >= _OLDEST_NODE:
        return Path(own[0]), Path(own[1])
    _run(processes.Job("Installing Node.js", ["make", ".venv-node/synced"], os.environ, ROOT), "node")
    return _NODE_ENVIRONMENT / "bin" / "node", _NODE_ENVIRONMENT / "bin" / "npm"


def _run(job: processes.Job, name: str) -> None:
    log = processes.log_path(ROOT / ".local", name)
    log.parent.mkdir(exist_ok=True)
    processes.run(job, log, _INSTALL_SECONDS)


def _version(node: str) -> int:
    """Return the major version, or 0 if the program does not run."""
    try:
        answer = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=10, check=True)
        return int(answer.stdout.removeprefix("v").partition(".")[0])
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0
