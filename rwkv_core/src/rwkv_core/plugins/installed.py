"""Finds the installed plugins: the entry points of the group `rwkv_core`.

`importlib.metadata.entry_points` reads the files of all distributions together, and fails if any
file is malformed, even in an unrelated distribution. So this module reads the files one by one, and
only the section `rwkv_core` of each file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from rwkv_core.errors import BackendError

GROUP = "rwkv_core"
MAX_FILE_BYTES = 1 << 20
_SECTION = re.compile(rf"^\s*\[\s*{GROUP}\s*\]", re.M)
_TARGET = re.compile(r"[\w.]+\s*(:\s*[\w.]+\s*)?(\[.*\]\s*)?")


@dataclass(frozen=True)
class InstalledPlugin:
    """An entry point of the group `rwkv_core`, and the distribution that it belongs to.

    `target` is a module, or an object as module:object. `problem` is the entry point's error; ""
    if there is none.
    """

    name: str
    target: str
    distribution: str
    version: str
    problem: str = ""

    @property
    def origin(self) -> str:
        """Distribution and version of the plugin, as far as they are known."""
        return f"{self.distribution} {self.version}".strip()

    @property
    def package(self) -> str:
        """Top-level package of the plugin's code."""
        return re.split(r"[.:\s]", self.target, maxsplit=1)[0]

    def load(self) -> object:
        """Import the plugin. Raises BackendError for a malformed entry point, and import errors."""
        if self.problem:
            raise BackendError(self.problem)
        return metadata.EntryPoint(self.name, self.target, GROUP).load()


def installed_plugins() -> list[InstalledPlugin]:
    """Return every plugin once. If a distribution has two copies, the first on the path counts."""
    seen: set[str] = set()
    found: dict[tuple[str, str], InstalledPlugin] = {}
    for distribution in metadata.distributions():
        text, problem = _entry_points_text(distribution)
        folder = os.path.basename(str(getattr(distribution, "_path", "")))
        key = normal(folder.partition("-")[0] or _field(distribution, "Name"))
        if key in seen or not _SECTION.search(text):
            continue
        seen.add(key)
        name = _field(distribution, "Name") or folder.partition("-")[0]
        version = _field(distribution, "Version")
        lines = [("", "", problem)] if problem else list(_lines_of_group(text))
        for plugin, target, wrong in lines:
            one = InstalledPlugin(plugin or name, target, name, version, wrong)
            found.setdefault((name, one.name), one)
    return list(found.values())


def normal(name: str) -> str:
    """Return the normalized name of a distribution, as pip compares it."""
    return re.sub("[-_.]+", "-", name.strip()).lower()


def _field(distribution: metadata.Distribution, name: str) -> str:
    """Return a field of METADATA; "" if the file is missing or damaged."""
    try:
        return str(distribution.metadata[name] or "")
    except Exception:
        return ""


def _entry_points_text(distribution: metadata.Distribution) -> tuple[str, str]:
    """Return the text of entry_points.txt ("" if there is none) and its error ("" if none)."""
    try:
        # A private attribute, but the only way to the file's path. Its type and size are checked
        # first: reading a pipe would block, and a huge file would take minutes.
        file = getattr(distribution, "_path", None)
        if isinstance(file, os.PathLike):
            path = os.path.join(file, "entry_points.txt")
            if not os.path.isfile(path) or os.path.getsize(path) > MAX_FILE_BYTES:
                return "", ""
        return distribution.read_text("entry_points.txt") or "", ""
    except UnicodeDecodeError as error:
        return error.object.decode(errors="replace"), "entry_points.txt: is not UTF-8"
    except Exception:
        return "", ""


def _lines_of_group(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield name, target and problem of each line in this group's section."""
    section = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1].strip()
        elif section == GROUP and line and line[0] not in "#;":
            name, _, target = map(str.strip, line.partition("="))
            sound = name and _TARGET.fullmatch(target)
            wrong = f"entry_points.txt: found {line[:80]!r}, expected NAME = MODULE"
            yield name, target, "" if sound else wrong
