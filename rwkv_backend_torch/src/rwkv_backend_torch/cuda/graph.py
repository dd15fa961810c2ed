"""CUDA graphs: the kernels of a token are recorded once, and replayed with one launch per token.

A token takes some hundred kernels of a few microseconds each; launching them one by one takes
several times as long.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Of one function, for as many numbers of sequences; the one used least recently goes.
_MAX_RECORDINGS = 8


class Recording:
    """One call of `function(parameters, *tensors)`, repeated with other tensors' values."""

    def __init__(
        self, function: Callable[..., Any], parameters: Any, tensors: list[Tensor]
    ) -> None:
        self._inputs = [tensor.clone() for tensor in tensors]
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may go on meanwhile: only this one's work is recorded.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._results = function(parameters, *self._inputs)

    def replay(self, tensors: list[Tensor]) -> Any:
        for mine, tensor in zip(self._inputs, tensors, strict=True):
            mine.copy_(tensor)
        self._graph.replay()
        # The next replay writes over them.
        if isinstance(self._results, Tensor):
            return self._results.clone()
        return tuple(result.clone() for result in self._results)


class RecordedFunction:
    """`function(parameters, x, state)` without gradients, replayed where x is one token a sequence.

    The first call of its kind runs as ever: libraries make their workspaces then.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._parameters: Any = None
        self._recordings: dict[Any, Recording | None] = {}
        # The inputs of a recording are there once.
        self._lock = threading.Lock()

    @torch.no_grad()
    def __call__(self, parameters: Any, *tensors: Tensor) -> Any:
        if not _one_token(tensors):
            return self._function(parameters, *tensors)
        with self._lock:
            recording = self._recording_for(parameters, list(tensors))
            if recording is not None:
                return recording.replay(list(tensors))
        return self._function(parameters, *tensors)

    def _recording_for(self, parameters: Any, tensors: list[Tensor]) -> Recording | None:
        if parameters is not self._parameters:
            self._recordings.clear()
            self._parameters = parameters
        kind = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        if kind not in self._recordings:
            if len(self._recordings) == _MAX_RECORDINGS:
                del self._recordings[next(iter(self._recordings))]
            self._recordings[kind] = None
            return None
        recording = self._recordings.pop(kind) or Recording(self._function, parameters, tensors)
        self._recordings[kind] = recording
        return recording


def _one_token(tensors: tuple[Any, ...]) -> bool:
    """Whether the first, x [B, T, D], is of one token a sequence."""
    first = tensors[0] if tensors else None
    return isinstance(first, Tensor) and first.is_cuda and first.ndim == 3 and first.shape[1] == 1
