"""Reads server URLs. It refuses what it does not understand, and ignores nothing.

No error quotes what stands in the URL: where it is malformed, any part of it may be a part of the password.
For the same reason errors are raised where no frame holds the URL in pieces: debug pages show frames.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any
from urllib.parse import quote, unquote, unquote_plus, urlsplit

from bus.errors import ConfigurationError
from bus.safety.secret import Secret
from bus.streams.options import OPTIONS, REFUSED, SCHEMES, SENTINEL, TLS, WrongError, number, secret

_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


class Url(str):
    """A server URL as text, whose repr has no password."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(masked(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The credentials that are not in the URL. An empty text means the same as None."""

    username: str | None = None
    password: Secret | None = None
    sentinel_username: str | None = None
    """Told only to the sentinels, as is `sentinel_password`."""
    sentinel_password: Secret | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """What a server URL says. Its repr and `masked` have no passwords."""

    scheme: str
    hosts: tuple[tuple[str, int], ...] = ()
    """The server, or the sentinels."""
    path: str = ""
    """The unix socket, or the directory of an embedded server."""
    db: int = 0
    username: str | None = None
    password: Secret | None = None
    master: str = ""
    """The name of the master that the sentinels are asked for."""
    sentinel_username: str | None = None
    sentinel_password: Secret | None = None
    sentinel_tls: bool = False
    socket_keepalive: bool = True
    tls: Mapping[str, Any] = field(default_factory=dict)
    """The options `ssl_…`, as redis.connection.SSLConnection takes them."""
    masked: str = ""
    """The URL without passwords, for logs, errors and pages."""

    def is_same_place(self, other: Address) -> bool:
        """Return whether both lead to the same keys, as far as the URLs show it.

        User, password and TLS do not matter.
        """
        mine, theirs = _place(self), _place(other)
        return mine[1:] == theirs[1:] and (mine[0] == theirs[0] or not mine[0].isdisjoint(theirs[0]))

    @property
    def has_tls(self) -> bool:
        """True if the connection to the server is encrypted."""
        return self.scheme in TLS

    @property
    def has_sentinels(self) -> bool:
        """True if `hosts` are sentinels."""
        return self.scheme in SENTINEL


def parse(url: str, credentials: Credentials | None = None) -> Address:
    """Read a URL, and the credentials beside it. Raises ConfigurationError."""
    url = Url(url)
    address, wrong = _tried(url, credentials or Credentials())
    if address is None:
        raise ConfigurationError(f"{_scheme_alone(url)} is not a server URL that can be used: {wrong}")
    return address


def _place(address: Address) -> tuple[frozenset[tuple[str, int]], str, str, int]:
    """Return hosts, path, master and database of an address.

    Hosts are a set: two addresses with one common sentinel mean the same servers.
    """
    hosts = frozenset(
        ("localhost" if host.lower() in _THIS_MACHINE else host.lower(), port) for host, port in address.hosts
    )
    path = os.path.realpath(os.path.expanduser(address.path)) if address.path else ""
    return hosts, path, address.master, address.db


def masked(url: str) -> str:
    """Return the URL without passwords; only its scheme if it cannot be read."""
    address, _ = _tried(url, Credentials())
    return _scheme_alone(url) if address is None else address.masked


# ---------------------------------------------------------------------- reading


def _tried(url: str, credentials: Credentials) -> tuple[Address | None, str]:
    """Return the address and ""; or None, and what is wrong."""
    try:
        return _read(url, credentials), ""
    except WrongError as wrong:
        return None, f"{wrong}."


def _scheme_alone(url: str) -> str:
    scheme = re.match(r"([a-z][a-z0-9+.-]{0,30})://", url)
    return f"{scheme[1]}://***" if scheme else "***"


def _read(url: str, credentials: Credentials) -> Address:
    scheme, separator, rest = url.partition("://")
    if scheme == "redis+cluster":
        raise WrongError("Redis Cluster is not supported yet; use the URL of a single server")
    if not separator or scheme not in SCHEMES:
        raise WrongError(f"it must begin with {', '.join(name + '://' for name in SCHEMES)}")
    if not rest.isprintable():
        raise WrongError("it has a line break or an invisible character")
    if scheme == "embedded":
        return _embedded(rest, credentials)
    if " " in rest:
        raise WrongError("it has a space")
    if "#" in rest:
        raise WrongError("it has a '#'; write %23 where that is a part of the password or of a name")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise WrongError("its brackets are not those of an IPv6 address") from None
    login, at, place = parts.netloc.rpartition("@")
    user, _, word = login.partition(":") if at else ("", "", "")
    given = dict(_options(scheme, parts.query))
    given = _joined(given, {"username": _decoded(user), "password": Secret(_decoded(word))})
    given = _joined(given, {name: getattr(credentials, name) for name in _names(credentials)})
    given |= _socket(place, parts.path) if scheme == "unix" else _located(scheme, place, parts.path, given)
    tls = {name: given.pop(name) for name in list(given) if name.startswith("ssl_")}
    _check_sense(scheme, given, tls)
    if scheme in SENTINEL:
        given.setdefault("sentinel_tls", scheme in TLS)
    bare = Address(scheme=scheme, tls=tls, **given)
    return Address(masked=_masked(bare, parts.query), **_values(bare))


def _check_sense(scheme: str, given: Mapping[str, Any], tls: Mapping[str, Any]) -> None:
    """Raise WrongError for parts that are wrong together, though each is right by itself."""
    if ("ssl_keyfile" in tls or "ssl_password" in tls) and "ssl_certfile" not in tls:
        raise WrongError("ssl_keyfile and ssl_password need ssl_certfile")
    if given.get("sentinel_tls") and scheme not in TLS:
        raise WrongError("sentinel_tls is for rediss+sentinel://")
    if scheme not in SENTINEL and (given.get("sentinel_username") or given.get("sentinel_password")):
        raise WrongError("SENTINEL_USERNAME and SENTINEL_PASSWORD are for redis+sentinel://")


def _embedded(rest: str, credentials: Credentials) -> Address:
    if not rest:
        raise WrongError("it names no directory: write embedded:///var/lib/shop/bus")
    if "?" in rest or "#" in rest:
        raise WrongError("an embedded server has no options, and its directory no '?' or '#' in its name")
    if any(getattr(credentials, name) for name in _names(credentials)):
        raise WrongError("an embedded server has no users and passwords")
    return Address(scheme="embedded", path=rest, masked=f"embedded://{rest}")


def _options(scheme: str, query: str) -> Iterator[tuple[str, Any]]:
    seen = set()
    for part in query.split("&") if query else []:
        name, equals, value = part.partition("=")
        if name not in OPTIONS:
            raise WrongError(_unknown(scheme, name, "@" in query))
        schemes, read = OPTIONS[name]
        if scheme not in schemes:
            raise WrongError(f"option {name} is for {_listed(schemes)} only")
        if not equals or name in seen:
            raise WrongError(f"option {name} must be given once, with a value")
        seen.add(name)
        try:
            yield name, read(_decoded(value, unquote_plus))
        except WrongError as wrong:
            raise WrongError(f"option {name} {wrong}") from None


def _unknown(scheme: str, name: str, doubtful: bool) -> str:
    """Return what is wrong with an unknown option. `doubtful`: it may be a part of a password."""
    options = [option for option, (schemes, _) in OPTIONS.items() if scheme in schemes]
    if doubtful or not re.fullmatch(r"[a-z_]{1,40}", name):
        return "it has something after the '?' that is not name=value; write %3F for a '?' in the password"
    if name in REFUSED:
        return f"option {name} is refused: {REFUSED[name]}"
    near = get_close_matches(name, options, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(options)}"
    return f"there is no option {name}; {hint}"


def _joined(given: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in more.items():
        if value and given.get(name):
            raise WrongError(f"the {name.replace('_', ' ')} is given twice, here and in another place")
    return given | {name: value for name, value in more.items() if value}


def _socket(place: str, path: str) -> dict[str, Any]:
    if place or not path.strip("/"):
        raise WrongError("it names no socket: write unix:///run/redis.sock, with three slashes")
    return {"path": _decoded(path)}


def _located(scheme: str, place: str, path: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return hosts, database and master of a URL that has hosts."""
    several = place.split(",") if scheme in SENTINEL else [place]
    hosts = tuple(_host(host, 26379 if scheme in SENTINEL else 6379) for host in several)
    located: dict[str, Any] = {"hosts": hosts}
    steps = path.removeprefix("/")
    if scheme in SENTINEL:
        name, _, steps = steps.partition("/")
        located["master"] = _decoded(name)
        if not name:
            raise WrongError("it names no master: write redis+sentinel://h1,h2/<name>")
    steps = steps.removesuffix("/")
    if steps:
        try:
            db = number(steps)
        except WrongError:
            raise WrongError("what follows the last slash must be the number of the database") from None
        if given.get("db", db) != db:
            raise WrongError("the database is given twice")
        located["db"] = db
    return located


def _host(text: str, port: int) -> tuple[str, int]:
    """Read `host`, `host:port`, `[IPv6]` or `[IPv6]:port`."""
    bracketed = re.fullmatch(r"\[([0-9A-Fa-f:.]+(?:%25[\w.-]+)?)\](?::(\d{1,5}))?", text)
    parts = bracketed or re.fullmatch(r"([^\[\]:]*)(?::(\d{1,5}))?", text)
    if parts is None:
        raise WrongError(
            "a host is host, host:port or [IPv6]:port; write %3A and %2F for ':' and '/' in a password"
        )
    host = _decoded(parts[1])
    number = int(parts[2]) if parts[2] else port
    if not bracketed and not re.fullmatch(r"[\w.-]*", host):
        raise WrongError(
            "a host has letters, digits, '.', '-' and '_' only; several are for redis+sentinel://"
        )
    if not host:
        raise WrongError("it names no host: write redis://localhost:6379/0")
    if not 0 < number < 65536:
        raise WrongError("a port must be a number from 1 to 65535")
    return host, number


def _decoded(text: str, decode: Callable[..., str] = unquote) -> str:
    try:
        return decode(text, errors="strict")
    except UnicodeDecodeError:
        raise WrongError("what it writes with % is not UTF-8") from None


# ---------------------------------------------------------------------- writing


def _masked(address: Address, query: str) -> str:
    """Return the URL without passwords, made from the address, not by cutting pieces out of the text."""
    login = quote(address.username or "", safe="") + (":***" if address.password else "")
    hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in address.hosts)
    text = f"{address.scheme}://{login}{'@' if login else ''}{hosts}"
    if address.scheme == "unix":
        text += quote(address.path)
    else:
        text += f"/{quote(address.master)}/{address.db}" if address.master else f"/{address.db}"
    shown = [part for part in query.split("&") if part and _shown(part.partition("=")[0])]
    if address.scheme == "unix" and address.db:
        shown.append(f"db={address.db}")
    if address.sentinel_password:
        shown.append("sentinel_password=***")
    return f"{text}?{'&'.join(shown)}" if shown else text


def _shown(name: str) -> bool:
    return name not in ("db", "username") and OPTIONS[name][1] is not secret


def _listed(schemes: frozenset[str]) -> str:
    return ", ".join(f"{scheme}://" for scheme in SCHEMES if scheme in schemes)


def _names(credentials: Credentials) -> list[str]:
    return [field.name for field in fields(credentials)]


def _values(address: Address) -> dict[str, Any]:
    return {field.name: getattr(address, field.name) for field in fields(address) if field.name != "masked"}
