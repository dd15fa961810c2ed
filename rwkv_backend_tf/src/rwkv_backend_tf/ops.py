"""RWKV's operations on TensorFlow's tensors, compiled by XLA.

One block is compiled, not the whole model. So the time for compilation does not grow with the
number of layers. All layers, and all models of the same sizes, share the compiled block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial, wraps
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from rwkv_backend_tf import array_api
from rwkv_core.backends import scans
from rwkv_core.backends.tensor_ops import TensorOps, WKVState
from rwkv_core.errors import BackendError
from rwkv_core.util.aligned import aligned_empty
from rwkv_core.util.float16 import assign

_CPU, _GPU = "/CPU:0", "/GPU:0"
# Compiled programs by device, function, and types and shapes of the arguments. Models with matrices
# of different types share the programs for vectors.
_compiled: dict[Any, Compiled] = {}


class Matrix(NamedTuple):
    """A matrix of the model, [out, in]."""

    rows: tf.Tensor


class Compiled:
    """`function`, compiled by XLA for the shapes and dtypes of its arguments.

    The arguments and results are tensors and named tuples of tensors. The function is called
    through `tf.raw_ops`, since a call of a tf.function takes 0.03 ms for each of a block's 27
    tensors. `tf.raw_ops` ignores a function's request to be compiled, so the compiled function is
    wrapped in another function.
    """

    def __init__(self, function: Callable[..., Any], arguments: Any, device: str) -> None:
        # Only the structure is kept, not the tensors: this object outlives the model.
        structure = tf.nest.map_structure(lambda _: 0, arguments)

        def run(*flat: tf.Tensor) -> Any:
            return function(*tf.nest.pack_sequence_as(structure, flat))

        inner = tf.function(run, autograph=False, jit_compile=True)
        outer = tf.function(lambda *flat: inner(*flat), autograph=False)
        specs = [tf.TensorSpec(x.shape, x.dtype) for x in tf.nest.flatten(arguments)]
        self._concrete = outer.get_concrete_function(*specs)
        results = self._concrete.structured_outputs
        self._types = [x.dtype for x in tf.nest.flatten(results)]
        self._results = tf.nest.map_structure(lambda _: 0, results)
        self._device = device

    def __call__(self, *arguments: Any) -> Any:
        flat = tf.nest.flatten(arguments)
        with tf.device(self._device):
            found = tf.raw_ops.PartitionedCall(args=flat, Tout=self._types, f=self._concrete)
        return tf.nest.pack_sequence_as(self._results, found)


def compiled(method: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a method of TFOps to run compiled, alone or within a block."""

    @wraps(method)
    def run(self: TFOps, *arguments: Any) -> Any:
        if not tf.executing_eagerly():
            return method(self, *arguments)
        return self.compiled_for(partial(method, self), method, arguments)(*arguments)

    return run


@cache
def tf_ops(dtype: str, runtime_dtype: str | None, use_gpu: bool | None) -> TFOps:
    """Return the operations for these options. Models with equal options share one object.

    Raises BackendError if the device is not available.
    """
    return TFOps(dtype, runtime_dtype, use_gpu)


class TFOps(TensorOps):
    xp = array_api
    fixed_shapes = True
    threaded_library = "tensorflow"

    def __init__(self, dtype: str, runtime_dtype: str | None, use_gpu: bool | None) -> None:
        self.dtype = dtype
        self.runtime_dtype = runtime_dtype or ("float64" if dtype == "float64" else "float32")
        self._device = tf_device(use_gpu)
        self.device = self._device[1:4].lower()
        # The first compilations, in all and of each type, log much; so they are done here, with the
        # log hidden.
        self.matmul(self.matrix(np.zeros((1, 1))), self.vector(np.zeros((1, 1, 1))))

    def vector(self, array: NDArray[Any]) -> tf.Tensor:
        return self._place(array, self.runtime_dtype)

    def matrix(self, array: NDArray[Any]) -> Matrix:
        return Matrix(self._place(array, self.dtype))

    def _place(self, array: NDArray[Any], dtype: str) -> tf.Tensor:
        tensor = _host_tensor(array, dtype)
        if self._device == _CPU:
            return tensor
        with tf.device(self._device):
            return tf.identity(tensor)

    def matrix_bytes(self, matrix: Matrix) -> int:
        return matrix.rows.shape.num_elements() * matrix.rows.dtype.size

    def to_numpy(self, array: tf.Tensor) -> NDArray[Any]:
        return array.numpy()

    @compiled
    def matmul(self, matrix: Matrix, x: tf.Tensor) -> tf.Tensor:
        rows = matrix.rows
        if rows.dtype.size == 2 and self._device == _CPU:
            # XLA's product of 16-bit numbers on a CPU is slower, and rounds intermediate results.
            rows = tf.cast(rows, x.dtype)
        if rows.dtype != tf.float16:
            return tf.cast(_product(rows, tf.cast(x, rows.dtype)), x.dtype)
        # Rows are scaled to at most 1/64 first, as in the default, so that float16 cannot overflow.
        scale = 64.0 * tf.maximum(tf.reduce_max(tf.abs(x), -1, keepdims=True), 1.0)
        return tf.cast(_product(rows, tf.cast(x / scale, rows.dtype)), x.dtype) * scale

    @compiled
    def layer_norm(self, x: tf.Tensor, weight: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        return super().layer_norm(x, weight, bias)

    @compiled
    def sigmoid(self, x: tf.Tensor) -> tf.Tensor:
        return super().sigmoid(x)

    @compiled
    def wkv(
        self, k: tf.Tensor, v: tf.Tensor, decay: tf.Tensor, first: tf.Tensor, state: WKVState
    ) -> tuple[tf.Tensor, WKVState]:
        n_time = k.shape[1]
        if n_time == 1:
            return super().wkv(k, v, decay, first, state)
        time_first = [1, 0, 2]
        keys, values = tf.transpose(k, time_first), tf.transpose(v, time_first)

        def step(t: tf.Tensor, means: tf.TensorArray, state: WKVState) -> tuple[Any, ...]:
            mean, state = scans.wkv4_step(self.xp, state, keys[t], values[t], decay, first)
            return t + 1, means.write(t, mean), state

        means = tf.TensorArray(k.dtype, n_time, element_shape=state[0].shape)
        _, means, state = tf.while_loop(
            lambda t, *_: t < n_time,
            step,
            (0, means, tuple(state)),
            parallel_iterations=1,
            maximum_iterations=n_time,
        )
        return tf.transpose(means.stack(), time_first), state

    def scan(
        self, step: Callable[..., Any], s: tf.Tensor, *inputs: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        n_batch, n_time, width = inputs[0].shape
        if n_time == 1:
            return super().scan(step, s, *inputs)
        n = s.shape[1]
        heads = [n_batch, n_time, width // n, n]
        by_time = [tf.transpose(tf.reshape(x, heads), [1, 0, 2, 3]) for x in inputs]

        def one(t: tf.Tensor, rows: tf.TensorArray, s: tf.Tensor) -> tuple[Any, ...]:
            y, s = step(array_api, s, *(x[t] for x in by_time))
            return t + 1, rows.write(t, y), s

        rows = tf.TensorArray(s.dtype, n_time, element_shape=by_time[0].shape[1:])
        _, rows, s = tf.while_loop(
            lambda t, *_: t < n_time,
            one,
            (0, rows, scans.apart(array_api, s)),
            parallel_iterations=1,
            maximum_iterations=n_time,
        )
        y = tf.reshape(tf.transpose(rows.stack(), [1, 0, 2, 3]), [n_batch, n_time, width])
        return y, scans.side_by_side(array_api, s)

    def layers(
        self,
        block: Callable[..., Any],
        blocks: Sequence[Any],
        x: tf.Tensor,
        state: tf.Tensor,
        kernel: str = "",
    ) -> tuple[tf.Tensor, tf.Tensor]:
        states = tf.unstack(state, axis=1)
        for i, p in enumerate(blocks):
            if i < 2:  # all layers from the second on have the same arguments; the first, fewer
                run = self.compiled_for(partial(block, self), block, (p, x, states[i]))
            x, states[i] = run(p, x, states[i])
        return x, tf.stack(states, axis=1)

    def compiled_for(self, function: Callable[..., Any], name: Any, arguments: Any) -> Compiled:
        """Return `function`, known by `name`, compiled for arguments of these types and shapes."""
        kinds = tuple((x.dtype, tuple(x.shape)) for x in tf.nest.flatten(arguments))
        key = (self._device, name, kinds)
        found = _compiled.get(key)
        if found is None:
            found = _compiled[key] = Compiled(function, arguments, self._device)
        return found


def _product(rows: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    n_batch, n_time, n_in = x.shape
    flat = tf.matmul(tf.reshape(x, [n_batch * n_time, n_in]), rows, transpose_b=True)
    return tf.reshape(flat, [n_batch, n_time, rows.shape[0]])


def _host_tensor(array: NDArray[Any], dtype: str) -> tf.Tensor:
    """Return a tensor that owns a copy of `array`.

    This uses DLPack. tf.constant would copy twice, and freeing one copy after each matrix would
    fragment the heap, by up to the size of the model.
    """
    copy = aligned_empty(array.shape, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    assign(copy, array)
    if dtype == "bfloat16":  # NumPy's DLPack lacks it
        return tf.bitcast(_from_dlpack(copy.view(np.int16)), tf.bfloat16)
    return _from_dlpack(copy)


def _from_dlpack(array: NDArray[Any]) -> tf.Tensor:
    with tf.device(_CPU):
        return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def tf_device(use_gpu: bool | None) -> str:
    """Return TensorFlow's name of the device to use. Raises BackendError if it is not available."""
    if use_gpu is False:
        # Otherwise eager operations on CPU tensors would put their results on the GPU.
        try:
            tf.config.set_visible_devices([], "GPU")
        except RuntimeError:
            raise BackendError(
                "option use_gpu: TensorFlow already uses the GPU in this process, expected no GPU "
                "for use_gpu=false; load the model in another process"
            ) from None
        return _CPU
    if tf.config.list_logical_devices("GPU"):
        return _GPU
    if use_gpu:
        raise BackendError(
            "option use_gpu: TensorFlow sees no GPU here; take use_gpu=false, or install "
            'TensorFlow for CUDA with: pip install "tensorflow[and-cuda]"'
        )
    return _CPU
