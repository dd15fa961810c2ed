"""Logits of the `rwkv` package, in a process of its own: it runs RWKV-7 only by itself.

    python rwkv_process.py MODEL.pth ...

MODEL.json beside a model is a list of lists of tokens. Logits after the last token of each are
written into MODEL.npz. A model that holds `time_state`s begins from them.
"""

import json
import os
import sys

import numpy as np


def first_state(loaded):
    """That of RWKV-7, whose time_states the package does not read; its states are [H, V, K]."""
    tensors = getattr(loaded, "z", {})
    if "blocks.0.att.time_state" not in tensors:
        return None
    state = loaded.generate_zero_state()
    for i in range(loaded.args.n_layer):
        state[i * 3 + 1] = tensors[f"blocks.{i}.att.time_state"].float().clone()
    return state


def main() -> None:
    os.environ["RWKV_JIT_ON"] = os.environ["RWKV_CUDA_ON"] = "0"
    from rwkv.model import RWKV

    for model in sys.argv[1:]:
        name = model.removesuffix(".pth")
        loaded = RWKV(model=name, strategy="cpu fp32")
        with open(f"{name}.json") as file:
            prompts = json.load(file)
        # Each prompt from the beginning: it changes states in place.
        found = [loaded.forward(tokens, first_state(loaded))[0] for tokens in prompts]
        np.savez(f"{name}.npz", logits=np.stack([row.float().numpy() for row in found]))


if __name__ == "__main__":
    main()
