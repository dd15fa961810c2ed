"""Recognizes addresses (URLs), and shows them without the passwords and tokens in them."""

from __future__ import annotations

import re

# A single letter before the colon is a drive on Windows.
_ADDRESS = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]+)://|\s*(https?|hf):", re.IGNORECASE)
# Up to the next space, without the punctuation of the sentence around it. The scheme is not
# matched: searching its start from each letter would take quadratic time.
_IN_TEXT = re.compile(r"(?::[/\\]{2,}|\b(?:https?|hf|ftp|s3):)\S*[^\s:;,'\")>\]]", re.IGNORECASE)
_PARTS = re.compile(r"([^/\\]*:)?([/\\]*)([^/\\?#]*)([^?#]*)(\?[^#]*)?(#.*)?", re.DOTALL)
_CHECKSUM = re.compile(r"#sha256=[0-9A-Fa-f]{64}")


def scheme_of(text: str) -> str | None:
    """Return the scheme of an address in lower case, None for a path."""
    found = _ADDRESS.match(text)
    return found and (found[1] or found[2]).lower()


def shown(address: str) -> str:
    """Return an address, well-formed or not, with "..." for its name, password and query."""
    found = _PARTS.fullmatch(address)
    if found is None:
        return "..."
    scheme, slashes, host, path, query, fragment = (part or "" for part in found.groups())
    place = host + path
    user, at, rest = host.rpartition("@")
    if at:
        if user != "...":
            place = f"...@{rest}{path}"
    elif _has_no_port(host):
        # A slash, a question mark or a hash in a password ends the host too early.
        if "@" in address:
            return f"{scheme}{slashes}...@{address.rpartition('@')[2].partition('?')[0]}"
        place = f"{host.rpartition(':')[0]}:...{path}"
    encoded = re.search("%3f", place, re.IGNORECASE)
    if encoded:
        place, query = place[: encoded.start()], "?"
    if fragment and not _CHECKSUM.fullmatch(fragment):
        fragment = "#..."
    return f"{scheme}{slashes}{place}{'?...' if query else ''}{fragment}"


def _has_no_port(host: str) -> bool:
    name, colon, port = host.rpartition(":")
    return bool(colon) and not port.isdigit() and not name.startswith("[")


def without_secrets(text: str) -> str:
    """Return `text` with each address replaced by `shown(address)`."""
    if scheme_of(text) and "\n" not in text and ": " not in text:
        return shown(text)
    return _IN_TEXT.sub(lambda found: shown(found[0]), text)
