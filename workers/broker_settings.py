"""Makes the broker settings of the stand-alone worker: its broker is the server of the bus."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from bus.streams import embedded
from bus.streams.url import Address, Url


def broker_settings(address: Address) -> dict[str, Any]:
    """Return the settings `broker_…` of a Celery app. Passwords stand only where Celery masks them."""
    if address.scheme == "embedded":
        return _url(f"redis+socket://{embedded.socket_path(Path(address.path))}")
    login = _login(address.username, address.password)
    if address.scheme == "unix":
        return _url(f"redis+socket://{login}{quote(address.path)}?virtual_host={address.db}")
    scheme = "sentinel" if address.has_sentinels else "rediss" if address.has_tls else "redis"
    urls = [f"{scheme}://{login}{_host(host, port)}/{address.db}" for host, port in address.hosts]
    settings = _url(";".join(urls))
    if address.has_tls:
        settings["broker_use_ssl"] = {"ssl_cert_reqs": "required", **address.tls}
    if address.has_sentinels:
        settings["broker_transport_options"] = {
            "master_name": address.master,
            "sentinel_kwargs": _sentinels(address),
        }
    return settings


def _sentinels(address: Address) -> dict[str, Any]:
    """Return redis-py's arguments for the sentinels, which have users and TLS of their own."""
    tls = {"ssl": True, **address.tls} if address.sentinel_tls else {}
    return {"username": address.sentinel_username, "password": address.sentinel_password, **tls}


def _url(url: str) -> dict[str, Any]:
    return {"broker_url": Url(url)}


def _login(username: str | None, password: str | None) -> str:
    if not username and not password:
        return ""
    return f"{quote(username or '', safe='')}:{quote(password or '', safe='')}@"


def _host(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
