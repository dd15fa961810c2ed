"""Write the logits that `rwkv-core verify` holds backends against, for the model that ships.

    python golden.py

They are computed in float64 by the conformance suite's reference, from the weights in the file, and
stored as float32 in golden.safetensors beside it. Run it whenever the model file changes.
"""

import numpy as np
from safetensors.numpy import save_file

from rwkv_core.bundled import MODEL, NAME
from rwkv_core.checkpoint import diagnose, open_checkpoint
from rwkv_core.conformance.references import rwkv4 as reference
from rwkv_core.evaluation.verify import GOLDEN
from rwkv_core.loading import load
from rwkv_core.tokenizer import load_tokenizer

PROMPTS = (
    "It was a dark and stormy night",
    "\u201cYou have been in Afghanistan, I perceive.\u201d \u2014 caf\u00e9, \u03b1\u03b2\n\n",
    # Long enough that a backend which reads in fixed sizes needs several, with a remainder.
    "The sea was calm. " * 20 + "Then the wind rose, and with it the fear of every man aboard",
)


def weights() -> reference.Weights:
    """The shipped model's tensors in float64."""
    with open_checkpoint(MODEL) as checkpoint:
        diagnose(checkpoint)
        return {name: checkpoint.read(name).astype(np.float64) for name in checkpoint.tensors}


def main() -> None:
    tokenizer = load_tokenizer(MODEL.with_name("tokenizer.json"))
    tensors: dict[str, np.ndarray] = {}
    parameters = weights()
    for i, prompt in enumerate(PROMPTS):
        tokens = [0, *tokenizer.encode(prompt)]
        last = len(tokens) - 1
        positions = sorted({0, 1, last // 2, last})
        expected = reference.run(parameters, tokens).logits[positions]
        tensors[f"tokens.{i}"] = np.array(tokens, np.int32)
        tensors[f"positions.{i}"] = np.array(positions, np.int32)
        tensors[f"logits.{i}"] = expected.astype(np.float32)
        print(f"{len(tokens)} tokens, logits at {positions}")
    # The fingerprint is the same on every backend.
    save_file(tensors, GOLDEN, {"model": load(NAME).fingerprint})
    print(GOLDEN, GOLDEN.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
