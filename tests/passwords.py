"""A recognisable password, and all places of a URL where one can stand."""

from __future__ import annotations

#: Where a password can stand; and where it stands in a URL that is wrong, or not escaped.
GOOD_PLACES = [
    "redis://:{}@h:1/0", "redis://u:{}@h/0", "rediss://u:{}@h", "redis://h?password={}",
    "unix:///s?password={}", "unix://u:{}@/s", "redis+sentinel://:{}@a,b/m", "rediss+sentinel://u:{}@a/m/1",
    "redis+sentinel://a/m?sentinel_password={}", "redis+sentinel://a/m?password={}",
]  # fmt: skip
BAD_PLACES = [
    "redis://:a/{}@h", "redis://:a#{}@h", "redis://:a?{}@h", "redis://u:12?{}=1@h", "redis://:1[{}@h",
    "redis://{}", "redis://h:{}", "redis://h/{}", "redis://h?passwort={}", "redis://h?{}", "redis://h?{}=1@x",
    "redis://h?db={}", "redis://h#{}", "rediss://h?ssl_password={}", "rediss://h?ssl_cert_reqs={}",
    "ftp://u:{}@h", "{}", "u:{}@h", "redis:/u:{}@h", "redis://:{}@h:port/0", "redis://:{}@", "redis://u:{}@h/x",
    "redis+cluster://:{}@h", "unix://{}/x", "unix://u:{}@", "redis+sentinel://u:{}@h", "redis://:{}@h x",
    "redis+sentinel://a:{}/m", "redis://:%ff{}@h", "embedded://?password={}",
]  # fmt: skip
#: As it is, and percent-encoded as it may have to be.
WORDS = ["PassW0rd-Sesame", "PassW0rd%40Sesame"]


def is_told(text: str) -> bool:
    return "PassW0rd" in text or "Sesame" in text
