"""Many clients at once, well-behaved and not: every answer is the one that its request gets alone.

    python tests/server/load.py [--clients 64] [--seconds 300]

starts a server, runs the clients, prints what they did, and fails if an answer differs, an error is
not the one expected, a place in the batch stays taken, or the server's memory grows.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

BEGINNINGS = ("The sea", "A ship was", "Once upon a time", "He said that", "In the winter")
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@dataclass
class Load:
    """The clients of one server.

    Attributes:
        expected: what each request gave when it ran alone.
        done: how often each thing was done.
        wrong: what went wrong.
    """

    address: str
    client: httpx.AsyncClient
    expected: dict[str, str] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    async def ask_alone(self) -> None:
        """Learn what each request gives."""
        for number in range(10):
            self.expected[json.dumps(_request(number))] = await self._text(_request(number))

    async def run(self, seed: int, seconds: float) -> None:
        """One client, for so long."""
        chance = random.Random(seed)
        acts = (
            self.ask, self.ask, self.stream, self.stream, self.leave_stream, self.vanish,
            self.send_nonsense, self.send_too_much, self.drip,
        )  # fmt: skip
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            act: Callable[[random.Random], Coroutine[Any, Any, None]] = chance.choice(acts)
            try:
                await act(chance)
            except Exception as error:
                self.wrong.append(f"{act.__name__}: {type(error).__name__}: {error}")
            self.done[act.__name__] += 1

    async def ask(self, chance: random.Random) -> None:
        """Ask, and compare the answer."""
        request = _request(chance.randrange(10))
        self._compare(request, await self._text(request))

    async def stream(self, chance: random.Random) -> None:
        """The same in a stream."""
        request = _request(chance.randrange(10))
        self._compare(request, await self._streamed(request, 10**6))

    async def leave_stream(self, chance: random.Random) -> None:
        """Leave a stream in its midst."""
        await self._streamed(_request(chance.randrange(10)), chance.randrange(3))

    async def vanish(self, chance: random.Random) -> None:
        """Ask, and go away before the answer."""
        body = json.dumps(_request(chance.randrange(10))).encode()
        await self._send(body, len(body), chance.random() / 5)

    async def drip(self, chance: random.Random) -> None:
        """Send a part of a body, and go away."""
        await self._send(b'{"prompt":', 1000, chance.random() / 5)

    async def send_nonsense(self, chance: random.Random) -> None:
        """Send what is no request."""
        body = chance.choice([b"{", b"[1]", b"\xff", b'{"prompt": 3}', b'{"n": -1}'])
        headers = {"Content-Type": "application/json"}
        answer = await self.client.post(TEXT, content=body, headers=headers)
        self._expect(answer, 400)

    async def send_too_much(self, _: random.Random) -> None:
        """Send a body that is too large."""
        self._expect(await self.client.post(TEXT, json={"prompt": "a" * 200_000}), 413)

    async def _text(self, request: dict[str, Any]) -> str:
        while True:
            answer = await self.client.post(TEXT, json=request)
            if answer.status_code != 429:
                break
            self.done["refused: the queue was full"] += 1
            await asyncio.sleep(0.1)
        self._expect(answer, 200)
        return str(answer.json()["choices"][0]["text"])

    async def _streamed(self, request: dict[str, Any], n_chunks: int) -> str | None:
        """The text of a stream; None if it is left before the end."""
        text = ""
        body = request | {"stream": True}
        async with self.client.stream("POST", TEXT, json=body) as answer:
            if answer.status_code == 429:
                return None
            self._expect(answer, 200)
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    return text
                if line.startswith("data: "):
                    text += json.loads(line[6:])["choices"][0]["text"]
                    n_chunks -= 1
                if n_chunks < 0:
                    return None
        self.wrong.append("a stream ended without [DONE]")
        return None

    async def _send(self, body: bytes, length: int, seconds: float) -> None:
        place = urlsplit(self.address)
        _, writer = await asyncio.open_connection(place.hostname, place.port)
        head = f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n"
        writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        await asyncio.sleep(seconds)
        writer.close()

    def _compare(self, request: dict[str, Any], text: str | None) -> None:
        expected = self.expected[json.dumps(request)]
        if text is not None and text != expected:
            self.wrong.append(f"{request}: {text!r}, alone {expected!r}")

    def _expect(self, answer: httpx.Response, status: int) -> None:
        if answer.status_code != status:
            self.wrong.append(f"found status {answer.status_code}, expected {status}")

    async def n_taken(self) -> float:
        """How many requests run or wait."""
        lines = (await self.client.get("/metrics")).text.splitlines()
        names = ("rwkv:num_requests_running{", "rwkv:num_requests_waiting{")
        return sum(float(line.split()[-1]) for line in lines if line.startswith(names))


def _request(number: int) -> dict[str, Any]:
    prompt = BEGINNINGS[number % len(BEGINNINGS)]
    return {"prompt": prompt, "max_tokens": 3 + number, "seed": number, "temperature": 0.7}


def memory(pid: int) -> int:
    """The resident bytes of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


async def load(address: str, pid: int, n_clients: int, seconds: float) -> tuple[Load, float]:
    """Run clients. Returns what they found, and how the server's memory grew from a third on."""
    limits = httpx.Limits(max_connections=n_clients + 1)
    async with httpx.AsyncClient(base_url=address, timeout=300, limits=limits) as client:
        found = Load(address, client)
        await found.ask_alone()
        running = [asyncio.create_task(found.run(i, seconds)) for i in range(n_clients)]
        await asyncio.sleep(seconds / 3)
        before = memory(pid)
        await asyncio.gather(*running)
        growth = memory(pid) / before - 1
        end = time.monotonic() + 30
        while await found.n_taken() and time.monotonic() < end:
            await asyncio.sleep(0.1)
        if await found.n_taken():
            found.wrong.append("places in the batch stay taken")
    return found, growth


def main() -> int:
    from server_process import start

    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300)
    args = parser.parse_args()
    server = start("--max-body", "100000")
    try:
        found, growth = asyncio.run(
            load(server.address, server.process.pid, args.clients, args.seconds)
        )
    finally:
        server.end()
    print(dict(found.done), f"memory {growth:+.1%}", *found.wrong[:20], sep="\n")
    return int(bool(found.wrong) or growth > 0.05)


if __name__ == "__main__":
    sys.exit(main())
