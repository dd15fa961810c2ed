"""Faults of whole models of RWKV-5 to 7: in what a layer gets, and in a kernel for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from conformance_faults.planting import Ops, fault, spoiled

CAUGHT_BY = "later_models"


def in_layers(kernel: str, name: str, change: Callable[[Any], Any]) -> None:
    """A fault: in layers that compute `kernel`, time mixing's parameters are changed."""

    class Spoiled(Ops):
        def layers(self, block: Any, blocks: Any, x: Any, state: Any, **more: Any) -> Any:
            if more.get("kernel") == kernel:
                blocks = [p._replace(time=change(p.time)) for p in blocks]
            return super().layers(block, blocks, x, state, **more)

    fault(f"{kernel}: {name}", CAUGHT_BY)(Spoiled)


def ordered(*order: int) -> Callable[[Any], Any]:
    """RWKV-6's five low-rank matrices, which are of w, k, v, r and g, in another order."""
    return lambda p: p._replace(maa_w2=tuple(p.maa_w2[i] for i in order))


in_layers("rwkv6", "the five mixes in the order r, w, k, v, g", ordered(1, 2, 3, 0, 4))
in_layers("rwkv6", "the five mixes in the order w, v, k, r, g", ordered(0, 2, 1, 3, 4))
in_layers("rwkv6", "the five mixes in the order w, k, v, g, r", ordered(0, 1, 2, 4, 3))
in_layers("rwkv6", "the bonus left out", lambda p: p._replace(bonus=0 * p.bonus))
in_layers("rwkv6", "a decay for all tokens", lambda p: p._replace(decay_w2=0 * p.decay_w2))
in_layers("rwkv6", "shares for all tokens", lambda p: p._replace(maa_w1=0 * p.maa_w1))
in_layers("rwkv5", "the bonus left out", lambda p: p._replace(bonus=0 * p.bonus))
in_layers("rwkv5", "the bonus raised", lambda p: p._replace(bonus=np.exp(p.bonus)))
in_layers(
    "rwkv5",
    "5.0's bonus raw",
    lambda p: p if len(p.gate) else p._replace(bonus=np.log(p.bonus)),
)
in_layers("rwkv7", "the bonus left out", lambda p: p._replace(r_k=0 * p.r_k))
in_layers("rwkv7", "k whole, whatever is taken out", lambda p: p._replace(k_a=0 * p.k_a))
in_layers("rwkv7", "kk without k_k", lambda p: p._replace(k_k=1 + 0 * p.k_k))


@fault("rwkv7: kk is not normalized in a model", CAUGHT_BY)
class _(Ops):
    def normalize_heads(self, x: Any, head_size: int) -> Any:
        return x.copy()


class OwnLayers(Ops):
    """RWKV-7's layers, with a place for faults in the values passed to the next layer."""

    def handed_on(self, i: int, blocks: Any, carry: Any) -> Any:
        return carry

    def layers(self, block: Any, blocks: Any, x: Any, state: Any, kernel: str = "") -> Any:
        if kernel != "rwkv7":
            return super().layers(block, blocks, x, state, kernel)
        rows = []
        for i in range(len(blocks)):
            x = self.handed_on(i, blocks, x)
            x, after = block(self, self.parameters(i, blocks), x, state[:, i])
            rows.append(after)
        return x, np.stack(rows, axis=1)

    def parameters(self, i: int, blocks: Any) -> Any:
        return blocks[i]


@fault("rwkv7: v_first of layer 1", CAUGHT_BY)
class _(OwnLayers):
    def handed_on(self, i: int, blocks: Any, carry: Any) -> Any:
        return carry[:1] if i == 1 else carry


@fault("rwkv7: v_first of no layer", CAUGHT_BY)
class _(OwnLayers):
    def handed_on(self, i: int, blocks: Any, carry: Any) -> Any:
        return carry[:1]


@fault("rwkv7: v_first of the last token for all", CAUGHT_BY)
class _(OwnLayers):
    def handed_on(self, i: int, blocks: Any, carry: Any) -> Any:
        x, *values = carry
        return (x, *(v[:, -1:] + 0 * v for v in values))


@fault("rwkv7: v_first of a batch's first row", CAUGHT_BY)
class _(OwnLayers):
    def handed_on(self, i: int, blocks: Any, carry: Any) -> Any:
        x, *values = carry
        return (x, *(v[:1] + 0 * v for v in values))


@fault("rwkv7: layer 0's v0 used", CAUGHT_BY)
class _(OwnLayers):
    """Layer 0 gets v0, v1 and v2 of layer 1, as a backend never sees its own."""

    def handed_on(self, i: int, blocks: Any, carry: Any) -> Any:
        return (*carry, 0 * carry[0]) if i == 0 else carry

    def parameters(self, i: int, blocks: Any) -> Any:
        mixed = blocks[1].time if i == 0 else blocks[i].time
        time = blocks[i].time._replace(v0=mixed.v0, v1=mixed.v1, v2=mixed.v2)
        return blocks[i]._replace(time=time)


def in_kernel(name: str, when: Callable[..., bool]) -> None:
    """A fault of the compiled function, like one in a backend's kernel for a token."""

    class Spoiled(Ops):
        def compile(self, function: Any, kernel: str = "") -> Any:
            def run(p: Any, x: Any, state: Any) -> Any:
                result = function(p, x, state)
                return spoiled(result) if when(kernel, x, state) else result

            return run

    fault(f"compile: {name}", CAUGHT_BY)(Spoiled)


for version in ("rwkv5.0", "rwkv5.1", "rwkv5.2", "rwkv6", "rwkv7"):

    def one_token(kernel: str, x: Any, state: Any, version: str = version) -> bool:
        return kernel == version and x.shape[1] == 1

    in_kernel(f"{version}, T of 1", one_token)

for version in ("rwkv5.2", "rwkv6", "rwkv7"):

    def of_batch(kernel: str, x: Any, state: Any, version: str = version) -> bool:
        return kernel == version and x.shape[1] == 1 and len(x) > 1

    def of_64(kernel: str, x: Any, state: Any, version: str = version) -> bool:
        return kernel == version and x.shape[1] == 64 and bool(state.any())

    def heads_of_64(kernel: str, x: Any, state: Any, version: str = version) -> bool:
        return kernel == version and state.shape[2] == 2 + 64

    in_kernel(f"{version}, T of 1 in a batch", of_batch)
    in_kernel(f"{version}, T of 64 after a state", of_64)
    in_kernel(f"{version}, heads of 64", heads_of_64)


@fault("compile: writes into the state of RWKV-7 that it is given", CAUGHT_BY)
class _(Ops):
    def compile(self, function: Any, kernel: str = "") -> Any:
        def run(p: Any, x: Any, state: Any) -> Any:
            logits, after = function(p, x, state)
            if kernel == "rwkv7":
                state[...] = after
            return logits, after

        return run


@fault("compile: states of RWKV-7 of one shape share memory", CAUGHT_BY)
class _(Ops):
    def compile(self, function: Any, kernel: str = "") -> Any:
        buffers: dict[Any, Any] = {}

        def run(p: Any, x: Any, state: Any) -> Any:
            logits, after = function(p, x, state)
            if kernel == "rwkv7":
                buffer = buffers.setdefault(after.shape, np.empty_like(after))
                buffer[...] = after
                after = buffer
            return logits, after

        return run
