"""Valid and invalid TLS certificates for a server on loopback."""

import ssl
import tempfile
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Literal

import trustme

type Tls = Literal["good", "self_signed", "wrong_host", "expired", "untrusted"]

_NAMES = ("127.0.0.1", "localhost")


@cache
def ca_file() -> Path:
    """Return the CA certificate's file; the CA signed the good, the expired and the wrong-host certificate."""
    path = _directory() / "ca.pem"
    _authority().cert_pem.write_to_path(path)
    return path


@cache
def context(kind: Tls) -> ssl.SSLContext:
    """Return a server's TLS context with this kind of certificate; each invalid kind has exactly one defect."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if kind == "self_signed":
        path = _directory() / "self_signed.pem"
        own = trustme.CA()
        path.write_bytes(own.private_key_pem.bytes() + own.cert_pem.bytes())
        made.load_cert_chain(path)
        return made
    if kind == "untrusted":
        certificate = trustme.CA().issue_cert(*_NAMES)
    elif kind == "wrong_host":
        certificate = _authority().issue_cert("wrong.example")
    elif kind == "expired":
        long_ago = [datetime(year, 1, 1, tzinfo=UTC) for year in (2001, 2002)]
        certificate = _authority().issue_cert(*_NAMES, not_before=long_ago[0], not_after=long_ago[1])
    else:
        certificate = _authority().issue_cert(*_NAMES)
    certificate.configure_cert(made)
    return made


@cache
def _authority() -> trustme.CA:
    return trustme.CA()


_kept: list[tempfile.TemporaryDirectory[str]] = []


@cache
def _directory() -> Path:
    _kept.append(tempfile.TemporaryDirectory(prefix="faults-"))  # removed when Python ends
    return Path(_kept[0].name)
