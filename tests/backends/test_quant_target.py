"""torch-quant with a target: like torch-stream, with quantized matrices' bytes in its slots."""

import gc
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("rwkv_backend_cuda_variants.quant.ops")

import rwkv_core  # noqa: E402
from byte_tokenizer import write_byte_tokenizer  # noqa: E402
from model_results import results  # noqa: E402
from pth_writer import write_pth  # noqa: E402
from random_model import random_weights  # noqa: E402
from rwkv_backend_cuda_variants.stream.matrix_store import Placed  # noqa: E402
from rwkv_backend_cuda_variants.stream.prefetch import HostTensor  # noqa: E402
from rwkv_core import plugins  # noqa: E402
from rwkv_core.architectures.base import Config  # noqa: E402
from rwkv_core.architectures.rwkv4 import RWKV4  # noqa: E402
from rwkv_core.backends.offload_plan import GB, model_bytes  # noqa: E402
from rwkv_core.bench import bench  # noqa: E402
from rwkv_core.cli import main  # noqa: E402
from rwkv_core.quantization import quantize  # noqa: E402
from rwkv_core.rwkvstic import RWKV, TORCH_QUANT  # noqa: E402

TOKENS = [i * 31 % 250 for i in range(600)]
# No multiple of 16, to which the 4-bit kernel pads.
SHAPE = Config(3, 64, 256, 262, RWKV4)
WEIGHTS = SHAPE.weights().values()
VARIANTS = [
    {"dtype": "int8"},
    {"dtype": "int4"},
    {"dtype": "int4", "group_size": 32},
    # Too small for the 4-bit kernel, so that codes take a byte each.
    {"dtype": "int4", "chunksize": 4},
]
variants = pytest.mark.parametrize("options", VARIANTS, ids=str)
both = pytest.mark.parametrize("dtype", ["int8", "int4"])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quant") / "model.pth"
    weights = random_weights(SHAPE.n_layer, SHAPE.n_embd, SHAPE.n_vocab, seed=5, dtype=np.float16)
    write_pth(path, weights)
    return path


def load(path: Path, **options) -> rwkv_core.Model:
    return rwkv_core.load(path, "torch-quant", device="cpu", **options)


def quant_ops(**options):
    return plugins.tensor_ops("torch-quant", {"device": "cpu", **options})


def target(path: Path, share: float, **options) -> float:
    """GB: 0 the smallest target with which the model runs, 1 what holds all of it."""
    with pytest.raises(rwkv_core.OptionError) as raised:
        load(path, target=0, **options)
    least = float(str(raised.value).split("at least ")[1].split()[0])
    all_stay = load(path, target=1, **options)
    most = all_stay.ops.store.resident_bytes / GB
    return least + share * (most - least)


def deviation(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the RMS of the difference, divided by the RMS of the expected values."""
    return np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))


@variants
def test_results_are_the_same_whatever_stays(path, options):
    all_stay = load(path, target=1, **options)
    assert all_stay.ops.store.slots is None
    expected = results(all_stay, TOKENS)
    for share in (0, 0.5, 0.95):
        model = load(path, target=target(path, share, **options), **options)
        assert model.ops.store.slots.n_bytes
        assert all(
            np.array_equal(a, b) for a, b in zip(results(model, TOKENS), expected, strict=True)
        )
    # Other kernels at 8 bits, the same at 4.
    without = load(path, **options)
    logits = without.to_numpy(without.forward(TOKENS)[0])
    assert deviation(expected[0], logits) < 0.02


@variants
@pytest.mark.parametrize("share", [0, 0.5, 0.95])
def test_plan_never_exceeds_the_target(path, options, share):
    limit = target(path, share, **options)
    model = load(path, target=limit, **options)
    store, seen, matmul = model.ops.store, [], model.ops.matmul
    vectors = model_bytes(WEIGHTS, "float32", "float32")[1]

    blocks = model.parameters.blocks
    parts = [getattr(b.time, n) for b in blocks for n in ("key", "value", "receptance", "output")]
    parts += [getattr(b.channel, n) for b in blocks for n in ("key", "receptance", "value")]
    placed = [matrix._placed.on_device for matrix in [*parts, model.parameters.head]]

    def on_device() -> int:
        """Return the bytes on the device, counted without the store."""
        tensors = [one for one in placed if one is not None]
        return vectors + sum(t.nbytes for t in tensors + [s.buffer for s in store.slots._slots])

    def watched(matrix, x):
        seen.append((store.resident_bytes, on_device()))
        return matmul(matrix, x)

    model.ops.matmul = watched
    model.forward(TOKENS[:5])
    assert len(seen) == 7 * SHAPE.n_layer + 1 == len(placed)
    assert len(set(seen)) == 1 and seen[0][0] == seen[0][1] <= limit * GB


@both
def test_each_matrix_is_copied_ahead_and_once_a_token(path, dtype):
    model = load(path, target=target(path, 0.3, dtype=dtype), dtype=dtype)
    slots = model.ops.store.slots
    model.forward([1])
    before = slots.copied
    streamed = sum(len(t.tensor) for t in slots._tensors.values())
    for token in range(5):
        model.forward([token])
    # Nothing had been used before the very first one.
    assert slots.late == 1
    assert slots.copied - before == 5 * streamed > 0


@pytest.mark.parametrize("group_size", [16, 32, 64])
@both
def test_the_plan_is_for_the_dtype_and_groups_that_a_file_has(path, tmp_path, dtype, group_size):
    file = rwkv_core.prequantize(path, tmp_path / "m.pqth", int(dtype[3:]), group_size)
    quantized_here = {"dtype": dtype, "group_size": group_size}
    least = target(path, 0, **quantized_here)
    # Whatever the options would have been, for what is quantized here.
    for other in ("int8", "int4"):
        model = load(file, target=least, dtype=other)
        here = load(path, target=least, **quantized_here)
        assert model.ops.store.resident_bytes == here.ops.store.resident_bytes <= least * GB
        found, expected = (m.to_numpy(m.forward(TOKENS)[0]) for m in (model, here))
        assert np.array_equal(found, expected)


def test_matrices_larger_than_planned_are_cut_and_the_target_is_kept():
    """As in a file whose first matrix has fewer bits than the others."""
    rng = np.random.default_rng(0)
    shapes = [*([(64, 64)] * 4 + [(256, 64), (64, 64), (64, 256)]) * 2, (257, 64)]
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    matrices = [quantize(a, 4 if i == 0 else 8, 64) for i, a in enumerate(arrays)]
    for limit in (35_000, 45_000, 90_000):
        ops = quant_ops(target=limit / GB)
        ops.prepare(list(Config(2, 64, 256, 257, RWKV4).weights().values()))
        placed = [ops.quantized_matrix(matrix) for matrix in matrices]
        assert ops.store.resident_bytes <= limit
        for matrix, at in zip(matrices, placed, strict=True):
            x = rng.normal(size=(1, 3, matrix.shape[1])).astype(np.float32)
            found = ops.to_numpy(ops.matmul(at, ops.vector(x)))
            assert deviation(found, x @ matrix.dequantize().T) < 0.015


@both
def test_a_matrix_larger_than_a_slot_comes_in_blocks_of_rows(dtype):
    ops = quant_ops(dtype=dtype, target=20_000 / GB)
    ops.matrix(np.ones((64, 64), np.float32))
    array = np.random.default_rng(0).normal(size=(501, 64)).astype(np.float32)
    matrix, x = ops.matrix(array), np.ones((1, 3, 64), np.float32)
    assert len(matrix._placed.on_host) > 1
    exact = quant_ops(dtype=dtype, target=1)
    expected = exact.matmul(exact.matrix(array), exact.vector(x))
    np.testing.assert_array_equal(ops.matmul(matrix, ops.vector(x)), expected)
    assert ops.store.resident_bytes <= 20_000


@both
def test_a_bench_runs_within_the_target(path, dtype):
    for share in (0, 1.5):
        options = {"dtype": dtype, "target": target(path, share, dtype=dtype)}
        report = bench(str(path), "torch-quant", options, lengths=[4], rounds=1)
        assert report.dtype == dtype and report.decode.tokens_per_second > 0


def left() -> int:
    return sum(type(o) in (Placed, HostTensor) for o in gc.get_objects())


def test_a_model_let_go_and_one_that_fails_leave_nothing(path, tmp_path):
    limit = target(path, 0.5, dtype="int4")
    weights = random_weights(SHAPE.n_layer, SHAPE.n_embd, SHAPE.n_vocab)
    weights["blocks.2.ffn.value.weight"][3, 4] = np.nan
    write_pth(tmp_path / "damaged.pth", weights)
    # Memory must go when its last user does: a collector that runs at some time hides rings.
    gc.collect()
    gc.disable()
    try:
        before = left()
        model = load(path, dtype="int4", target=limit)
        model.forward([1, 2, 3])
        assert left() > before
        del model
        assert left() == before
        with pytest.raises(rwkv_core.CheckpointError, match="NaN"):
            load(tmp_path / "damaged.pth", dtype="int4", target=limit)
        assert left() == before
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("target=0", "found 0 GB, expected at least 0.0"),
        ("target=-1", "found -1.0, expected GB"),
        ("target=0.0001 dtype=int4", "found 0.0001 GB, expected at least 0.0"),
        ("target=much", "found 'much', expected float"),
        ("target=0.004 chunksize=7", "chunksize: found 7, expected a divisor"),
        ("pin_memory=perhaps", "found 'perhaps', expected bool"),
    ],
)
def test_a_bad_option_is_one_line(capsys, options, message):
    arguments = [word for option in options.split() for word in ("-o", option)]
    assert main(["generate", "a", "-m", "prose", "-b", "torch-quant", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and len(captured.err.splitlines()) == 1 and not captured.out


def test_pin_memory_is_of_no_matter_without_a_target(path):
    models = [load(path), load(path, pin_memory=True), load(path, pin_memory=False)]
    first, *others = [model.to_numpy(model.forward(TOKENS[:9])[0]) for model in models]
    assert all(np.array_equal(first, other) for other in others)


def test_rwkvstics_target_is_this_one(path):
    assert write_byte_tokenizer(path.parent / "tokenizer.json") == SHAPE.n_vocab
    limit = target(path, 0.5, chunksize=4)
    model = RWKV(path, TORCH_QUANT, useGPU=False, chunksize=4, target=limit, pinMem=True)
    store = model.rwkv.model.ops.store
    assert store.slots.n_bytes and store.resident_bytes <= limit * GB
