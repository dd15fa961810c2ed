"""CUDA graphs: a token's kernels are recorded once, and replayed with one launch per token.

A token takes some hundred kernels of a few microseconds each. Launching each of them separately
takes several times as long as computing them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Recordings per function, one for each batch size; the least recently used is dropped.
_MAX_RECORDINGS = 8


class Recording:
    """A recorded call of `function(parameters, *tensors)`. It can be replayed with other values."""

    def __init__(
        self, function: Callable[..., Any], parameters: Any, tensors: list[Tensor]
    ) -> None:
        self._inputs = [tensor.clone() for tensor in tensors]
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: other threads may use CUDA meanwhile; their work is not recorded.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._results = function(parameters, *self._inputs)

    def replay(self, tensors: list[Tensor]) -> Any:
        for mine, tensor in zip(self._inputs, tensors, strict=True):
            mine.copy_(tensor)
        self._graph.replay()
        # The next replay overwrites the results, so return copies.
        if isinstance(self._results, Tensor):
            return self._results.clone()
        return tuple(result.clone() for result in self._results)


class RecordedFunction:
    """Runs `function(parameters, x, state)` without gradients. Replays it for x [B, 1, D] on CUDA.

    The first call for each shape and dtype is not recorded, since libraries allocate workspaces
    during the first call.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._parameters: Any = None
        self._recordings: dict[Any, Recording | None] = {}
        # A recording has one set of input tensors, so threads take turns.
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
    """Return whether the first tensor is on CUDA and has one token per sequence: [B, 1, D]."""
    first = tensors[0] if tensors else None
    return isinstance(first, Tensor) and first.is_cuda and first.ndim == 3 and first.shape[1] == 1
