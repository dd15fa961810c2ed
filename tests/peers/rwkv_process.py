"""Logits of the `rwkv` package, in a process of its own: it runs RWKV-7 only by itself.

    python rwkv_process.py MODEL.pth PROMPTS.json LOGITS.npz

PROMPTS is a list of lists of tokens. Logits after the last token of each are written. A model that
holds `time_state`s begins from them.
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
    model, prompts, output = sys.argv[1:]
    os.environ["RWKV_JIT_ON"] = os.environ["RWKV_CUDA_ON"] = "0"
    from rwkv.model import RWKV

    # Each prompt from the beginning: it changes states in place.
    loaded = RWKV(model=model.removesuffix(".pth"), strategy="cpu fp32")
    with open(prompts) as file:
        prompts = json.load(file)
    rows = [loaded.forward(tokens, first_state(loaded))[0].float().numpy() for tokens in prompts]
    np.savez(output, logits=np.stack(rows))


if __name__ == "__main__":
    main()
