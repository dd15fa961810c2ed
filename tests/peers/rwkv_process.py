"""Logits of the `rwkv` package, in a process of its own: it runs RWKV-7 only by itself.

    python rwkv_process.py MODEL.pth PROMPTS.json LOGITS.npz

PROMPTS is a list of lists of tokens. Logits after the last token of each are written.
"""

import json
import os
import sys

import numpy as np


def main() -> None:
    model, prompts, output = sys.argv[1:]
    os.environ["RWKV_JIT_ON"] = os.environ["RWKV_CUDA_ON"] = "0"
    from rwkv.model import RWKV

    # Each prompt from the beginning: it changes states in place.
    loaded = RWKV(model=model.removesuffix(".pth"), strategy="cpu fp32")
    with open(prompts) as file:
        rows = [loaded.forward(tokens, None)[0].float().numpy() for tokens in json.load(file)]
    np.savez(output, logits=np.stack(rows))


if __name__ == "__main__":
    main()
