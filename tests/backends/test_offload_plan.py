"""Which matrices stay on a device that holds only part of a model."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rwkv_core
from random_model import random_weights
from rwkv_core.architectures.base import Config
from rwkv_core.architectures.rwkv4 import RWKV4
from rwkv_core.backends.offload_plan import (
    as_target,
    model_bytes,
    plan_offload,
    smallest_target,
    target_bytes,
)
from rwkv_core.errors import OptionError

SIZES = st.lists(st.sampled_from([1, 4, 7, 12, 50]), min_size=1, max_size=40)


def test_bytes_are_those_of_a_real_model():
    weights = random_weights(3, 32, 101)
    matrices = [
        array for name, array in weights.items() if array.shape[-1] > 1 and "emb" not in name
    ]
    two_axes = [array.size for array in matrices if array.ndim == 2]
    sizes, vectors = model_bytes(
        Config(3, 32, 128, 101, RWKV4).weights().values(), "bfloat16", "float64"
    )
    assert sorted(sizes) == sorted(2 * size for size in two_axes)
    counted = sum(a.size for n, a in weights.items() if a.size == max(a.shape))
    assert vectors == 8 * counted


@given(sizes=SIZES, vectors=st.integers(0, 30), room=st.integers(0, 300))
def test_it_keeps_within_the_target_and_leaves_out_only_what_would_not_fit(sizes, vectors, room):
    target = smallest_target(sizes, vectors) + room
    chosen = plan_offload(sizes, vectors, target)
    streamed = [size for size, stays in zip(sizes, chosen.stays, strict=True) if not stays]
    assert chosen.total <= target
    assert chosen.total == vectors + chosen.resident + 2 * chosen.slot
    assert chosen.slot == max(streamed, default=0)
    assert (chosen.resident, chosen.streamed) == (sum(sizes) - sum(streamed), sum(streamed))
    assert all(chosen.total + size > target for size in streamed)


@given(sizes=SIZES, room=st.integers(0, 200), more=st.integers(0, 100))
def test_more_room_streams_no_more(sizes, room, more):
    target = smallest_target(sizes, 0) + room
    assert plan_offload(sizes, 0, target + more).streamed <= plan_offload(sizes, 0, target).streamed


@given(sizes=st.lists(st.sampled_from([1, 4, 7, 12, 50]), min_size=1, max_size=7))
def test_the_smallest_target_is_the_smallest_of_all_choices(sizes):
    choices = itertools.product([True, False], repeat=len(sizes))
    totals = []
    for choice in choices:
        streamed = [size for size, stays in zip(sizes, choice, strict=True) if not stays]
        totals.append(sum(sizes) - sum(streamed) + 2 * max(streamed, default=0))
    assert smallest_target(sizes, 3) == min(totals) + 3


def test_below_the_smallest_target_the_message_gives_one_that_does():
    sizes, vectors = model_bytes(
        Config(12, 768, 3072, 50277, RWKV4).weights().values(), "float16", "float32"
    )
    least = smallest_target(sizes, vectors)
    with pytest.raises(OptionError, match=f"at least {as_target(least)} ") as raised:
        plan_offload(sizes, vectors, least - 1)
    assert "\n" not in str(raised.value)
    assert plan_offload(sizes, vectors, target_bytes(float(as_target(least)))).slot


@given(n_bytes=st.integers(1, 10**13))
def test_a_target_that_is_shown_is_enough(n_bytes):
    shown = target_bytes(float(as_target(n_bytes)))
    assert n_bytes <= shown <= n_bytes + max(1000, n_bytes // 1000)


def test_a_large_head_stays_so_that_the_slots_are_small():
    # 7B in 16 bits: the head has three times as many bytes as channel mixing's matrices.
    sizes, vectors = model_bytes(
        Config(32, 4096, 16384, 50277, RWKV4).weights().values(), "float16", "float32"
    )
    chosen = plan_offload(sizes, vectors, 8e9)
    assert chosen.stays[-1]
    assert chosen.slot == 4 * 4096**2 * 2


def test_those_that_stay_lie_evenly_between_the_others():
    chosen = plan_offload([10] * 20, 0, 130)  # two slots, and eleven that stay
    streamed = [i for i, stays in enumerate(chosen.stays) if not stays]
    gaps = {b - a for a, b in itertools.pairwise(streamed)}
    assert len(streamed) == 9 and gaps == {2, 3}


PLUGIN = """
import numpy as np
import rwkv_core
from rwkv_core import Backend, Status, TensorOps

class Ops(TensorOps):
    xp = np

    def __init__(self):
        self.seen = []

    def prepare(self, shape):
        self.seen.append(shape)

    def vector(self, array):
        return array.astype("float32")

    def matrix(self, array):
        self.seen.append(array.shape)
        return len(self.seen) - 1, array.astype("float32")

    def to_numpy(self, array):
        return array

    def matmul(self, matrix, x):
        self.seen.append(matrix[0])
        return super().matmul(matrix[1], x)

@rwkv_core.hookimpl
def rwkv_backends():
    return [Backend("sample", "for this test", 2, lambda: Status(True))]

@rwkv_core.hookimpl
def rwkv_tensor_ops(backend, options):
    return Ops() if backend == "sample" else None
"""


def test_a_backend_is_told_the_shape_then_given_matrices_in_the_order_of_their_use(
    install_plugin, small_model
):
    install_plugin("sample", PLUGIN)
    model = rwkv_core.load(small_model, "sample")
    (shape, *matrices), used = model.ops.seen[:16], model.ops.seen[16:]
    assert shape == list(model.config.weights().values()) and used == []
    counts = [rows * columns for rows, columns in matrices]
    assert model_bytes(shape, "float32", "float32")[0] == [4 * count for count in counts]
    model.forward([1])
    assert model.ops.seen[16:] == list(range(1, 16))
