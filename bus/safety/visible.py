"""Shows foreign text safely: what is not seen, or turns the text around it, as an escape."""

from __future__ import annotations

#: Characters of foreign data that are shown at most.
SHOWN = 200


def shown(raw: bytes | str, limit: int = SHOWN) -> str:
    """Return foreign data for logs, errors and pages: its repr, one line of visible characters, cut."""
    text = ascii(raw[: limit + 1]) if isinstance(raw, str) else repr(bytes(raw[: limit + 1]))
    return text if len(text) <= limit else f"{text[:limit]}…"


#: Characters that are drawn as nothing although Unicode counts them as letters, marks or symbols.
_BLANK = frozenset(map(chr, (0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0)))
_BLANK |= frozenset(map(chr, [*range(0xFE00, 0xFE0E), *range(0xE0100, 0xE01F0)]))
#: Kinds of spaces that people write: they are not printable by Python's rule, and harmless.
_SPACES = frozenset("\u00a0\u202f\u3000")


def escaped(raw: bytes) -> str:
    """Return bytes as text. Bytes that are not UTF-8 become `\\xff`."""
    return raw.decode("utf-8", "backslashreplace")


def visible(text: str, keep: str = "") -> str:
    """Return foreign text for people, with an escape for each character that is unseen or turns text around.

    These are control characters, bidirectional and zero-width ones, and the like: `\\x1b`, `\\u202e`,
    `\\U000e0041`. `keep`: characters that stay, such as a line's end. Nothing else changes, so the original
    cannot be read back.
    """
    if text.isprintable() and (text.isascii() or _BLANK.isdisjoint(text)):
        return text
    return "".join(char if _is_seen(char) or char in keep else _escape(char) for char in text)


def visible_json(text: str) -> str:
    """Return JSON text with the same characters escaped: JSON of the same value.

    Line ends between parts stay.
    """
    if text.isprintable() and (text.isascii() or _BLANK.isdisjoint(text)):
        return text
    return "".join(char if _is_seen(char) or char in "\n\t" else _json_escape(char) for char in text)


def _is_seen(char: str) -> bool:
    return (char.isprintable() or char in _SPACES) and char not in _BLANK


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
