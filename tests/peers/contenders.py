"""Programs to compare: our backends and the peers, each in all of its precisions."""

from __future__ import annotations

import importlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.numpy import load_file, save_file

import rwkv_core
from peers import Rwkv, Transformers, transformers_config, transformers_names
from pth_writer import write_pth
from rwkv_core.bench import parse_shape
from rwkv_core.evaluation.random_model import write_random_model

# What a contender is compared with is in its own group; only one group is in memory at a time.
GROUPS = ("float32", "16 bits", "8 and 4 bits")
OURS = {
    "float32": [(name, "float32") for name in ("numpy", "numba", "torch", "jax", "tf")],
    "16 bits": [
        ("numba", "bfloat16"), ("torch", "bfloat16"), ("torch", "float16"), ("jax", "bfloat16"),
    ],
    "8 and 4 bits": [
        ("numba", "int8"), ("torch-quant", "int8"), ("numba", "int4"), ("torch-quant", "int4"),
    ],
}  # fmt: skip

Forward = Callable[[list[int], Any], tuple[Any, Any]]


class Files(NamedTuple):
    """Files with the same weights, in 16 bits like published models."""

    pth: Path
    transformers: Path  # a folder


def write_files(folder: Path, shape: str) -> Files:
    """Random weights of a shape such as "169M" or "4x256", for all contenders."""
    files = Files(folder / "model.pth", folder / "transformers")
    files.transformers.mkdir()
    random = folder / "random.safetensors"
    write_random_model(random, parse_shape(shape))
    weights = load_file(random)
    random.unlink()
    write_pth(files.pth, weights)
    save_file(
        transformers_names(weights), files.transformers / "model.safetensors", {"format": "pt"}
    )
    config = {"model_type": "rwkv", **transformers_config(weights)}
    (files.transformers / "config.json").write_text(json.dumps(config))
    return files


@dataclass(frozen=True)
class Contender(ABC):
    """One line of the table.

    Attributes:
        name: of the implementation.
        precision: as it calls it.
    """

    name: str
    precision: str
    group: str
    ours = False

    @property
    def label(self) -> str:
        return f"{self.name} {self.precision}"

    @abstractmethod
    def prepare(self) -> None:
        """Import the libraries, so that what is timed is the loading of the model."""

    @abstractmethod
    def load(self, files: Files) -> Forward: ...


@dataclass(frozen=True)
class Ours(Contender):
    ours = True

    def _load(self, model: str | Path) -> rwkv_core.Model:
        return rwkv_core.load(model, self.name, dtype=self.precision)

    def prepare(self) -> None:
        self._load("prose")

    def load(self, files: Files) -> Forward:
        model = self._load(files.pth)

        def forward(tokens: list[int], state: Any) -> tuple[Any, Any]:
            logits, state = model.forward(tokens, state)
            return model.to_numpy(logits), state

        return forward


@dataclass(frozen=True)
class RwkvPackage(Contender):
    def prepare(self) -> None:
        os.environ["RWKV_JIT_ON"] = "1"  # as it is fastest
        importlib.import_module("rwkv.model")

    def load(self, files: Files) -> Forward:
        return Rwkv(files.pth, self.precision).forward


@dataclass(frozen=True)
class TransformersPackage(Contender):
    def prepare(self) -> None:
        importlib.import_module("transformers.models.rwkv.modeling_rwkv")

    def load(self, files: Files) -> Forward:
        return Transformers.of_folder(files.transformers, self.precision).forward


def all_contenders() -> list[Contender]:
    """The peers, and our backends that are ready here."""
    ready = {row.name for row in rwkv_core.list_backends() if row.status == "ready"}
    ours = [
        Ours(name, dtype, group) for group in GROUPS for name, dtype in OURS[group] if name in ready
    ]
    strategies = {"cpu fp32": "float32", "cpu bf16": "16 bits", "cpu fp32i8": "8 and 4 bits"}
    dtypes = {"float32": "float32", "bfloat16": "16 bits"}
    rwkv, transformers = (f"{name} {version(name)}" for name in ("rwkv", "transformers"))
    return [
        *ours,
        *(RwkvPackage(rwkv, strategy, group) for strategy, group in strategies.items()),
        *(TransformersPackage(transformers, dtype, group) for dtype, group in dtypes.items()),
    ]
