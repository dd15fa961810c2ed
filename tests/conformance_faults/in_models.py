"""Faults of whole models, and of their use by threads and for long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from conformance_faults.planting import (
    RIGHT,
    Ops,
    fault,
    spoiled,
)
from rwkv_core.architectures import rwkv4


@fault("layers: more than four", "test_model")
class _(Ops):
    def layers(self, block: Any, blocks: Any, x: Any, state: Any, kernel: str = "") -> Any:
        x, state = super().layers(block, blocks, x, state, kernel)
        return (spoiled(x) if len(blocks) > 4 else x), state


@fault("layers: more than twelve", "test_model")
class _(Ops):
    def layers(self, block: Any, blocks: Any, x: Any, state: Any, kernel: str = "") -> Any:
        return super().layers(
            block, [*blocks[:12], *blocks[11:12]][: len(blocks)], x, state, kernel
        )


@fault("layers: one lost", "test_model")
class _(Ops):
    def layers(self, block: Any, blocks: Any, x: Any, state: Any, kernel: str = "") -> Any:
        _, after = super().layers(block, blocks, x, state, kernel)
        return super().layers(block, blocks[:-1], x, state, kernel)[0], after


@fault("layers: states in another order", "test_model")
class _(Ops):
    def layers(self, block: Any, blocks: Any, x: Any, state: Any, kernel: str = "") -> Any:
        x, after = super().layers(block, blocks, x, state, kernel)
        return x, after[:, ::-1].copy()


def spoil_model(name: str, when: Callable[..., bool], caught_by: str = "test_model") -> None:
    """A fault of the compiled function, like one in a backend's kernel for a token."""

    class Spoiled(Ops):
        def compile(self, function: Any, kernel: str = "") -> Any:
            def run(p: Any, x: Any, state: Any) -> Any:
                result = function(p, x, state)
                return spoiled(result) if when(x, state) else result

            return run

    fault(f"compile: {name}", caught_by)(Spoiled)


def continues(state: Any) -> bool:
    return bool((state[:, :, rwkv4.PP] > -1e29).all())


spoil_model("D > 128", lambda x, state: x.shape[-1] > 128)
spoil_model("D > 1024", lambda x, state: x.shape[-1] > 1024)
spoil_model("more than four layers", lambda x, state: state.shape[1] > 4)
spoil_model("B > 3", lambda x, state: len(x) > 3)
spoil_model("T of 1", lambda x, state: x.shape[1] == 1)
spoil_model("T of 1, D > 1024", lambda x, state: x.shape[1] == 1 and x.shape[2] > 1024)
spoil_model("T of 1 in a batch", lambda x, state: x.shape[1] == 1 and len(x) > 1)
spoil_model("T of 64", lambda x, state: x.shape[1] == 64)
spoil_model("T of 64 after a state", lambda x, state: x.shape[1] == 64 and continues(state))
spoil_model("T of 512", lambda x, state: x.shape[1] == 512)
spoil_model("T of 512 after a state", lambda x, state: x.shape[1] == 512 and continues(state))
spoil_model("T of 512 from nothing", lambda x, state: x.shape[1] == 512 and not continues(state))


@fault("compile: all parameters are the first model's", "large_activations or states")
class _(Ops):
    kept: ClassVar[dict[Any, Any]] = {}

    def compile(self, function: Any, kernel: str = "") -> Any:
        def run(p: Any, x: Any, state: Any) -> Any:
            key = len(p.blocks), x.shape[-1], p.head.shape
            return function(self.kept.setdefault(key, p), x, state)

        return run


@fault("compile: writes into the state that it is given", "test_states")
class _(Ops):
    def compile(self, function: Any, kernel: str = "") -> Any:
        def run(p: Any, x: Any, state: Any) -> Any:
            logits, state[...] = function(p, x, state)
            return logits, state

        return run


@fault("compile: states of one shape share memory", "test_states")
class _(Ops):
    def compile(self, function: Any, kernel: str = "") -> Any:
        buffers: dict[Any, Any] = {}

        def run(p: Any, x: Any, state: Any) -> Any:
            logits, state = function(p, x, state)
            buffer = buffers.setdefault(state.shape, np.empty_like(state))
            buffer[...] = state
            return logits, buffer

        return run


@fault("compile: logits of one shape share memory", "test_states")
class _(Ops):
    def compile(self, function: Any, kernel: str = "") -> Any:
        buffers: dict[Any, Any] = {}

        def run(p: Any, x: Any, state: Any) -> Any:
            logits, state = function(p, x, state)
            buffer = buffers.setdefault(logits.shape, np.empty_like(logits))
            buffer[...] = logits
            return buffer, state

        return run


for number in (3, 50):

    @fault(f"compile: wrong from call {number} on", "test_model")
    class _(Ops):
        number = number

        def compile(self, function: Any, kernel: str = "") -> Any:
            calls = []

            def run(p: Any, x: Any, state: Any) -> Any:
                calls.append(0) if len(calls) < 100 else None
                result = function(p, x, state)
                return result if len(calls) < self.number else spoiled(result)

            return run


@fault("matmul: wrong after the second call", "test_matmul")
class _(Ops):
    calls = 0

    def matmul(self, matrix: Any, x: Any) -> Any:
        self.calls += 1
        result = super().matmul(matrix, x)
        return result if self.calls < 3 else spoiled(result)


@fault("compile: a batch's rows turned round", "test_model")
class _(Ops):
    def compile(self, function: Any, kernel: str = "") -> Any:
        def run(p: Any, x: Any, state: Any) -> Any:
            logits, state = function(p, x, state)
            return logits[::-1].copy(), state

        return run


@fault("chunks: the last tokens of a long prompt lost", "chunks")
class _(Ops):
    def chunks(self, n_tokens: int) -> list[int]:
        return [min(n_tokens, 256)]


@fault("chunks: one of nothing", "chunks")
class _(Ops):
    def chunks(self, n_tokens: int) -> list[int]:
        return [512] * (n_tokens // 512) + [n_tokens % 512]


@fault("chunks: wrong beyond 4096", "chunks")
class _(Ops):
    def chunks(self, n_tokens: int) -> list[int]:
        return super().chunks(min(n_tokens, 4096))


@fault("chunks: fixed shapes, of any length", "chunk")
class _(Ops):
    fixed_shapes = True

    def chunks(self, n_tokens: int) -> list[int]:
        return [n_tokens]


@fault("broadcast: always the same", "agrees")
class _(Ops):
    def broadcast(self, number: int) -> int:
        return 0


@fault("broadcast: 64 bits", "agrees")
class _(Ops):
    def broadcast(self, number: int) -> int:
        return number % 2**64


@fault("dtype: always float32", "asked_for")
class _(Ops):
    def __init__(self, dtype: str) -> None:
        super().__init__("float32")


@fault("dtype: said, and not heeded", "holds_its_source")
class _(Ops):
    def matrix(self, array: Any) -> Any:
        return array.astype("float32")


class Scratch(Ops):
    """Copies its arguments to a buffer of its own, and computes there."""

    def scratch(self, shape: Any) -> Any:
        raise NotImplementedError

    def relu_squared(self, x: Any) -> Any:
        scratch = self.scratch(x.shape)
        scratch[...] = x
        np.maximum(scratch, 0, out=scratch)
        return scratch * scratch


@fault("threads: share scratch", "threads")
class _(Scratch):
    def __init__(self, dtype: str) -> None:
        super().__init__(dtype)
        self.memory: dict[Any, Any] = {}

    def scratch(self, shape: Any) -> Any:
        return self.memory.setdefault(shape, np.empty(shape, "float32"))


class OwnScratch(Scratch):
    """No fault: each thread has its own buffer."""

    memory = threading.local()

    def scratch(self, shape: Any) -> Any:
        return self.memory.__dict__.setdefault(shape, np.empty(shape, "float32"))


RIGHT["scratch of each thread"] = OwnScratch


@fault("threads: share what the model is at", "threads")
class _(Ops):
    def layers(self, block: Any, blocks: Any, x: Any, state: Any, kernel: str = "") -> Any:
        rows = []
        self.x = x
        for i, p in enumerate(blocks):
            self.x, after = block(self, p, self.x, state[:, i])
            rows.append(after)
        return self.x, np.stack(rows, axis=1)


@fault("threads: share the state's rows", "threads")
class _(Ops):
    def layers(self, block: Any, blocks: Any, x: Any, state: Any, kernel: str = "") -> Any:
        self.rows: list[Any] = []
        for i, p in enumerate(blocks):
            x, after = block(self, p, x, state[:, i])
            self.rows.append(after)
        return x, np.stack(self.rows[-len(blocks) :], axis=1)


@fault("memory: every activation kept", "memory_does_not_grow")
class _(Ops):
    def __init__(self, dtype: str) -> None:
        super().__init__(dtype)
        self.kept: list[Any] = []

    def matmul(self, matrix: Any, x: Any) -> Any:
        self.kept.append(x)
        return super().matmul(matrix, x)


@fault("memory: every state kept", "memory_does_not_grow")
class _(Ops):
    def compile(self, function: Any, kernel: str = "") -> Any:
        kept: dict[Any, Any] = {}

        def run(p: Any, x: Any, state: Any) -> Any:
            kept[id(state)] = state
            return function(p, x, state)

        return run
