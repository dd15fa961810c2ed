"""RWKV's operations on JAX arrays, on one device or split over several.

One block is compiled, not the whole model, because XLA would unroll the model's layers. With 12
layers, compiling the model took two to four times as long as compiling the block, for each size of
chunk. All layers, and all models of the same sizes, share the compiled block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.typing import NDArray

from rwkv_backend_jax.devices import Placement, chosen_devices
from rwkv_core.backends import scans
from rwkv_core.backends.tensor_ops import TensorOps, WKVState
from rwkv_core.util.aligned import aligned_empty
from rwkv_core.util.float16 import assign


@cache
def jax_ops(dtype: str, runtime_dtype: str | None, device: str | None, mesh: int | None) -> JaxOps:
    """Return the operations for these options. Models with equal options share one object.

    So these models also share its compiled functions.

    Raises BackendError if a device is not available, and OptionError for wrong options.
    """
    placement = Placement(chosen_devices(device, mesh), split=mesh is not None)
    return JaxOps(dtype, runtime_dtype, placement)


class JaxOps(TensorOps):
    xp = jnp
    fixed_shapes = True
    threaded_library = "jax"

    def __init__(self, dtype: str, runtime_dtype: str | None, placement: Placement) -> None:
        self.dtype = dtype
        self.runtime_dtype = runtime_dtype or ("float64" if dtype == "float64" else "float32")
        if "float64" in (self.dtype, self.runtime_dtype):
            # For the whole process, and only if float64 was requested. With JAX's context manager
            # instead, other code could not even add 1 to the float64 arrays.
            jax.config.update("jax_enable_x64", True)
        self.device = placement.name
        self._placement = placement
        self._on_cpu = placement.name.startswith("cpu")

    def vector(self, array: NDArray[Any]) -> Array:
        return self._place(array, self.runtime_dtype, self._placement.whole)

    def matrix(self, array: NDArray[Any]) -> Array:
        return self._place(array, self.dtype, self._placement.of_matrix(array.shape))

    def embedding(self, array: NDArray[Any]) -> Array:
        # In the file's type; `embed` widens the rows that it returns.
        return self._place(array, array.dtype, self._placement.of_table(array.shape[1]))

    def _place(self, array: NDArray[Any], dtype: Any, sharding: jax.sharding.Sharding) -> Array:
        # Each device gets only its own part. Waiting keeps copies from piling up on the host.
        return jax.device_put(_copied(array, dtype), sharding).block_until_ready()

    def to_numpy(self, array: Array) -> NDArray[Any]:
        return np.asarray(array)

    def embed(self, table: Array, tokens: NDArray[np.int64]) -> Array:
        return self._rows(table, tokens.astype(np.int32))

    @partial(jax.jit, static_argnums=0)
    def _rows(self, table: Array, tokens: Array) -> Array:
        return self.whole(table[tokens].astype(self.runtime_dtype))

    @partial(jax.jit, static_argnums=0)
    def matmul(self, matrix: Array, x: Array) -> Array:
        if self._on_cpu and matrix.dtype.itemsize == 2:
            return _product_on_cpu(matrix, x).astype(x.dtype)
        if matrix.dtype == jnp.float16:
            return super().matmul(matrix, x)
        return _product(matrix, x.astype(matrix.dtype)).astype(x.dtype)

    @partial(jax.jit, static_argnums=0)
    def layer_norm(self, x: Array, weight: Array, bias: Array) -> Array:
        return super().layer_norm(x, weight, bias)

    @partial(jax.jit, static_argnums=0)
    def wkv(
        self, k: Array, v: Array, decay: Array, first: Array, state: WKVState
    ) -> tuple[Array, WKVState]:
        # A sequential scan. associative_scan was 2.5 times slower on a CPU at 512 x 1024, took ten
        # times as long to compile, and its sums of decays lose digits of the exponents.
        def step(state: WKVState, now: tuple[Array, Array]) -> tuple[WKVState, Array]:
            mean, state = scans.wkv4_step(self.xp, state, *now, decay, first)
            return state, mean

        state, means = lax.scan(step, state, (k.swapaxes(0, 1), v.swapaxes(0, 1)))
        return means.swapaxes(0, 1), state

    def scan(self, step: Callable[..., Any], s: Array, *inputs: Array) -> tuple[Array, Array]:
        n_batch, n_time, width = inputs[0].shape
        heads = (n_batch, n_time, width // s.shape[1], s.shape[1])

        def one(s: Array, now: tuple[Array, ...]) -> tuple[Array, Array]:
            y, s = step(jnp, s, *now)
            return s, y

        by_time = tuple(x.reshape(heads).swapaxes(0, 1) for x in inputs)
        s, rows = lax.scan(one, scans.apart(jnp, s), by_time)
        return rows.swapaxes(0, 1).reshape(n_batch, n_time, width), scans.side_by_side(jnp, s)

    def compile(self, function: Callable[..., Any], kernel: str = "") -> Callable[..., Any]:
        # The function's blocks are compiled, in `layers`. The equations mix ranks and types, which
        # the caller's settings of JAX may forbid.
        @wraps(function)
        def run(*arguments: Any) -> Any:
            with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
                return function(*arguments)

        return run

    def layers(
        self,
        block: Callable[..., Any],
        blocks: Sequence[Any],
        x: Array,
        state: Array,
        kernel: str = "",
    ) -> tuple[Array, Array]:
        rows = []
        for p, before in zip(blocks, self._parted(state), strict=True):
            x, after = _run_block(block, self, p, x, before)
            rows.append(after)
        return x, self._joined(rows)

    @partial(jax.jit, static_argnums=0)
    def _parted(self, state: Array) -> list[Array]:
        return [state[:, i] for i in range(state.shape[1])]

    @partial(jax.jit, static_argnums=0)
    def _joined(self, rows: list[Array]) -> Array:
        return jnp.stack(rows, axis=1)

    def whole(self, array: Array) -> Array:
        """Return `array` complete on every device, as all activations are between blocks."""
        if self._placement.mesh is None:
            return array
        return lax.with_sharding_constraint(array, self._placement.whole)


def _copied(array: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """Return an aligned copy in `dtype`, which XLA uses on a CPU without another copy."""
    copy = aligned_empty(array.shape, jnp.dtype(dtype))
    assign(copy, array)
    return copy


@partial(jax.jit, static_argnums=(0, 1))
def _run_block(
    block: Callable[..., Any], ops: JaxOps, p: Any, x: Array, state: Array
) -> tuple[Array, Array]:
    x, state = block(ops, p, x, state)
    return jax.tree.map(ops.whole, x), ops.whole(state)


def _product(matrix: Array, x: Array) -> Array:
    """Return `x` [B, T, in] times the transpose of `matrix` [out, in]: [B, T, out].

    The result is float32 or float64. The matrix is the first operand, which is fastest with XLA on
    a CPU.
    """
    y = lax.dot_general(
        matrix,
        x,
        (((1,), (2,)), ((), ())),
        # For accelerators, which use fewer bits for float32 by default.
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.promote_types(matrix.dtype, jnp.float32),
    )
    return jnp.moveaxis(y, 0, -1)


def _product_on_cpu(matrix: Array, x: Array) -> Array:
    """Return `_product` of a 16-bit matrix, in the form that is fastest with XLA on a CPU."""
    if matrix.dtype == jnp.bfloat16 and x.shape[0] * x.shape[1] > 1:
        return _product(matrix, x.astype(matrix.dtype))
    wide, x = matrix.astype(jnp.float32), x.astype(jnp.float32)
    if matrix.dtype == jnp.float16:
        return _product(wide, x)
    # XLA makes one loop that reads 16 bits, widens and adds; for float16 it would not vectorize.
    return jnp.sum(wide * x[:, :, None, :], axis=-1)
