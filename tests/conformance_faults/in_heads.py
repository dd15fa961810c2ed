"""Faults of the operations on heads and of the scans of RWKV-5 to 7."""

from __future__ import annotations

from typing import Any

import numpy as np

from conformance_faults.planting import Ops, TupleOps, fault, spoil
from rwkv_core.backends import scans


def by_head(x: Any, head_size: int) -> Any:
    return x.reshape(*x.shape[:-1], x.shape[-1] // head_size, head_size)


def one_per_head(w: Any, head_size: int) -> Any:
    heads = by_head(w, head_size)
    return np.broadcast_to(heads.mean(-1, keepdims=True), heads.shape).reshape(w.shape)


def transposed(s: Any) -> Any:
    return scans.side_by_side(np, scans.apart(np, s).swapaxes(-1, -2)).copy()


@fault("head_sums: of all heads", "head_operations")
class _(Ops):
    def head_sums(self, x: Any, head_size: int) -> Any:
        return np.broadcast_to(x.sum(-1, keepdims=True), x.shape).copy()


@fault("head_sums: means", "head_operations")
class _(Ops):
    def head_sums(self, x: Any, head_size: int) -> Any:
        return super().head_sums(x, head_size) / head_size


@fault("head_sums: heads interleaved", "head_operations")
class _(Ops):
    def head_sums(self, x: Any, head_size: int) -> Any:
        n_head = x.shape[-1] // head_size
        return np.tile(by_head(x, n_head).sum(-2), head_size)


@fault("head_sums: NaN hidden", "nan_stays_in_its_head")
class _(Ops):
    def head_sums(self, x: Any, head_size: int) -> Any:
        return super().head_sums(np.nan_to_num(x), head_size)


@fault("head_sums: works in place", "head_operations")
class _(Ops):
    def head_sums(self, x: Any, head_size: int) -> Any:
        x[...] = super().head_sums(x, head_size)
        return x.copy()


@fault("head_sums: one buffer for all results", "outlive")
class _(Ops):
    def head_sums(self, x: Any, head_size: int) -> Any:
        result = super().head_sums(x, head_size)
        self.buffer = getattr(self, "buffer", {})
        buffer = self.buffer.setdefault(result.shape, np.empty_like(result))
        buffer[...] = result
        return buffer


spoil("head_sums: T of 64", "head_operations", "head_sums", lambda x, n: x.shape[1] == 64)
spoil("head_sums: heads of 64", "head_operations", "head_sums", lambda x, n: n == 64)


@fault("normalize_heads: no epsilon", "zeros")
class _(Ops):
    def normalize_heads(self, x: Any, head_size: int) -> Any:
        with np.errstate(all="ignore"):
            return x / np.sqrt(self.head_sums(x * x, head_size))


@fault("normalize_heads: kk is not normalized", "head_operations")
class _(Ops):
    def normalize_heads(self, x: Any, head_size: int) -> Any:
        return x.copy()


@fault("normalize_heads: epsilon added to the norm", "any_size")
class _(Ops):
    def normalize_heads(self, x: Any, head_size: int) -> Any:
        return x / (np.sqrt(self.head_sums(x * x, head_size)) + np.float32(1e-9))


@fault("normalize_heads: epsilon 1e-6", "any_size")
class _(Ops):
    def normalize_heads(self, x: Any, head_size: int) -> Any:
        return x / np.maximum(np.sqrt(self.head_sums(x * x, head_size)), np.float32(1e-6))


@fault("normalize_heads: a head of zeros by the root of 1e-12", "any_size")
class _(Ops):
    def normalize_heads(self, x: Any, head_size: int) -> Any:
        return x / np.sqrt(np.maximum(self.head_sums(x * x, head_size), np.float32(1e-12)))


@fault("normalize_heads: without the root", "head_operations")
class _(Ops):
    def normalize_heads(self, x: Any, head_size: int) -> Any:
        return x / self.head_sums(x * x, head_size)


@fault("normalize_heads: NaN hidden", "nan_stays_in_its_head")
class _(Ops):
    def normalize_heads(self, x: Any, head_size: int) -> Any:
        return np.nan_to_num(super().normalize_heads(x, head_size))


@fault("normalize_heads: works in place", "head_operations")
class _(Ops):
    def normalize_heads(self, x: Any, head_size: int) -> Any:
        x /= np.maximum(np.sqrt(self.head_sums(x * x, head_size)), np.float32(1e-12))
        return x.copy()


@fault("group_norm: epsilon 1e-5", "head_operations")
class _(Ops):
    def group_norm(self, x: Any, weight: Any, bias: Any, head_size: int, epsilon: float) -> Any:
        return super().group_norm(x, weight, bias, head_size, 1e-5)


@fault("group_norm: epsilon 64e-5 whatever is asked for", "another_epsilon")
class _(Ops):
    def group_norm(self, x: Any, weight: Any, bias: Any, head_size: int, epsilon: float) -> Any:
        return super().group_norm(x, weight, bias, head_size, 64e-5)


@fault("group_norm: no epsilon", "any_size")
class _(Ops):
    def group_norm(self, x: Any, weight: Any, bias: Any, head_size: int, epsilon: float) -> Any:
        with np.errstate(all="ignore"):
            return super().group_norm(x, weight, bias, head_size, 0)


@fault("group_norm: over all heads", "head_operations")
class _(Ops):
    def group_norm(self, x: Any, weight: Any, bias: Any, head_size: int, epsilon: float) -> Any:
        return super().group_norm(x, weight, bias, x.shape[-1], epsilon)


@fault("group_norm: the sample's variance", "head_operations")
class _(Ops):
    def group_norm(self, x: Any, weight: Any, bias: Any, head_size: int, epsilon: float) -> Any:
        x = x - self.head_sums(x, head_size) / head_size
        variance = self.head_sums(x * x, head_size) / (head_size - 1)
        return x / np.sqrt(variance + np.float32(epsilon)) * weight + bias


@fault("group_norm: the mean of squares less the mean's square", "far_from_zero")
class _(Ops):
    def group_norm(self, x: Any, weight: Any, bias: Any, head_size: int, epsilon: float) -> Any:
        mean = self.head_sums(x, head_size) / head_size
        variance = self.head_sums(x * x, head_size) / head_size - mean * mean
        with np.errstate(all="ignore"):
            return (x - mean) / np.sqrt(variance + np.float32(epsilon)) * weight + bias


@fault("group_norm: the first head's weights for all", "head_operations")
class _(Ops):
    def group_norm(self, x: Any, weight: Any, bias: Any, head_size: int, epsilon: float) -> Any:
        weight = np.tile(weight[:head_size], x.shape[-1] // head_size)
        return super().group_norm(x, weight, bias, head_size, epsilon)


@fault("group_norm: NaN hidden", "nan_stays_in_its_head")
class _(Ops):
    def group_norm(self, x: Any, weight: Any, bias: Any, head_size: int, epsilon: float) -> Any:
        return np.nan_to_num(super().group_norm(x, weight, bias, head_size, epsilon))


@fault("group_norm: works in place", "head_operations")
class _(Ops):
    def group_norm(self, x: Any, weight: Any, bias: Any, head_size: int, epsilon: float) -> Any:
        x -= self.head_sums(x, head_size) / head_size
        return super().group_norm(x, weight, bias, head_size, epsilon)


@fault("low_rank_matrix: in 8 bits", "low_rank")
class _(Ops):
    def low_rank_matrix(self, array: Any) -> Any:
        scale = abs(array).max(1, keepdims=True) / 127
        return (np.rint(array / scale) * scale).astype("float32")


@fault("low_rank_matrix: transposed where wide", "low_rank")
class _(Ops):
    def low_rank_matrix(self, array: Any) -> Any:
        n_out, n_in = array.shape
        return self.matrix(array.T.reshape(n_out, n_in) if n_in > n_out else array)


@fault("low_rank_matrix: keeps a view of its source", "low_rank")
class _(Ops):
    def low_rank_matrix(self, array: Any) -> Any:
        return np.asarray(array, self.dtype)


@fault("low_rank_matrix: columns beyond 64 lost", "low_rank")
class _(TupleOps):
    def low_rank_matrix(self, array: Any) -> Any:
        array = np.array(array)
        array[:, 64:] = 0
        return self.matrix(array)


@fault("low_rank_matrix: rows beyond a multiple of 8 lost", "low_rank")
class _(TupleOps):
    def low_rank_matrix(self, array: Any) -> Any:
        array = np.array(array)
        array[len(array) // 8 * 8 :] = 0
        return self.matrix(array)
