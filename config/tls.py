"""Settings of a project that is reached with TLS: cookies, redirects, HSTS, and which proxy is believed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

#: A day: long enough to be of use, short enough to be taken back.
HSTS_SECONDS = 24 * 60 * 60


def behind_tls(
    hosts: Sequence[str], *, wanted: bool, origins: Sequence[str], proxy_header: str, hsts_seconds: str
) -> dict[str, Any]:
    """Return Django's settings. `hosts`: ALLOWED_HOSTS. Raises ValueError for what cannot be meant.

    `proxy_header`: the header by which a proxy says "https", "" for none. It must be one that the proxy
    sets itself: a browser that could send it would be believed.
    """
    found: dict[str, Any] = {"CSRF_TRUSTED_ORIGINS": list(origins)}
    for origin in origins:
        if not re.fullmatch(r"https?://[^/\s]+", origin):
            raise ValueError(f"TRUSTED_ORIGINS: {origin!r} is not like https://bus.example.com")
    if proxy_header:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", proxy_header):
            raise ValueError(f"PROXY_HEADER: {proxy_header!r} is not the name of a header")
        found["SECURE_PROXY_SSL_HEADER"] = (f"HTTP_{proxy_header.upper().replace('-', '_')}", "https")
    if not wanted:
        return found
    if hsts_seconds and not hsts_seconds.isdigit():
        raise ValueError(f"HSTS_SECONDS must be a number, not {hsts_seconds!r}")
    if not origins:
        found["CSRF_TRUSTED_ORIGINS"] = [_origin(host) for host in hosts if host != "*"]
    return found | {
        "SESSION_COOKIE_SECURE": True,
        "CSRF_COOKIE_SECURE": True,
        "SECURE_SSL_REDIRECT": True,
        "SECURE_HSTS_SECONDS": int(hsts_seconds or HSTS_SECONDS),
        "SECURE_HSTS_INCLUDE_SUBDOMAINS": False,
        "SECURE_HSTS_PRELOAD": False,
        # Both are for whoever owns the domain to decide, who knows what else is under it.
        "SILENCED_SYSTEM_CHECKS": ["security.W005", "security.W021"],
    }


def _origin(host: str) -> str:
    """Return the origin of a host. `.example.com` means all names below it, which is written with a star."""
    return f"https://*{host}" if host.startswith(".") else f"https://{host}"
