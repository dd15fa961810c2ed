"""The pip commands that messages give for this project's own distributions.

Before a release the package index has none of them, so a command names the checkout too: the
folders beside the one that rwkv-core was itself installed from, or how any checkout calls them.
"""

from __future__ import annotations

import json
import re
import shlex
from importlib import metadata
from pathlib import Path

from rwkv_core.backends.descriptor import install_line

# What to install where there is no backend: the fastest on a CPU, without a tensor library.
RECOMMENDED = "numba"
_OWN = re.compile(r"(rwkv-[\w-]+)(\[[\w,-]+\])?")


def install_extra(extra: str) -> str:
    """The pip command for an extra of rwkv-core, and if needed that for a checkout."""
    asked = f"rwkv-core[{extra}]"
    return install_line(asked) + from_checkout(_own_requirements().get(extra, asked))


def install_recommended() -> str:
    """What to do where there is no backend."""
    return f"install {RECOMMENDED}, the fastest on most CPUs: {install_extra(RECOMMENDED)}"


def from_checkout(requirement: str) -> str:
    """The command for a distribution of this project in a checkout, to put after the other one.

    "" if rwkv-core itself comes from a package index, which then has the others too.
    """
    source = _source()
    if source is None:
        return ""
    if (source / "pyproject.toml").is_file():
        folders = _folders(requirement, source.parent)
    else:
        folders = [f"./{_folder_name(requirement)}"]
    return f", or from the checkout: pip install {' '.join(map(shlex.quote, folders))}"


def _own_requirements() -> dict[str, str]:
    """Extra of rwkv-core -> the requirement of this project that it stands for."""
    found = {}
    for line in metadata.requires("rwkv-core") or []:
        own, extra = _OWN.match(line), re.search(r"extra *== *['\"]([\w-]+)['\"]", line)
        if own and extra:
            found[extra[1]] = own[0]
    return found


def _source() -> Path | None:
    """Where pip found rwkv-core (PEP 610), which may be gone by now; None for a package index."""
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        about = metadata.distribution("rwkv-core").read_text("direct_url.json")
        return Path(url2pathname(urlsplit(json.loads(about or "")["url"]).path))
    except (metadata.PackageNotFoundError, OSError, ValueError, KeyError, TypeError):
        return None


def _folder_name(requirement: str) -> str:
    """The folder of a distribution in a checkout, with the extra that is asked for."""
    name, bracket, extra = requirement.partition("[")
    return name.replace("-", "_") + bracket + extra


def _folders(requirement: str, checkout: Path) -> list[str]:
    """The folder of a distribution, after those of other backends that it needs."""
    import tomllib

    folder = checkout / _folder_name(requirement.partition("[")[0])
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
        needed = project["dependencies"]
    except (OSError, ValueError, KeyError):
        needed = []
    own = [found[0] for found in map(_OWN.match, needed) if found and found[1] != "rwkv-core"]
    return [
        *(folder for other in own for folder in _folders(other, checkout)),
        str(checkout / _folder_name(requirement)),
    ]
