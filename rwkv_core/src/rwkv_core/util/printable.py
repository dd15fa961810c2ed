"""Makes foreign text safe to print: without control characters or extra lines, and short.

Foreign text is text from a file, a server, a library, a plugin or a model.
"""

from __future__ import annotations

from rwkv_core.util.addresses import without_secrets

MAX_LENGTH = 300
MAX_ERROR_LENGTH = 2000
MAX_ERROR_LINES = 3
_CUT = " ... "
_REPLACEMENT = "\ufffd"
# Control characters of ASCII and Latin-1 except tab and newline. A carriage return is dropped: it
# would let a line overwrite itself, and "\r\n" does not need it.
_STEERING = {
    code: _REPLACEMENT for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"
} | {ord("\r"): None}


def printable(value: object, limit: int = MAX_LENGTH) -> str:
    """Return `str(value)` as one line of at most `limit` characters; drop the middle if longer.

    Control characters become U+FFFD. Spaces are kept, since paths may have them.
    """
    lines = _shortened(str(value), limit).replace("\t", " ").splitlines()
    return _steering_replaced(" ".join(filter(None, map(str.strip, lines))))


def one_line(error: BaseException) -> str:
    """Return an exception's message as one line, with its type unless it is an RWKVError."""
    from rwkv_core.errors import RWKVError  # which imports this module

    try:
        text = str(error)
    except Exception:
        text = "(without a message)"
    return printable(text if isinstance(error, RWKVError) else f"{type(error).__name__}: {text}")


def error_message(value: object) -> str:
    """Return `str(value)` as a few lines; spaces are kept, since paths may have them."""
    lines = _shortened(str(value), MAX_ERROR_LENGTH).split("\n", MAX_ERROR_LINES - 1)
    return "\n".join(_steering_replaced(line.replace("\n", " ")) for line in lines)


def without_control(text: str) -> str:
    """Return `text` with its lines and tabs, but without other control characters."""
    return text.translate(_STEERING)


def _steering_replaced(line: str) -> str:
    return "".join(one if one.isprintable() else _REPLACEMENT for one in line)


def _shortened(text: str, limit: int) -> str:
    # Secrets are removed before shortening, which could cut one so that it is not recognized.
    text = without_secrets(text)
    if len(text) <= limit:
        return text
    start = (limit - len(_CUT)) * 2 // 3
    return text[:start] + _CUT + text[start + len(_CUT) - limit :]
