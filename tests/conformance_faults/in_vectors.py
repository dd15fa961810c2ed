"""Faults of vectors, embeddings and the operations between the products."""

from __future__ import annotations

from typing import Any

import numpy as np

from conformance_faults.planting import (
    Ops,
    fault,
    spoil,
)


@fault("vector: keeps a view of its source", "later_changes_of_their_source")
class _(Ops):
    def vector(self, array: Any) -> Any:
        return np.asarray(array, "float32")


@fault("vector: through float16", "comes_back")
class _(Ops):
    def vector(self, array: Any) -> Any:
        return array.astype("float16").astype("float32")


@fault("vector: in float64", "comes_back")
class _(Ops):
    def vector(self, array: Any) -> Any:
        return array.astype("float64")


@fault("vector: wrong beyond 1024", "comes_back")
class _(Ops):
    def vector(self, array: Any) -> Any:
        result = array.astype("float32")
        result[..., 1024:] = 0
        return result


@fault("vector: flattens more than three axes", "comes_back")
class _(Ops):
    def vector(self, array: Any) -> Any:
        result = array.astype("float32")
        return result.reshape(-1, *result.shape[-2:]) if result.ndim > 3 else result


@fault("to_numpy: in float64", "comes_back")
class _(Ops):
    def to_numpy(self, array: Any) -> Any:
        return array.astype("float64")


@fault("to_numpy: NaN hidden", "nan_stays_nan")
class _(Ops):
    def to_numpy(self, array: Any) -> Any:
        return np.nan_to_num(array)


for narrow in ("int8", "uint8", "int16", "uint16"):

    @fault(f"embed: tokens in {narrow}", "large_vocabulary")
    class _(Ops):
        narrow = narrow

        def embed(self, table: Any, tokens: Any) -> Any:
            return super().embed(table, tokens.astype(self.narrow))


@fault("embed: in float64", "embed_picks")
class _(Ops):
    def embed(self, table: Any, tokens: Any) -> Any:
        return super().embed(table, tokens).astype("float64")


@fault("embed: table in float16", "embed_picks")
class _(Ops):
    def embedding(self, array: Any) -> Any:
        return array.astype("float16")


@fault("embed: keeps a view of its source", "later_changes_of_their_source")
class _(Ops):
    def embedding(self, array: Any) -> Any:
        return array


@fault("embed: clips tokens in place", "embed_picks or large_vocabulary")
class _(Ops):
    def embed(self, table: Any, tokens: Any) -> Any:
        rows = super().embed(table, tokens)
        tokens %= 50
        return rows


@fault("embed: rows of a batch turned round", "embed_picks")
class _(Ops):
    def embed(self, table: Any, tokens: Any) -> Any:
        return super().embed(table, tokens)[::-1]


spoil("embed: D > 128", "large_vocabulary", "embed", lambda table, t: table.shape[-1] > 128)
spoil("embed: T of 512", "large_vocabulary", "embed", lambda table, t: t.shape[1] == 512)


for method in ("layer_norm", "token_shift", "mix", "sigmoid", "relu_squared", "wkv"):
    for condition, when in {
        "D > 128": lambda x, *_: x.shape[-1] > 128,
        "D > 1024": lambda x, *_: x.shape[-1] > 1024,
        "B > 3": lambda x, *_: len(x) > 3,
        "B > 16": lambda x, *_: len(x) > 16,
        "T of 64": lambda x, *_: x.shape[1] == 64,
        "T of 512": lambda x, *_: x.shape[1] == 512,
        "odd T": lambda x, *_: x.shape[1] > 1 and x.shape[1] % 2 == 1,
        "B > 1 and T of 64": lambda x, *_: len(x) > 1 and x.shape[1] == 64,
    }.items():
        caught_by = "wkv" if method == "wkv" else f"vector_operations and {method}"
        spoil(f"{method}: {condition}", caught_by, method, when)


class NormOps(Ops):
    epsilon, freedom = 1e-5, 0

    def layer_norm(self, x: Any, weight: Any, bias: Any) -> Any:
        deviation = np.sqrt(x.var(-1, keepdims=True, ddof=self.freedom) + self.epsilon)
        return (x - x.mean(-1, keepdims=True)) / deviation * weight + bias


for epsilon in (0.0, 1e-8, 1e-6, 1e-3):
    fault(f"layer_norm: epsilon {epsilon}", "layer_norm")(
        type("Epsilon", (NormOps,), {"epsilon": np.float32(epsilon)})
    )
fault("layer_norm: sample variance", "layer_norm")(type("Sample", (NormOps,), {"freedom": 1}))


@fault("layer_norm: E[x^2] - E[x]^2", "far_from_zero")
class _(Ops):
    def layer_norm(self, x: Any, weight: Any, bias: Any) -> Any:
        mean = x.mean(-1, keepdims=True)
        variance = np.maximum((x * x).mean(-1, keepdims=True) - mean * mean, 0)
        return (x - mean) / np.sqrt(variance + np.float32(1e-5)) * weight + bias


@fault("layer_norm: epsilon beside the root", "layer_norm")
class _(Ops):
    def layer_norm(self, x: Any, weight: Any, bias: Any) -> Any:
        x = x - x.mean(-1, keepdims=True)
        return x / (np.sqrt((x * x).mean(-1, keepdims=True)) + np.float32(1e-5)) * weight + bias


@fault("layer_norm: over all tokens", "layer_norm")
class _(Ops):
    def layer_norm(self, x: Any, weight: Any, bias: Any) -> Any:
        x = x - x.mean(axis=(1, 2), keepdims=True)
        return x / np.sqrt((x * x).mean(axis=(1, 2), keepdims=True) + 1e-5) * weight + bias


@fault("layer_norm: in float16", "layer_norm")
class _(Ops):
    def layer_norm(self, x: Any, weight: Any, bias: Any) -> Any:
        return super().layer_norm(x, weight, bias).astype("float16").astype("float32")


@fault("layer_norm: works in place", "layer_norm")
class _(Ops):
    def layer_norm(self, x: Any, weight: Any, bias: Any) -> Any:
        x -= x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(1e-5)) * weight + bias


@fault("layer_norm: NaN hidden", "nan_stays_nan")
class _(Ops):
    def layer_norm(self, x: Any, weight: Any, bias: Any) -> Any:
        return np.nan_to_num(super().layer_norm(x, weight, bias))


@fault("layer_norm: one buffer for all results", "outlive")
class _(Ops):
    def layer_norm(self, x: Any, weight: Any, bias: Any) -> Any:
        result = super().layer_norm(x, weight, bias)
        self.buffer = getattr(self, "buffer", {})
        buffer = self.buffer.setdefault(result.shape, np.empty_like(result))
        buffer[...] = result
        return buffer


@fault("token_shift: within the chunk alone", "token_shift")
class _(Ops):
    def token_shift(self, x: Any, last: Any) -> Any:
        return super().token_shift(x, 0 * last)


@fault("token_shift: across rows of a batch", "token_shift")
class _(Ops):
    def token_shift(self, x: Any, last: Any) -> Any:
        flat = np.roll(x.reshape(-1, x.shape[-1]), 1, axis=0).reshape(x.shape)
        flat[0, 0] = last[0]
        return flat


@fault("token_shift: works in place", "token_shift")
class _(Ops):
    def token_shift(self, x: Any, last: Any) -> Any:
        shifted = super().token_shift(x, last)
        last[...] = x[:, -1]
        return shifted


@fault("mix: the wrong way round", "mix")
class _(Ops):
    def mix(self, x: Any, previous: Any, mix: Any) -> Any:
        return x + mix * (previous - x)


@fault("mix: works in place", "mix")
class _(Ops):
    def mix(self, x: Any, previous: Any, mix: Any) -> Any:
        previous += mix * (x - previous)
        return previous.copy()


@fault("mix: hands out its argument", "mix")
class _(Ops):
    def mix(self, x: Any, previous: Any, mix: Any) -> Any:
        previous[...] = super().mix(x, previous, mix)
        return previous


@fault("sigmoid: overflows", "sigmoid")
class _(Ops):
    def sigmoid(self, x: Any) -> Any:
        with np.errstate(all="ignore"):
            e = np.exp(x)
            return e / (1 + e)


@fault("sigmoid: hard", "sigmoid")
class _(Ops):
    def sigmoid(self, x: Any) -> Any:
        return np.clip(x / 4 + np.float32(0.5), 0, 1)


@fault("sigmoid: in float16", "sigmoid")
class _(Ops):
    def sigmoid(self, x: Any) -> Any:
        return super().sigmoid(x).astype("float16").astype("float32")


@fault("relu_squared: without the square", "relu_squared")
class _(Ops):
    def relu_squared(self, x: Any) -> Any:
        return np.maximum(x, 0)


@fault("relu_squared: without the ReLU", "relu_squared")
class _(Ops):
    def relu_squared(self, x: Any) -> Any:
        return x * x


@fault("relu_squared: works in place", "relu_squared")
class _(Ops):
    def relu_squared(self, x: Any) -> Any:
        np.maximum(x, 0, out=x)
        return x * x


@fault("relu_squared: NaN hidden", "nan_stays_nan")
class _(Ops):
    def relu_squared(self, x: Any) -> Any:
        return np.where(x > 0, x, np.float32(0)) ** 2


@fault("relu_squared: ends at float16's largest", "relu_squared")
class _(Ops):
    def relu_squared(self, x: Any) -> Any:
        return np.minimum(super().relu_squared(x), 65504)
