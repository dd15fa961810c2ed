"""The contract between RWKV's equations and a tensor library.

Libraries differ in how they multiply, place and compile arrays, but the equations need the same
functions from all. So a backend gives its library's namespace of the Python array API standard
(`xp`), and says how a vector and a matrix get onto its device and how an array comes back. All
other methods have a default that uses the standard's functions. A backend overrides the methods
that it can compute faster, and the conformance suite compares each override with the default.

A matrix is opaque: the core gets a matrix from `matrix`, and only passes it to `matmul`. So a
backend may quantize, stream or split matrices.

Several threads may use one model at the same time, and the caller keeps using the arrays that it
passed or received. So an operation must not change its arguments, and must not reuse memory that it
returned. It may reuse a buffer only within one thread. NaN stays NaN.
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

# Increased whenever a backend written for the present number would fail or compute wrong results.
CONTRACT = 2

Array: TypeAlias = Any
Matrix: TypeAlias = Any
WKVState: TypeAlias = tuple[Array, Array, Array]

EPSILON = 1e-5  # of every layer norm

MAX_TOKENS = 512  # in a chunk of a prompt
_FIXED_SIZES = (MAX_TOKENS, 256, 64, 16, 4, 1)


class TensorOps(ABC):
    """The operations that a backend gives; B, T, D are batch, time and width.

    Attributes:
        xp: a namespace with the array API standard's functions.
        device: the library's name of the device, shown to users.
        dtype: dtype of the stored matrices and of products, "float32", "bfloat16", ...
        runtime_dtype: dtype of vectors, activations, WKV sums and the state: "float32" or
            "float64".
        fixed_shapes: True if each new shape costs a compilation. A prompt is then read in chunks
            of a few sizes only.
        ragged: True if one pass over a chunk of a prompt and single tokens of other sequences is
            faster than two passes (see `backends.ragged`).
        threaded_library: name of a library that hangs in a forked process, because the library's
            threads are missing there; "" if there is none. If set, using a model in a forked
            process is an error.
    """

    xp: Any
    device: str = "cpu"
    dtype: str = "float32"
    runtime_dtype: str = "float32"
    fixed_shapes: bool = False
    ragged: bool = False
    threaded_library: str = ""

    def prepare(self, weights: Sequence[Weight]) -> None:  # noqa: B027
        """Prepare for loading a model with these tensors. Called once. Does nothing by default.

        The tensors are in the order in which they are loaded, and in which a token uses them. If
        the model does not fit with the options, raise OptionError here, before anything is read.
        """

    @abstractmethod
    def vector(self, array: NDArray[Any]) -> Array:
        """Return `array`, of any shape and float type, on the device in `runtime_dtype`.

        The result shares no memory with `array`, which may be a view of a file.
        """

    @abstractmethod
    def matrix(self, array: NDArray[Any]) -> Matrix:
        """Return `array` [out, in], of any float type, in the form that `matmul` takes.

        The result shares no memory with `array`, which may be a view of a file.
        """

    def low_rank_matrix(self, array: NDArray[Any]) -> Matrix:
        """Return a low-rank factor `array` [out, in] in the form that `matmul` takes.

        Either out or in is the rank. Default: `matrix`. A backend that quantizes matrices keeps
        low-rank factors in at least 16 bits: they are small, and small errors in them change the
        state. The result shares no memory with `array`.
        """
        return self.matrix(array)

    def quantized_matrix(self, matrix: QuantizedMatrix) -> Matrix:
        """Return a matrix of a prequantized file in the form that `matmul` takes.

        Default: dequantize it, then `matrix`. A backend with a kernel for quantized matrices
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
        """Return an array of this backend as a NumPy array of the same shape and dtype."""

    def matmul(self, matrix: Matrix, x: Array) -> Array:
        """Return `x` [B, T, in] times the transpose of `matrix` [out, in]: [B, T, out].

        The result has `x`'s dtype.
        """
        xp = self.xp
        if matrix.dtype == x.dtype:
            return xp.matmul(x, matrix.mT)
        # Rows are scaled to at most 1/64 first: float16 ends at 65504, and squared ReLUs and large
        # products exceed that. With a smaller limit, small values would lose digits.
        scale = 64.0 * xp.clip(xp.max(xp.abs(x), axis=-1, keepdims=True), min=1.0)
        y = xp.matmul(xp.astype(x / scale, matrix.dtype), matrix.mT)
        return xp.astype(y, x.dtype) * scale

    def embedding(self, array: NDArray[Any]) -> Any:
        """Return the embedding table [V, D] in the form that `embed` takes.

        By default it stays on the host.
        """
        return array.copy()

    def embed(self, table: Any, tokens: NDArray[np.int64]) -> Array:
        """Return the rows for `tokens` [B, T]: [B, T, D] on the device in `runtime_dtype`."""
        return self.vector(table[tokens])

    def layer_norm(self, x: Array, weight: Array, bias: Array) -> Array:
        """Return the layer norm of `x` [B, T, D] over D, with epsilon 1e-5 (Ba et al., 2016)."""
        xp = self.xp
        x = x - xp.mean(x, axis=-1, keepdims=True)
        variance = xp.mean(x * x, axis=-1, keepdims=True)
        return x / xp.sqrt(variance + EPSILON) * weight + bias

    def last(self, x: Array, state: Array) -> Array:
        """Return the last token of each sequence in `x` [B, T, D]: [B, 1, D].

        `state` [B, ...] is a state of the same sequences; the default does not use it.
        """
        return x[:, -1:, :]

    def token_shift(self, x: Array, last: Array) -> Array:
        """Return each token's predecessor [B, T, D]: `last` [B, D], then `x` without its last."""
        return self.xp.concat([last[:, None, :], x[:, :-1, :]], axis=1)

    def mix(self, x: Array, previous: Array, mix: Array) -> Array:
        """Return `mix * x + (1 - mix) * previous`: each token mixed with its predecessor [B, T, D].

        `mix` is [D], or in RWKV-6 [B, T, D].
        """
        return previous + mix * (x - previous)

    def sigmoid(self, x: Array) -> Array:
        """Return the logistic function of `x`, elementwise."""
        # tanh cannot overflow.
        return 0.5 * self.xp.tanh(0.5 * x) + 0.5

    def relu_squared(self, x: Array) -> Array:
        """Return max(x, 0) squared, elementwise."""
        x = self.xp.clip(x, min=0.0)
        return x * x

    def wkv(
        self, k: Array, v: Array, decay: Array, first: Array, state: WKVState
    ) -> tuple[Array, WKVState]:
        """Compute RWKV-4's scan, a weighted mean over time like attention (the paper's RNN cell).

        Arguments:
            k, v: keys and values [B, T, D].
            decay: -exp(time_decay) [D], negative; added to an exponent for each token.
            first: time_first [D], the bonus of the current token.
            state: (aa, bb, pp), each [B, D]: numerator and denominator in units of exp(pp), where
                pp is the running maximum of the exponents, which prevents overflow.

        Returns the means [B, T, D] and the state after the last token.
        """
        return scans.wkv4(self.xp, k, v, decay, first, state)

    def head_sums(self, x: Array, head_size: int) -> Array:
        """Return `x` [B, T, D] with each number replaced by the sum over its head.

        A head is `head_size` adjacent channels of D.
        """
        xp = self.xp
        heads = self._heads(x, head_size)
        sums = xp.sum(heads, axis=-1, keepdims=True)
        return xp.reshape(xp.broadcast_to(sums, heads.shape), x.shape)

    def normalize_heads(self, x: Array, head_size: int) -> Array:
        """Return `x` [B, T, D], each head divided by its Euclidean norm, but at least by 1e-12."""
        norms = self.xp.sqrt(self.head_sums(x * x, head_size))
        return x / self.xp.clip(norms, min=1e-12)

    def group_norm(
        self, x: Array, weight: Array, bias: Array, head_size: int, epsilon: float
    ) -> Array:
        """Return the layer norm of each head of `x` [B, T, D], computed separately.

        This is group normalization (Wu and He, 2018), with the population variance.
        """
        x = x - self.head_sums(x, head_size) / head_size
        variance = self.head_sums(x * x, head_size) / head_size
        return x / self.xp.sqrt(variance + epsilon) * weight + bias

    def wkv6(
        self, r: Array, w: Array, k: Array, v: Array, bonus: Array, s: Array
    ) -> tuple[Array, Array]:
        """Compute RWKV-5's and RWKV-6's scan (arXiv 2404.05892, section 4). A head has N channels.

            y = (S + v (bonus k)^T) r,    S <- S diag(w) + v k^T

        Arguments:
            r, k, v: receptance, keys and values [B, T, D].
            w: the decay of each key channel, from 0 to 1: [B, T, D]; [D] in RWKV-5.
            bonus: the bonus of the current token, [D].
            s: S of all heads side by side, [B, N, D]: one row for each value channel.

        Returns y [B, T, D] and S after the last token.
        """
        extra = self.head_sums(r * k * bonus, s.shape[1]) * v
        w = self.xp.broadcast_to(w, k.shape)
        y, s = self.scan(scans.wkv6_step, s, r, w, k, v)
        return y + extra, s

    def wkv7(
        self, r: Array, w: Array, k: Array, v: Array, kk: Array, b: Array, s: Array
    ) -> tuple[Array, Array]:
        """Compute RWKV-7's scan (arXiv 2503.14456, section 4). A head has N channels.

            S <- S diag(w) - (S kk) b^T + v k^T,    y = S r

        Arguments:
            r, k, v: receptance, keys and values [B, T, D].
            w: the decay of each key channel, from exp(-e^-0.5) = 0.545 to 1, [B, T, D].
            kk: the keys whose values are removed from S, of length 1 in each head, [B, T, D].
            b: `kk` times the share that is removed, [B, T, D].
            s: S of all heads side by side, [B, N, D]: one row for each value channel.

        Returns y [B, T, D] and S after the last token.
        """
        return self.scan(scans.wkv7_step, s, r, w, k, v, kk, b)

    def scan(self, step: Callable[..., Any], s: Array, *inputs: Array) -> tuple[Array, Array]:
        """Run `step`, a function of `backends.scans`, for each token of `inputs`, each [B, T, D].

        Returns y [B, T, D] and `s` after the last token. The default is a plain loop. A backend
        that compiles overrides this method with its library's loop. A backend with kernels
        overrides `wkv6` and `wkv7`.
        """
        heads = [self._heads(x, s.shape[1]) for x in inputs]
        y, s = scans.scan(self.xp, step, scans.apart(self.xp, s), *heads)
        return self.xp.reshape(y, inputs[0].shape), scans.side_by_side(self.xp, s)

    def _heads(self, x: Array, head_size: int) -> Array:
        """Return `x` [B, T, D] as [B, T, H, N]."""
        return self.xp.reshape(x, (*x.shape[:2], x.shape[2] // head_size, head_size))

    def layers(
        self,
        block: Callable[..., Any],
        blocks: Sequence[Any],
        x: Array,
        state: Array,
        kernel: str = "",
    ) -> tuple[Array, Array]:
        """Run all layers: return `x` and `state` [B, L, R, D] after them.

        Arguments:
            x: the array [B, T, D] that each block passes to the next block, or a tuple of such
                arrays. The first block may get a shorter tuple.
            block: a pure function that takes (ops, the layer's parameters, x, the layer's state
                [B, R, D]) and returns x and the state.
            blocks: the parameters of each layer.
            kernel: name of the equations that `block` computes, such as "rwkv4"; "" for others.

        Override this method to compile one layer at a time, if compiling all layers takes too long,
        or to run a kernel for the equations that `kernel` names. `block` is then the plain version,
        with which the conformance suite compares the kernel.
        """
        rows = []
        for i, p in enumerate(blocks):
            x, after = block(self, p, x, state[:, i, :, :])
            rows.append(after)
        return x, self.xp.stack(rows, axis=1)

    def compile(self, function: Callable[..., Any], kernel: str = "") -> Callable[..., Any]:
        """Return a faster version of `function` where the library can (jax.jit, a CUDA graph, ...).

        `function` is pure. Arguments and results are arrays, matrices and named tuples of these.
        `kernel` is the architecture, such as "rwkv4", if the function takes (parameters, x, state)
        and returns logits and state; "" for any other function.
        """
        return function

    def broadcast(self, number: int) -> int:
        """Return the first process's `number`, if several processes compute one model together.

        Default: `number`. All seeds are broadcast, so all processes choose the same tokens.
        """
        return number

    def chunks(self, n_tokens: int) -> list[int]:
        """Return the lengths of the chunks in which a prompt of `n_tokens` tokens is read."""
        if not self.fixed_shapes:
            whole, rest = divmod(n_tokens, MAX_TOKENS)
            return [MAX_TOKENS] * whole + [rest] * (rest > 0)
        chunks: list[int] = []
        for size in _FIXED_SIZES:
            count, n_tokens = divmod(n_tokens, size)
            chunks += [size] * count
        return chunks
