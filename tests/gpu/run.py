"""Checks and times the backends on this machine's GPU: `python tests/gpu/run.py RESULTS.json`.

Each step is a command with a time limit of its own. What it said is written after each, and a step
that fails holds up none of the others. Nothing is downloaded.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

# Of a step's output, what is kept: its end says how it went.
_KEPT = 6000


class Step(NamedTuple):
    name: str
    command: list[str]
    limit: float
    """Seconds after which it is stopped."""


def verify(backend: str, *options: str) -> Step:
    command = [sys.executable, "-m", "rwkv_core", "verify", "-b", backend]
    return Step(" ".join(["verify", backend, *options]), [*command, *_given("-o", options)], 90)


def conformance(backend: str, *options: str) -> Step:
    command = [sys.executable, "-m", "pytest", "-q", "--maxfail=12", "-p", "no:cacheprovider"]
    command += ["--tb=line", "--pyargs", "rwkv_core.conformance", "--rwkv-backend", backend]
    name = " ".join(["conformance", backend, *options])
    return Step(name, [*command, *_given("--rwkv-option", options)], 150)


def speed(shape: str, backend: str, *options: str) -> Step:
    command = [sys.executable, str(Path(__file__).with_name("speed.py")), shape, backend, *options]
    return Step(" ".join(["speed", shape, backend, *options]), command, 120)


def _given(flag: str, options: tuple[str, ...]) -> list[str]:
    return [part for option in options for part in (flag, option)]


STEPS = [
    Step(
        "machine",
        ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv"],
        30,
    ),
    verify("torch"),
    verify("torch-quant"),
    verify("torch-stream", "target=0.005"),
    verify("torch-stream", "target=0.005", "pin_memory=false"),
    verify("torch-split", "devices=cuda:0,cpu"),
    verify("torch-split", "devices=cuda:0,cuda:0"),
    verify("jax"),
    verify("torch", "device=cuda:7"),
    conformance("torch"),
    conformance("torch-quant"),
    conformance("torch-stream", "target=0.04"),
    conformance("torch-split", "devices=cuda:0,cpu"),
    conformance("torch-split", "devices=cuda:0,cuda:0"),
    speed("169M", "torch", "dtype=bfloat16"),
    speed("1.5B", "torch", "dtype=bfloat16"),
    speed("1.5B", "torch-quant", "dtype=int8"),
    speed("1.5B", "torch-quant", "dtype=int4"),
    speed("7B", "torch", "dtype=bfloat16"),
    conformance("jax"),
]


def run(step: Step) -> dict[str, object]:
    began = time.perf_counter()
    child = subprocess.Popen(
        step.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    try:
        output, _ = child.communicate(timeout=step.limit)
    except subprocess.TimeoutExpired:
        child.kill()
        output, _ = child.communicate()
    seconds = round(time.perf_counter() - began, 1)
    return {
        "step": step.name, "status": child.returncode, "seconds": seconds, "output": output[-_KEPT:]
    }  # fmt: skip


def main(path: Path, words: list[str]) -> None:
    results = []
    for step in STEPS:
        if all(word in step.name for word in words):
            results.append(run(step))
            path.write_text(json.dumps(results, indent=1))
            last = results[-1]
            print(f"{last['step']}: status {last['status']}, {last['seconds']} s", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} RESULTS.json [WORD ...]: only steps with all these words")
    main(Path(sys.argv[1]), sys.argv[2:])
