"""What tells one model from another: a hash over a sample of its values."""

from __future__ import annotations

import hashlib

from rwkv_core.architectures.base import Config
from rwkv_core.checkpoint.reader import Checkpoint


def fingerprint_of(checkpoint: Checkpoint, config: Config) -> str:
    """Sixteen hex digits over a sample of every tensor's values, whatever kind of file holds them.

    Without tensors that are transformed at load, which rwkv.cpp's files hold transformed, equal but
    for rounding, and without those that are not used, which not all writers keep. A prequantized
    file has the fingerprint of the model that it was made from.
    """
    if checkpoint.fingerprint is not None:
        return checkpoint.fingerprint
    digest = hashlib.sha256(repr(tuple(config.sizes.values())).encode())
    for name, weight in sorted(config.weights().items()):
        if weight.transform is None:
            digest.update(checkpoint.sample(name).astype("<f4").tobytes())
    return digest.hexdigest()[:16]
