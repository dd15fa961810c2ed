"""The functions of the array API standard that RWKV's equations use, for TensorFlow.

TensorFlow has no such namespace. `tf.experimental.numpy` has NumPy's older names (`concatenate`)
and its own promotion rules. `keras.ops` runs on the library that Keras is set to, which may be
another library.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

float16, bfloat16, float32, float64 = tf.float16, tf.bfloat16, tf.float32, tf.float64

abs = tf.abs
broadcast_to = tf.broadcast_to
exp = tf.exp
matmul = tf.matmul
maximum = tf.maximum
permute_dims = tf.transpose
reshape = tf.reshape
sqrt = tf.sqrt
stack = tf.stack
tanh = tf.tanh


def asarray(x: tf.Tensor, *, copy: bool | None = None) -> tf.Tensor:
    return tf.identity(x) if copy else x


def astype(x: tf.Tensor, dtype: tf.DType, *, copy: bool = True) -> tf.Tensor:
    # Tensors are immutable, so it does not matter whether two share memory.
    return tf.cast(x, dtype)


def clip(
    x: tf.Tensor, min: float | tf.Tensor | None = None, max: float | tf.Tensor | None = None
) -> tf.Tensor:
    if min is not None:
        x = tf.maximum(x, min)
    return x if max is None else tf.minimum(x, max)


def concat(arrays: Sequence[tf.Tensor], *, axis: int = 0) -> tf.Tensor:
    return tf.concat(arrays, axis)


def expand_dims(x: tf.Tensor, *, axis: int = 0) -> tf.Tensor:
    return tf.expand_dims(x, axis)


def max(x: tf.Tensor, *, axis: int | None = None, keepdims: bool = False) -> tf.Tensor:
    return tf.reduce_max(x, axis, keepdims)


def mean(x: tf.Tensor, *, axis: int | None = None, keepdims: bool = False) -> tf.Tensor:
    return tf.reduce_mean(x, axis, keepdims)


def sum(x: tf.Tensor, *, axis: int | None = None, keepdims: bool = False) -> tf.Tensor:
    return tf.reduce_sum(x, axis, keepdims)
