"""Writes the golden logits for `rwkv-core verify`.

    python golden.py

The conformance suite's references compute the logits in float64, from the weights in each model's
file. The logits are stored as float32, in a file beside the model's file. Run this program whenever
a model's file changes. For versions without a trained model, it first writes a random model.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from rwkv_core import bundled
from rwkv_core.checkpoint import diagnose, open_checkpoint
from rwkv_core.conformance.references import rwkv4, rwkv5, rwkv6, rwkv7
from rwkv_core.conformance.references.blocks import Sizes
from rwkv_core.dtypes import GROUP_SIZE
from rwkv_core.loading import load
from rwkv_core.quantization import quantize
from rwkv_core.tokenizer import load_tokenizer

PROMPTS = (
    "It was a dark and stormy night",
    "\u201cYou have been in Afghanistan, I perceive.\u201d \u2014 caf\u00e9, \u03b1\u03b2\n\n",
    # Long enough that a backend which reads in fixed sizes needs several, with a remainder.
    "The sea was calm. " * 20 + "Then the wind rose, and with it the fear of every man aboard",
)
REFERENCES = {"rwkv4": rwkv4, "rwkv6": rwkv6, "rwkv7": rwkv7}
# With seed 0 a group norm of RWKV-6 divides by almost 0, so that roundings show tenfold.
SEED = 1
SIZES = Sizes(n_layer=2, n_embd=64, head_size=32, n_ffn=256, n_vocab=64, ranks=(8, 8, 8, 8))


def write_random_model(version: str, path: Path) -> None:
    if version == "rwkv6":
        weights = rwkv6.random_weights(SIZES, seed=SEED)
    else:
        weights = rwkv5.random_weights(SIZES, version.removeprefix("rwkv"), seed=SEED)
    for name in weights:
        if name.endswith(".weight") and weights[name].ndim == 2 and name != "emb.weight":
            # Values that int4 holds: its deviation is then that of the products alone.
            weights[name] = quantize(weights[name], 4, GROUP_SIZE).dequantize()
    save_file(
        {name: np.ascontiguousarray(array, np.float16) for name, array in weights.items()}, path
    )


def read_weights(path: Path) -> rwkv4.Weights:
    """Return the tensors in float64, in BlinkDL's shapes."""
    with open_checkpoint(path) as checkpoint:
        declared = diagnose(checkpoint).weights()
        return {
            name: checkpoint.read(name).astype(np.float64).reshape(weight.shape)
            for name, weight in declared.items()
        }


def prompts(n_vocab: int) -> list[list[int]]:
    tokenizer = load_tokenizer(bundled.TOKENIZER)
    return [[0, *(token % n_vocab for token in tokenizer.encode(text))] for text in PROMPTS]


def write_golden_logits(version: str, path: Path) -> None:
    reference = REFERENCES.get(version, rwkv5)
    weights = read_weights(path)
    tensors: dict[str, np.ndarray] = {}
    for i, tokens in enumerate(prompts(len(weights["emb.weight"]))):
        last = len(tokens) - 1
        positions = sorted({0, 1, last // 2, last})
        expected = reference.run(weights, tokens).logits[positions]
        tensors[f"tokens.{i}"] = np.array(tokens, np.int32)
        tensors[f"positions.{i}"] = np.array(positions, np.int32)
        tensors[f"logits.{i}"] = expected.astype(np.float32)
    golden = bundled.golden_logits(path)
    # The fingerprint is the same on every backend.
    model = load(path)
    assert model.architecture == version
    save_file(tensors, golden, {"model": model.fingerprint})
    print(f"{golden}: {golden.stat().st_size} bytes, model {model.fingerprint}")


def main() -> None:
    for version, path in bundled.VERIFIED.items():
        if path not in bundled.MODELS.values():
            write_random_model(version, path)
        write_golden_logits(version, path)


if __name__ == "__main__":
    main()
