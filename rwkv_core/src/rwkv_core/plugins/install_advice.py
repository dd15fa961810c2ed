"""Makes the pip commands that messages show, for installing this project's own packages.

Before a release the package index has none of these packages. So a message also shows a command
that installs them from a checkout. It names the folders beside the folder that rwkv-core was
installed from; if that folder is gone, it names the folders relative to the checkout's root.
"""

from __future__ import annotations

import json
import re
import shlex
from importlib import metadata
from pathlib import Path

from rwkv_core.backends.descriptor import install_line

# The extra to install if there is no backend: the fastest on a CPU, without a tensor library.
RECOMMENDED = "numba"
_OWN = re.compile(r"(rwkv-[\w-]+)(\[[\w,-]+\])?")


def install_extra(extra: str) -> str:
    """Return the pip command for an extra of rwkv-core, and if needed, one for a checkout."""
    asked = f"rwkv-core[{extra}]"
    return install_line(asked) + from_checkout(_own_requirements().get(extra, asked))


def install_recommended() -> str:
    """Return advice for an environment without a backend."""
    return f"install {RECOMMENDED}, the fastest on most CPUs: {install_extra(RECOMMENDED)}"


def from_checkout(requirement: str) -> str:
    """Return ", or from the checkout: pip install ...", to append to the usual pip command.

    Returns "" if rwkv-core was installed from a package index, which then has all packages of the
    project.
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
    """Return for each extra of rwkv-core the requirement that names a package of this project."""
    found = {}
    for line in metadata.requires("rwkv-core") or []:
        own, extra = _OWN.match(line), re.search(r"extra *== *['\"]([\w-]+)['\"]", line)
        if own and extra:
            found[extra[1]] = own[0]
    return found


def _source() -> Path | None:
    """Return the folder that rwkv-core was installed from (PEP 610); None for a package index.

    The folder may be gone by now.
    """
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        about = metadata.distribution("rwkv-core").read_text("direct_url.json")
        return Path(url2pathname(urlsplit(json.loads(about or "")["url"]).path))
    except (metadata.PackageNotFoundError, OSError, ValueError, KeyError, TypeError):
        return None


def _folder_name(requirement: str) -> str:
    """Return the folder of a distribution in a checkout, with the requirement's extra."""
    name, bracket, extra = requirement.partition("[")
    return name.replace("-", "_") + bracket + extra


def _folders(requirement: str, checkout: Path) -> list[str]:
    """Return the folder of a distribution, preceded by those of other backends that it needs."""
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
