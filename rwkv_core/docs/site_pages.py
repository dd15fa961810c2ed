"""A hook of MkDocs: the site's pages whose text is not in this folder.

The READMEs, the results and the changelog are pages of the site and stay where they are. Links
between them and the pages here are relative in the repository, and are rewritten for the site. The
command line's reference is the help of the real commands.
"""

import argparse
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File

from rwkv_core.cli import BUILTIN_COMMANDS

ROOT = Path(__file__).parents[2]
DOCS = PurePosixPath("rwkv_core/docs")
# Files of the repository, and what they are in the site.
ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "rwkv_backend_numpy/README.md": "backends/numpy.md",
    "rwkv_backend_torch/README.md": "backends/torch.md",
    "rwkv_backend_jax/README.md": "backends/jax.md",
    "rwkv_backend_tf/README.md": "backends/tf.md",
    "rwkv_backend_cuda_variants/README.md": "backends/cuda-variants.md",
    "rwkv_core/training/README.md": "training.md",
    "tests/peers/results/speed.md": "speed.md",
    "tests/peers/results/speed.png": "speed.png",
    "tests/peers/results/ratio.png": "ratio.png",
}
# Source files that pages link to, and where the site documents them.
DOCUMENTED = {
    "rwkv_core/src/rwkv_core/backends/tensor_ops.py": "python.md#rwkv_core.TensorOps",
    "rwkv_core/src/rwkv_core/dtypes.py": "python.md#rwkv_core.dtypes",
}
REPOSITORY = {page: path for path, page in ELSEWHERE.items()}


def on_files(files: Any, config: Any) -> Any:
    """Add the files that are elsewhere."""
    for path, page in ELSEWHERE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of a page, and fill in the help of the commands."""
    here = PurePosixPath(REPOSITORY.get(page.file.src_uri, DOCS / page.file.src_uri))

    def rewritten(match: re.Match[str]) -> str:
        target, hash_sign, anchor = match[1].partition("#")
        if "://" in target or not target:
            return match[0]
        path = os.path.normpath(here.parent / target)
        inside = os.path.relpath(path, DOCS) if path.startswith(f"{DOCS}/") else None
        found = DOCUMENTED.get(path) or ELSEWHERE.get(path) or inside
        if found is None:
            return match[0]  # which the strict build refuses
        found = os.path.relpath(found, PurePosixPath(page.file.src_uri).parent)
        return f"]({found}{hash_sign}{anchor})"

    markdown = re.sub(r"\]\(([^)\s]+)\)", rewritten, markdown)
    return markdown.replace("<!-- commands -->", command_reference())


def command_reference() -> str:
    """Return the help of every command, as Markdown."""
    os.environ["COLUMNS"] = "90"
    parts = []
    for command in BUILTIN_COMMANDS:
        parser = argparse.ArgumentParser(
            prog=f"rwkv-core {command.name}",
            description=command.description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(parser)
        summary = command.help[0].upper() + command.help[1:]
        parts.append(f"## {command.name}\n\n{summary}.\n\n```text\n{parser.format_help()}```")
    return "\n\n".join(parts)
