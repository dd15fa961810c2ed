"""Model files: recognized by content, memory-mapped, read one tensor at a time, and validated.

    with open_checkpoint("RWKV-4-Pile-169M.pth") as checkpoint:
        config = diagnose(checkpoint)          # raises CheckpointError if something is wrong
        for name in checkpoint.tensors:
            array = checkpoint.read(name)      # a read-only view of the mapped file

Every format gives the same tensors under the same names, those of BlinkDL's files. No file is
trusted: no code in a file is executed, and nothing outside the file is read.
"""

from rwkv_core.checkpoint.formats import BUILTIN_FORMATS, open_checkpoint
from rwkv_core.checkpoint.reader import Checkpoint, CheckpointFormat, TensorInfo
from rwkv_core.checkpoint.validation import check_finite, check_tensor, diagnose

__all__ = [
    "BUILTIN_FORMATS",
    "Checkpoint",
    "CheckpointFormat",
    "TensorInfo",
    "check_finite",
    "check_tensor",
    "diagnose",
    "open_checkpoint",
]
