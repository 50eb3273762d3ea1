"""The options of server URLs: names, schemes, and functions that read their values."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bus.safety.secret import Secret

SCHEMES = ("embedded", "redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")

TCP = frozenset(("redis", "rediss", "redis+sentinel", "rediss+sentinel"))
SENTINEL = frozenset(("redis+sentinel", "rediss+sentinel"))
TLS = frozenset(("rediss", "rediss+sentinel"))
_ALL = TCP | {"unix"}


_YES, _NO = ("1", "yes", "true", "on"), ("0", "no", "false", "off")
_VERSIONS = {
    "tlsv1.2": ssl.TLSVersion.TLSv1_2, "1.2": ssl.TLSVersion.TLSv1_2, "771": ssl.TLSVersion.TLSv1_2,
    "tlsv1.3": ssl.TLSVersion.TLSv1_3, "1.3": ssl.TLSVersion.TLSv1_3, "772": ssl.TLSVersion.TLSv1_3,
}  # fmt: skip


class WrongError(Exception):
    """Says what is wrong with a URL, without any of its text."""


def _text(value: str) -> str:
    if not value:
        raise WrongError("must not be empty")
    return value


def secret(value: str) -> Secret:
    """Read a password. Raises WrongError."""
    return Secret(_text(value))


def number(value: str) -> int:
    """Read a whole number. Raises WrongError."""
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise WrongError("must be a whole number")
    return int(value)


def _flag(value: str) -> bool:
    if value.lower() not in (*_YES, *_NO):
        raise WrongError("must be yes or no")
    return value.lower() in _YES


def _verification(value: str) -> str:
    short = value.lower().removeprefix("cert_")
    if short not in ("none", "optional", "required"):
        raise WrongError("must be required, optional or none")
    return short


def _version(value: str) -> ssl.TLSVersion:
    if value.lower() not in _VERSIONS:
        raise WrongError("must be TLSv1.2 or TLSv1.3")
    return _VERSIONS[value.lower()]


def _ciphers(value: str) -> str:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).set_ciphers(value)
    except ssl.SSLError:
        raise WrongError("selects no cipher") from None
    return value


def _file(value: str) -> str:
    if not Path(_text(value)).is_file():
        raise WrongError("names a file that is not there")
    return value


def _directory(value: str) -> str:
    if not Path(_text(value)).is_dir():
        raise WrongError("names a directory that is not there")
    return value


#: The options that a URL may have: the schemes that have each, and what reads its value.
OPTIONS: dict[str, tuple[frozenset[str], Callable[[str], Any]]] = {
    "db": (_ALL, number),
    "username": (_ALL, _text),
    "password": (_ALL, secret),
    "socket_keepalive": (TCP, _flag),
    "sentinel_username": (SENTINEL, _text),
    "sentinel_password": (SENTINEL, secret),
    "sentinel_tls": (SENTINEL, _flag),
    "ssl_cert_reqs": (TLS, _verification),
    "ssl_check_hostname": (TLS, _flag),
    "ssl_ca_certs": (TLS, _file),
    "ssl_ca_path": (TLS, _directory),
    "ssl_certfile": (TLS, _file),
    "ssl_keyfile": (TLS, _file),
    "ssl_password": (TLS, secret),
    "ssl_min_version": (TLS, _version),
    "ssl_ciphers": (TLS, _ciphers),
}

_OWN = "Jitney decides about it itself"
_NOT = "it is not supported"

#: Options that other clients know, and why they are refused.
REFUSED: dict[str, str] = {
    **dict.fromkeys(("timeout", "socket_timeout", "socket_connect_timeout"), "use BUS['TIMEOUT']"),
    "max_connections": "there is no limit: each thread that calls at once has one, and 16 idle ones stay",
    **dict.fromkeys(
        ("client_name", "decode_responses", "encoding", "encoding_errors", "health_check_interval",
         "legacy_responses", "lib_name", "lib_version", "protocol", "retry_on_error", "retry_on_timeout",
         "socket_read_size"), _OWN),
    **dict.fromkeys(
        ("ssl_ca_data", "ssl_exclude_verify_flags", "ssl_include_verify_flags", "ssl_ocsp_context",
         "ssl_ocsp_expected_cert", "ssl_validate_ocsp", "ssl_validate_ocsp_stapled"), _NOT),
}  # fmt: skip
