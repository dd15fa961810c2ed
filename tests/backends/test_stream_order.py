"""torch-stream's two CUDA streams, simulated: their work runs in any order that they allow.

A real device would show a missing wait once in a while; here every order is as likely.
"""

import random
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("rwkv_backend_cuda_variants.stream.ops")

from rwkv_backend_cuda_variants.stream import prefetch  # noqa: E402


class Event:
    def record(self, stream: "Stream") -> None:
        self.mark = object()
        stream.queue.append(("reach", self.mark))


class Stream:
    def __init__(self, _device: object) -> None:
        self.queue: list[tuple] = []

    def wait_event(self, event: Event) -> None:
        self.queue.append(("wait", event.mark))

    def wait_stream(self, other: "Stream") -> None:
        event = Event()
        event.record(other)
        self.wait_event(event)


class Buffer:
    """A slot's memory, of any type and shape, for queued copies and products."""

    def __init__(self, cuda: "Cuda") -> None:
        self.cuda, self.content = cuda, None

    def __getitem__(self, _part: object) -> "Buffer":
        return self

    def view(self, _as: object) -> "Buffer":
        return self

    def record_stream(self, _stream: Stream) -> None:
        pass

    def copy_(self, source: object, non_blocking: bool) -> None:
        assert non_blocking
        self.cuda.current.queue.append(("write", self, source))


class Cuda:
    """The part of torch.cuda that stream/prefetch.py uses."""

    Event, Stream = Event, Stream

    def __init__(self) -> None:
        self.current = self.main = Stream(None)
        self.reached: set[object] = set()

    def current_stream(self, _device: object) -> Stream:
        return self.current

    @contextmanager
    def stream(self, stream: Stream):
        self.current, before = stream, self.current
        yield
        self.current = before

    def run(self, streams: list[Stream], rng: random.Random) -> list[tuple[object, object]]:
        """Run the queued work in a random order. Return (found, expected) for each product."""
        products = []
        while any(stream.queue for stream in streams):
            able = [s for s in streams if s.queue and not self._waits(s.queue[0])]
            kind, what, *more = rng.choice(able).queue.pop(0)
            if kind == "reach":
                self.reached.add(what)
            elif kind == "write":
                what.content = more[0]
            elif kind == "read":
                products.append((what.content, more[0]))
        return products

    def _waits(self, work: tuple) -> bool:
        return work[0] == "wait" and work[1] not in self.reached


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("order", ["learned", "random", "repeated"])
def test_every_product_finds_its_matrix_whatever_runs_first(monkeypatch, seed, order):
    rng, cuda = random.Random(seed), Cuda()
    fake = SimpleNamespace(cuda=cuda, empty=lambda *_, **__: Buffer(cuda), uint8=torch.uint8)
    monkeypatch.setattr(prefetch, "torch", fake)
    slots = prefetch.Slots(16, SimpleNamespace(type="cuda"))
    tensors = [prefetch.HostTensor(torch.zeros(4)) for _ in range(5)]
    for tensor in tensors:
        slots.add(tensor)
    uses = {
        "learned": tensors * 6,
        "random": rng.choices(tensors, k=30),
        "repeated": [tensor for tensor in tensors * 3 for _ in range(2)],
    }[order]
    products = []
    for i, used in enumerate(uses):

        def product(rows: Buffer, expected: object = used.tensor) -> None:
            cuda.main.queue.append(("read", rows, expected))

        slots.product(used, product)
        if i % 11 == 10:  # the logits are fetched: all that was begun is done
            products += cuda.run([cuda.main, slots._side], rng)
    products += cuda.run([cuda.main, slots._side], rng)
    assert len(products) == len(uses)
    assert all(found is expected for found, expected in products)
