"""Which file of a folder is the model, or the adapter, that the folder is named for."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from rwkv_core.errors import CheckpointError

# As transformers and PEFT name what they save, in the order in which transformers looks.
USUAL_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)


def model_in(folder: Path, suffixes: Collection[str]) -> Path:
    """The file with a usual name, or the only one that ends in one of `suffixes`.

    Raises CheckpointError if there is none.
    """
    try:
        for name in USUAL_NAMES:
            if (folder / name).is_file():
                return folder / name
        files = sorted(path for path in folder.iterdir() if path.name.endswith(tuple(suffixes)))
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error.strerror or error}") from None
    if len(files) == 1:
        return files[0]
    if not files:
        raise CheckpointError(f"{folder}: a folder that holds no model; name the model file")
    names = ", ".join(path.name for path in files[:4])
    more = ", ..." if len(files) > 4 else ""
    raise CheckpointError(f"{folder}: a folder with several models ({names}{more}); name one file")
