"""torch-stream, with the CPU as the device: the same scheduler, the same bookkeeping."""

import gc
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
stream = pytest.importorskip("rwkv_backend_cuda_variants.stream.ops")

import rwkv_core  # noqa: E402
from model_results import results  # noqa: E402
from pth_writer import write_pth  # noqa: E402
from random_model import random_weights  # noqa: E402
from rwkv_backend_cuda_variants.stream.matrix_store import Placed  # noqa: E402
from rwkv_backend_cuda_variants.stream.prefetch import HostTensor  # noqa: E402
from rwkv_core import plugins  # noqa: E402
from rwkv_core.architectures.base import Config  # noqa: E402
from rwkv_core.architectures.rwkv4 import RWKV4  # noqa: E402
from rwkv_core.backends.offload_plan import GB, model_bytes, plan_offload, smallest_target  # noqa: E402
from rwkv_core.bench import bench  # noqa: E402

TOKENS = [i * 31 % 250 for i in range(600)]
N_VOCAB = 257
DTYPES = ("float32", "bfloat16", "float16")


def sizes(dtype: str, n_layer: int = 3) -> tuple[list[int], int]:
    weights = Config(n_layer, 32, 128, N_VOCAB, RWKV4).weights().values()
    return model_bytes(weights, dtype, "float32")


def target(share: float, dtype: str = "float32") -> float:
    """GB: 0 the smallest target with which the model runs, 1 one byte too few to hold all of it."""
    matrices, vectors = sizes(dtype)
    least, most = smallest_target(matrices, vectors), vectors + sum(matrices) - 1
    return (least + share * (most - least)) / GB


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stream") / "model.pth"
    write_pth(path, random_weights(3, 32, N_VOCAB, seed=5))
    return path


@pytest.fixture(scope="module")
def expected(path: Path) -> dict[str, list[np.ndarray]]:
    """The results of `torch`, by dtype."""
    return {dtype: results(rwkv_core.load(path, "torch", dtype=dtype), TOKENS) for dtype in DTYPES}


def equal(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("share", [0, 0.3, 0.9, 1, 1.1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_torchs_bit_for_bit(path, expected, dtype, share):
    model = rwkv_core.load(path, "torch-stream", dtype=dtype, target=target(share, dtype))
    assert equal(results(model, TOKENS), expected[dtype])
    assert (model.ops.store.slots is None) == (share > 1)


def test_without_a_target_on_a_cpu_all_stays(path, expected):
    model = rwkv_core.load(path, "torch-stream")
    assert equal(results(model, TOKENS), expected["float32"])
    assert model.ops.store.slots is None


def on_device(ops: "stream.StreamOps") -> int:
    """Return the bytes of matrices and slots on the device, counted without the store."""
    found = [o.on_device for o in gc.get_objects() if type(o) is Placed]
    tensors = [one for one in found if one is not None]
    tensors += [slot.buffer for slot in ops.store.slots._slots]
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_plan_never_exceeds_the_target(path, share):
    limit = target(share)
    gc.collect()  # models of other tests
    model = rwkv_core.load(path, "torch-stream", target=limit)
    store, seen, (_, vectors) = model.ops.store, [], sizes("float32")
    matmul = model.ops.matmul

    def watched(matrix, x):
        seen.append((store.resident_bytes, on_device(model.ops) + vectors))
        return matmul(matrix, x)

    model.ops.matmul = watched
    model.forward(TOKENS[:5])
    model.forward([1])
    chosen = plan_offload(*sizes("float32"), round(limit * GB))
    assert len(seen) == 2 * len(chosen.stays)
    assert set(seen) == {(chosen.total, chosen.total)}
    assert chosen.total <= limit * GB


def test_each_matrix_arrives_before_its_use_and_once_a_token(path):
    limit = target(0.3)
    model = rwkv_core.load(path, "torch-stream", target=limit)
    slots, streamed = model.ops.store.slots, plan_offload(*sizes("float32"), limit * GB).streamed
    state = model.forward([1])[1]
    # Nothing had been used before the very first one.
    assert slots.late == 1
    before = slots.copied
    for token in range(10):
        _, state = model.forward([token], state)
    assert slots.late == 1
    assert slots.copied - before == 10 * streamed > 0


def test_after_a_token_the_next_ones_first_matrices_are_there(path, monkeypatch):
    model = rwkv_core.load(path, "torch-stream", target=target(0))
    model.forward([1])
    slots = model.ops.store.slots
    used, product = [], slots.product
    monkeypatch.setattr(slots, "product", lambda t, f: used.append(t.number) or product(t, f))
    there = {slot.holds for slot in slots._slots}
    model.forward([2])
    assert there == set(used[:2]) and len(used) > 4


def bare_ops(target: float) -> "stream.StreamOps":
    return stream.StreamOps("float32", None, "cpu", None, target, None)


@pytest.mark.parametrize("seed", range(5))
def test_any_order_is_right(seed):
    rng = np.random.default_rng(seed)
    ops = bare_ops(40_000 / GB)
    plain = plugins.tensor_ops("torch", {"device": "cpu"})
    arrays = [rng.normal(size=(32, 32)).astype(np.float32) for _ in range(12)]
    matrices = [ops.matrix(array) for array in arrays]
    x = torch.ones(1, 1, 32)
    expected = [plain.matmul(plain.matrix(array), x) for array in arrays]
    for i in rng.integers(0, len(arrays), 200):
        assert torch.equal(ops.matmul(matrices[i], x), expected[i])
    assert ops.store.slots.late > 1
    assert ops.store.resident_bytes <= 40_000


def test_another_order_is_learned_the_first_time():
    ops = bare_ops(40_000 / GB)
    matrices = [ops.matrix(np.full((32, 32), i, np.float32)) for i in range(12)]
    streamed = [matrix for matrix in matrices if matrix.on_device is None][::-1]
    x = torch.ones(1, 1, 32)

    def forward() -> int:
        before = ops.store.slots.late
        for matrix in streamed:
            ops.matmul(matrix, x)
        return ops.store.slots.late - before

    assert len(streamed) > 3
    assert forward() > 1
    assert [forward(), forward(), forward()][1:] == [0, 0]


def test_a_matrix_larger_than_a_slot_comes_in_blocks_of_rows():
    ops = bare_ops(10_000 / GB)
    ops.matrix(np.ones((64, 32), np.float32))
    array = np.random.default_rng(0).normal(size=(500, 32)).astype(np.float32)
    matrix, x = ops.matrix(array), torch.ones(1, 3, 32)
    assert len(matrix.on_host) > 1
    np.testing.assert_allclose(
        ops.matmul(matrix, x), x @ torch.tensor(array).T, rtol=1e-4, atol=1e-5
    )
    assert ops.store.resident_bytes <= 10_000


def test_a_bench_runs_within_the_target(path):
    report = bench(str(path), "torch-stream", {"target": target(0)}, lengths=[4], rounds=1)
    assert report.decode.tokens_per_second > 0
    # As large as the model, so that nothing is left for the bench's own matrices but a few rows.
    report = bench(str(path), "torch-stream", {"target": 450_000 / GB}, lengths=[4], rounds=1)
    assert report.decode.tokens_per_second > 0


def test_models_and_sequences_take_turns(path, expected):
    one = rwkv_core.load(path, "torch-stream", target=target(0))
    other = rwkv_core.load(path, "torch-stream", dtype="bfloat16", target=target(0.2, "bfloat16"))
    reference = {model: model.forward(TOKENS[:20])[0] for model in (one, other)}
    states = dict.fromkeys([(one, 0), (one, 1), (other, 0), (other, 1)])
    for token in TOKENS[:20]:
        logits = {}
        for key, state in states.items():
            logits[key], states[key] = key[0].forward([token], state)
    for (model, _), found in logits.items():
        torch.testing.assert_close(found, reference[model], rtol=1e-2, atol=0.2)
    assert torch.equal(logits[one, 0], logits[one, 1])
    assert one.ops.store.slots.late == 1
    assert equal(results(one, TOKENS), expected["float32"])
    assert equal(results(other, TOKENS), expected["bfloat16"])


def test_threads_in_one_model_do_not_disturb_each_other(path):
    model = rwkv_core.load(path, "torch-stream", target=target(0))
    wanted = [model.to_numpy(model.forward(TOKENS[i : i + 30])[0]) for i in range(4)]
    wrong = []

    def work(i: int) -> None:
        for _ in range(8):
            if not np.array_equal(model.to_numpy(model.forward(TOKENS[i : i + 30])[0]), wanted[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=[i]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def interrupted_at(n: int, run) -> BaseException | None:
    """Run with a KeyboardInterrupt at the nth line of the scheduler; None if there are fewer."""
    left = n

    def trace(frame, event, _):
        nonlocal left
        if not frame.f_code.co_filename.endswith("stream/prefetch.py"):
            return None
        # A `with` line is traced once more before the lock is let go, where no signal is handled.
        if event == "line" and "with" not in source[frame.f_lineno - 1]:
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    import rwkv_backend_cuda_variants.stream.prefetch as module

    source = Path(module.__file__).read_text().splitlines()
    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    except KeyboardInterrupt as error:
        return error
    finally:
        sys.settrace(previous)
    return None


def test_after_ctrl_c_at_any_line_it_goes_on_as_if_nothing_had_been(path):
    model = rwkv_core.load(path, "torch-stream", target=target(0))
    wanted = model.forward([1, 2])[0]
    kept = []  # as an interactive Python keeps the last error, with its frames
    for n in range(1, 1000, 3):
        kept.append(interrupted_at(n, lambda: model.forward([1, 2])))
        assert torch.equal(model.forward([1, 2])[0], wanted)
        if kept[-1] is None:
            break
    assert kept[-1] is None and len(kept) > 50


def test_after_an_error_in_a_product_it_goes_on(path, expected, monkeypatch):
    model = rwkv_core.load(path, "torch-stream", target=target(0))
    model.forward([1])
    with monkeypatch.context() as patched:
        patched.setattr(model.ops, "wkv", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.forward([1, 2])
    with pytest.raises(RuntimeError):
        model.ops.matmul(model.parameters.blocks[0].time.key, torch.ones(1, 1, 31))
    assert equal(results(model, TOKENS), expected["float32"])


@pytest.fixture
def no_collector():
    """Memory must be freed with its last user; a later garbage collection would hide cycles."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def left() -> int:
    return sum(type(o) in (Placed, HostTensor) for o in gc.get_objects())


@pytest.mark.usefixtures("no_collector")
def test_a_model_let_go_leaves_nothing(path):
    before = left()
    model = rwkv_core.load(path, "torch-stream", target=target(0.5))
    model.forward([1, 2, 3])
    assert left() > before
    ops = model.ops
    del model
    assert left() == before
    assert ops.store.resident_bytes == sizes("float32")[1] + 2 * ops.store.slots.n_bytes


@pytest.mark.usefixtures("no_collector")
def test_a_failure_in_the_middle_of_loading_leaves_nothing(tmp_path):
    weights = random_weights(3, 32, N_VOCAB)
    weights["blocks.2.ffn.value.weight"][3, 4] = np.nan
    write_pth(tmp_path / "damaged.pth", weights)
    before = left()
    with pytest.raises(rwkv_core.CheckpointError, match="NaN"):
        rwkv_core.load(tmp_path / "damaged.pth", "torch-stream", target=target(0.5))
    assert left() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": -1}, "found -1.0, expected GB"),
        ({"target": float("nan")}, "found nan, expected GB"),
        ({"target": "inf"}, "found inf, expected GB"),
        ({"target": "much"}, "found 'much', expected float"),
        ({"target": True}, "found True, expected float"),
        ({"target": 0}, "found 0 GB, expected at least 0.0"),
        ({"target": 1, "device": "cuda:99"}, "'cuda:99' is not available here"),
        ({"target": 1, "device": "toaster"}, "'toaster' is not available here"),
        ({"pin_memory": "perhaps"}, "found 'perhaps', expected bool"),
        ({"pin_mem": True}, "did you mean pin_memory"),
    ],
)
def test_a_bad_option_is_one_clear_line(path, options, message):
    with pytest.raises(rwkv_core.RWKVError) as raised:
        rwkv_core.load(path, "torch-stream", **options)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_the_smallest_target_that_an_error_names_does(path):
    with pytest.raises(rwkv_core.OptionError) as raised:
        rwkv_core.load(path, "torch-stream", target=0.00001)
    least = str(raised.value).split("at least ")[1].split()[0]
    model = rwkv_core.load(path, "torch-stream", target=least)
    assert model.ops.store.resident_bytes <= float(least) * GB


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_texts_and_states_are_interchangeable(backend, tmp_path):
    if backend not in {row.name for row in rwkv_core.list_backends() if row.status == "ready"}:
        pytest.skip(f"{backend} is not installed here")
    streamed = rwkv_core.RWKV("prose", backend="torch-stream", target=0.009)
    other = rwkv_core.RWKV("prose", backend=backend)
    assert streamed.model.ops.store.slots.n_bytes
    texts = []
    for rwkv in (streamed, other):
        rwkv.load_context("The old man looked at the sea and")
        rwkv.save_state(tmp_path / f"{rwkv.model.backend}.state")
        texts.append(rwkv.generate(40, temperature=0.9, seed=42).text)
    assert texts[0] == texts[1] and len(texts[0]) > 40
    streamed.load_state(tmp_path / f"{backend}.state")
    other.load_state(tmp_path / "torch-stream.state")
    assert streamed.generate(20, seed=1).text == other.generate(20, seed=1).text
