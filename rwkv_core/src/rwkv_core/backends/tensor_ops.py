"""The contract between RWKV's equations and a tensor library.

Libraries differ in how they multiply, place and compile, not in what the equations need. So a
backend gives the namespace of the Python array API standard that its library has (`xp`), says how
a vector and a matrix get onto its device and how an array comes back, and inherits all else from
here, made of the standard's functions. What it can do faster it overrides, one method at a time,
and the conformance suite holds each override against the default it replaces.

A matrix is opaque: the core gets one from `matrix`, and only ever gives it back to `matmul`. That
is what lets a backend quantize, stream or split it.

Several threads may use one model at once, and the caller uses arrays again that it gave or got. So
an operation changes none of its arguments, and no memory that it works in or returns is used again
for another call, unless each thread has its own. NaN stays NaN.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from rwkv_core.backends import scans

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rwkv_core.quantization import QuantizedMatrix
    from rwkv_core.weights import Weight

# Raised whenever a backend written for the present number would no longer work or be right.
CONTRACT = 2

Array: TypeAlias = Any
Matrix: TypeAlias = Any
WKVState: TypeAlias = tuple[Array, Array, Array]

EPSILON = 1e-5  # of every layer norm

MAX_TOKENS = 512  # in a chunk of a prompt
_FIXED_SIZES = (MAX_TOKENS, 256, 64, 16, 4, 1)


class TensorOps(ABC):
    """What the recurrence asks of a backend; B, T, D are batch, time and width.

    Attributes:
        xp: a namespace with the array API standard's functions.
        device: the device in the library's own words, for people to read.
        dtype: what matrices are stored and multiplied in, "float32", "bfloat16", ...
        runtime_dtype: what vectors and activations are in, "float32" or "float64". The WKV sums
            and the state have this type too.
        fixed_shapes: True where each new shape costs a compilation, so that a prompt is read in
            chunks of a few sizes only.
        threaded_library: the library that hangs in a forked process, as it lacks the threads that
            were started before; "" where none does. A model used there is then an error.
    """

    xp: Any
    device: str = "cpu"
    dtype: str = "float32"
    runtime_dtype: str = "float32"
    fixed_shapes: bool = False
    threaded_library: str = ""

    def prepare(self, weights: Sequence[Weight]) -> None:  # noqa: B027
        """Called once before a model is loaded, with its tensors. Does nothing by default.

        They are in the order in which a token uses them, which is that of loading. Raise
        OptionError here, before anything is read, for a model that the options leave no room for.
        """

    @abstractmethod
    def vector(self, array: NDArray[Any]) -> Array:
        """`array`, of any shape and float type, on the device in `runtime_dtype`.

        The result shares no memory with `array`, which may be a view of a file.
        """

    @abstractmethod
    def matrix(self, array: NDArray[Any]) -> Matrix:
        """`array` [out, in], of any float type, as this backend multiplies with it.

        The result shares no memory with `array`, which may be a view of a file.
        """

    def low_rank_matrix(self, array: NDArray[Any]) -> Matrix:
        """A low-rank factor `array` [out, in], out or in being the rank, as `matmul` takes it.

        Default: `matrix`. A backend that quantizes matrices keeps these in 16 bits at least: they
        are few, and small errors in them change what a state keeps. The result shares no memory
        with `array`.
        """
        return self.matrix(array)

    def quantized_matrix(self, matrix: QuantizedMatrix) -> Matrix:
        """A matrix of a prequantized file as this backend multiplies with it.

        By default it is restored and loaded like any other. A backend with a kernel for it
        overrides this, and names their dtypes in `Backend.quantized_dtypes`. The result
        shares no memory with `matrix`, which may be a view of a file.
        """
        return self.matrix(matrix.dequantize())

    def matrix_bytes(self, matrix: Matrix) -> int | None:
        """Return the bytes of `matrix` that a product with one row reads; None if unknown.

        Default: `matrix.nbytes`; for a tuple, the sum over its arrays.
        """
        if not isinstance(matrix, tuple):
            return getattr(matrix, "nbytes", None)
        parts = [self.matrix_bytes(part) for part in matrix if not isinstance(part, int | float)]
        return None if None in parts else sum(filter(None, parts))

    @abstractmethod
    def to_numpy(self, array: Array) -> NDArray[Any]:
        """An array of this backend as NumPy, with its shape and dtype."""

    def matmul(self, matrix: Matrix, x: Array) -> Array:
        """`x` [B, T, in] times `matrix` [out, in], transposed: [B, T, out] in `x`'s dtype."""
        xp = self.xp
        if matrix.dtype == x.dtype:
            return xp.matmul(x, matrix.mT)
        # Rows are brought to at most 1/64 first: float16 ends at 65504, and squared ReLUs and large
        # products go past it. With less than that, small values would lose digits.
        scale = 64.0 * xp.clip(xp.max(xp.abs(x), axis=-1, keepdims=True), min=1.0)
        y = xp.matmul(xp.astype(x / scale, matrix.dtype), matrix.mT)
        return xp.astype(y, x.dtype) * scale

    def embedding(self, array: NDArray[Any]) -> Any:
        """The embedding table [vocab, D] as `embed` wants it; by default it stays on the host."""
        return array.copy()

    def embed(self, table: Any, tokens: NDArray[np.int64]) -> Array:
        """Rows of the table for `tokens` [B, T]: [B, T, D] on the device in `runtime_dtype`."""
        return self.vector(table[tokens])

    def layer_norm(self, x: Array, weight: Array, bias: Array) -> Array:
        """Layer norm over the last axis with epsilon 1e-5 (Ba et al., 2016)."""
        xp = self.xp
        x = x - xp.mean(x, axis=-1, keepdims=True)
        variance = xp.mean(x * x, axis=-1, keepdims=True)
        return x / xp.sqrt(variance + EPSILON) * weight + bias

    def token_shift(self, x: Array, last: Array) -> Array:
        """Each token's predecessor: `x` [B, T, D] moved one step later, `last` [B, D] first."""
        return self.xp.concat([last[:, None, :], x[:, :-1, :]], axis=1)

    def mix(self, x: Array, previous: Array, mix: Array) -> Array:
        """`mix` of the token and 1 - `mix` of its predecessor, both [B, T, D].

        `mix` is [D], or in RWKV-6 [B, T, D].
        """
        return previous + mix * (x - previous)

    def sigmoid(self, x: Array) -> Array:
        """The logistic function, elementwise."""
        # By way of tanh, which cannot overflow.
        return 0.5 * self.xp.tanh(0.5 * x) + 0.5

    def relu_squared(self, x: Array) -> Array:
        """max(x, 0) squared, elementwise."""
        x = self.xp.clip(x, min=0.0)
        return x * x

    def wkv(
        self, k: Array, v: Array, decay: Array, first: Array, state: WKVState
    ) -> tuple[Array, WKVState]:
        """RWKV-4's attention-like weighted mean over time, as a scan, the RWKV paper's RNN cell.

        Arguments:
            k, v: keys and values [B, T, D].
            decay: -exp(time_decay) [D], added to an exponent once a step; negative.
            first: time_first [D], the bonus of the present token.
            state: (aa, bb, pp), each [B, D]: numerator and denominator in units of exp(pp), where
                pp is the running maximum of the exponents, so that nothing overflows.

        Returns the means [B, T, D] and the state after the last token.
        """
        xp = self.xp
        aa, bb, pp = state
        means = []
        for t in range(k.shape[1]):
            kt, vt = k[:, t, :], v[:, t, :]
            top = xp.maximum(pp, first + kt)
            before, now = xp.exp(pp - top), xp.exp(first + kt - top)
            means.append((before * aa + now * vt) / (before * bb + now))
            top = xp.maximum(pp + decay, kt)
            before, now = xp.exp(pp + decay - top), xp.exp(kt - top)
            aa, bb, pp = before * aa + now * vt, before * bb + now, top
        return xp.stack(means, axis=1), (aa, bb, pp)

    def head_sums(self, x: Array, head_size: int) -> Array:
        """Each number of `x` [B, T, D] replaced by its head's sum; heads lie side by side."""
        xp = self.xp
        heads = self._heads(x, head_size)
        sums = xp.sum(heads, axis=-1, keepdims=True)
        return xp.reshape(xp.broadcast_to(sums, heads.shape), x.shape)

    def normalize_heads(self, x: Array, head_size: int) -> Array:
        """Each head of `x` [B, T, D] divided by its Euclidean norm, or by 1e-12 if that is less."""
        norms = self.xp.sqrt(self.head_sums(x * x, head_size))
        return x / self.xp.clip(norms, min=1e-12)

    def group_norm(
        self, x: Array, weight: Array, bias: Array, head_size: int, epsilon: float
    ) -> Array:
        """Layer norm of each head of `x` [B, T, D] by itself (Wu and He, 2018)."""
        x = x - self.head_sums(x, head_size) / head_size
        variance = self.head_sums(x * x, head_size) / head_size
        return x / self.xp.sqrt(variance + epsilon) * weight + bias

    def wkv6(
        self, r: Array, w: Array, k: Array, v: Array, bonus: Array, s: Array
    ) -> tuple[Array, Array]:
        """RWKV-5's and RWKV-6's scan (arXiv 2404.05892, section 4). N is a head's channels.

            y = (S + v (bonus k)^T) r,    S <- S diag(w) + v k^T

        Arguments:
            r, k, v: receptance, keys and values [B, T, D].
            w: the decay of each key channel, from 0 to 1: [B, T, D], in RWKV-5 [D].
            bonus: of the present token, [D].
            s: S of all heads side by side, [B, N, D]: a row for each value channel.

        Returns y [B, T, D] and S after the last token.
        """
        extra = self.head_sums(r * k * bonus, s.shape[1]) * v
        w = self.xp.broadcast_to(w, k.shape)
        y, s = self.scan(scans.wkv6_step, s, r, w, k, v)
        return y + extra, s

    def wkv7(
        self, r: Array, w: Array, k: Array, v: Array, kk: Array, b: Array, s: Array
    ) -> tuple[Array, Array]:
        """RWKV-7's scan (arXiv 2503.14456, section 4). N is a head's channels.

            S <- S diag(w) - (S kk) b^T + v k^T,    y = S r

        Arguments:
            r, k, v: receptance, keys and values [B, T, D].
            w: the decay of each key channel, from 0 to 1, [B, T, D].
            kk: the keys of what is taken out of S, each head of length 1 [B, T, D].
            b: `kk` times how much of it is taken out, [B, T, D].
            s: S of all heads side by side, [B, N, D]: a row for each value channel.

        Returns y [B, T, D] and S after the last token.
        """
        return self.scan(scans.wkv7_step, s, r, w, k, v, kk, b)

    def scan(self, step: Callable[..., Any], s: Array, *inputs: Array) -> tuple[Array, Array]:
        """A step of `scans` over all tokens of `inputs`, each [B, T, D]: y [B, T, D] and `s`.

        The plain loop. A library that compiles overrides this with a loop of its own, and a backend
        with kernels overrides `wkv6` and `wkv7`.
        """
        xp, head_size, shape = self.xp, s.shape[1], inputs[0].shape
        heads = [self._heads(x, head_size) for x in inputs]
        s, rows = scans.apart(xp, s), []
        for t in range(shape[1]):
            y, s = step(xp, s, *(x[:, t, :, :] for x in heads))
            rows.append(y)
        return xp.reshape(xp.stack(rows, axis=1), shape), scans.side_by_side(xp, s)

    def _heads(self, x: Array, head_size: int) -> Array:
        """`x` [B, T, D] as [B, T, H, N]."""
        return self.xp.reshape(x, (*x.shape[:2], x.shape[2] // head_size, head_size))

    def layers(
        self,
        block: Callable[..., Any],
        blocks: Sequence[Any],
        x: Array,
        state: Array,
        kernel: str = "",
    ) -> tuple[Array, Array]:
        """`x` and `state` [B, L, R, D] through all layers; the state in the same shape.

        Arguments:
            x: [B, T, D], or a tuple of such, which may be shorter before the first layer: what a
                block hands on to the next.
            block: pure: (ops, a layer's parameters, x, its state [B, R, D]) to x and the state.
            blocks: the parameters of each layer.
            kernel: the equations that `block` computes, such as "rwkv4"; "" for any others.

        Override this to compile one layer at a time, where compiling all of them takes too long,
        or to run a kernel that computes what `kernel` names, beside which `block` is the plain
        version: the conformance suite compares the two.
        """
        rows = []
        for i, p in enumerate(blocks):
            x, after = block(self, p, x, state[:, i, :, :])
            rows.append(after)
        return x, self.xp.stack(rows, axis=1)

    def compile(self, function: Callable[..., Any], kernel: str = "") -> Callable[..., Any]:
        """`function`, made faster where the library can (jax.jit, a CUDA graph, ...).

        It is pure; its arguments and results are arrays, matrices and named tuples of them.
        `kernel` is the architecture, such as "rwkv4", if the function is (parameters, x, state) to
        its logits and state; "" for any other function.
        """
        return function

    def broadcast(self, number: int) -> int:
        """Return the first process's `number`, where several processes compute one model together.

        Returns `number` by default. Seeds go through here, so that all processes choose the same
        tokens.
        """
        return number

    def chunks(self, n_tokens: int) -> list[int]:
        """Lengths, `n_tokens` in sum, of the pieces in which a prompt is read."""
        if not self.fixed_shapes:
            whole, rest = divmod(n_tokens, MAX_TOKENS)
            return [MAX_TOKENS] * whole + [rest] * (rest > 0)
        chunks: list[int] = []
        for size in _FIXED_SIZES:
            count, n_tokens = divmod(n_tokens, size)
            chunks += [size] * count
        return chunks
