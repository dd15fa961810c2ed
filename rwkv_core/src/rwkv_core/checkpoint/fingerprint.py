"""Fingerprint of a model: a hash over a sample of its values."""

from __future__ import annotations

import hashlib

from rwkv_core.architectures.base import Config
from rwkv_core.checkpoint.reader import Checkpoint


def fingerprint_of(checkpoint: Checkpoint, config: Config) -> str:
    """Return 16 hex digits over a sample of every tensor's values, the same in every format.

    Two kinds of tensors are left out: tensors that are transformed at load, since rwkv.cpp's files
    hold them transformed and rounded, and tensors that no equation uses, since not all writers keep
    them. A prequantized file has the fingerprint of the model that it was made from.
    """
    if checkpoint.fingerprint is not None:
        return checkpoint.fingerprint
    digest = hashlib.sha256(repr(tuple(config.sizes.values())).encode())
    for name, weight in sorted(config.weights().items()):
        if weight.transform is None:
            digest.update(checkpoint.sample(name).astype("<f4").tobytes())
    return digest.hexdigest()[:16]
