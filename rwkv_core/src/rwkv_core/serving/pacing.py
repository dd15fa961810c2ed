"""Decides how many prompt tokens are prefilled between two decode steps of the batch."""

from __future__ import annotations

# Prefill between two decode steps takes at most 1.8 times as long as a step.
_SHARE = 1.8
_MIN_TOKENS, MAX_TOKENS = 16, 512
# Weight of a new measurement in the running average.
_WEIGHT = 0.3
# Estimate for a chunk size that was never measured: twice the tokens take 1.3 times as long. It is
# optimistic, so that larger sizes are tried.
_GROWTH = 1.3
# Each measurement multiplies the averages of all other sizes by this, so that they are tried again.
_FORGETTING = 0.998
# After so many passes that decode and prefill, a step that only decodes is measured again.
_MAX_PASSES = 16


class Pace:
    """Measures decode steps and prefill chunks, and bounds the chunks by the steps' duration."""

    def __init__(self) -> None:
        self._step = _Average()
        self._reads, self._beside = _Chunks(), _Chunks()
        self._n_passes = 0

    def note_step(self, seconds: float) -> None:
        """Record the duration of a decode step."""
        self._step.add(seconds)
        self._n_passes = 0

    def note_read(self, n_tokens: int, seconds: float) -> None:
        """Record the duration of prefilling `n_tokens` tokens."""
        self._reads.add(n_tokens, seconds)

    def note_pass(self, n_tokens: int, seconds: float) -> float:
        """Record the duration of a decode step that also prefilled `n_tokens` tokens.

        Returns the part of it that prefill took.
        """
        self._n_passes += 1
        extra = max(0.0, seconds - (self._step.value or 0.0))
        self._beside.add(n_tokens, extra)
        return extra

    @property
    def knows_step(self) -> bool:
        """Whether a decode step's duration is known, and was measured not long ago."""
        return self._step.value is not None and self._n_passes < _MAX_PASSES

    @property
    def seconds(self) -> float:
        """The time for prefill before the next decode step."""
        return _SHARE * (self._step.value or 0.0)

    def n_tokens(self, beside: bool = False) -> int:
        """Return the largest chunk size that is estimated to fit in `seconds`.

        `beside`: the chunk is read in the same pass as a decode step.
        """
        chunks, size = self._beside if beside else self._reads, _MIN_TOKENS
        while size < MAX_TOKENS and chunks.estimate(2 * size) <= self.seconds:
            size *= 2
        return size

    def fits(self, n_tokens: int, seconds: float) -> bool:
        """Whether `n_tokens` more tokens fit after `seconds` of prefill."""
        return seconds + self._reads.estimate(_size_of(n_tokens)) <= self.seconds


class _Chunks:
    """The running averages of chunks' durations, by size: powers of two."""

    def __init__(self) -> None:
        self._averages: dict[int, _Average] = {}

    def add(self, n_tokens: int, seconds: float) -> None:
        size = _size_of(n_tokens)
        self._averages.setdefault(size, _Average()).add(seconds)
        for other, average in self._averages.items():
            if other != size and average.value is not None:
                average.value *= _FORGETTING

    def estimate(self, size: int) -> float:
        """Return the seconds for `size` tokens; from a smaller size if it was never measured."""
        smaller, factor = size, 1.0
        while smaller > 1 and not self._known(smaller):
            smaller, factor = smaller // 2, factor * _GROWTH
        return (self._averages[smaller].value or 0.0) * factor if self._known(smaller) else 1e9

    def _known(self, size: int) -> bool:
        return size in self._averages and self._averages[size].value is not None


class _Average:
    """A running average that ignores the first measurement, which may include compilation."""

    def __init__(self) -> None:
        self.value: float | None = None
        self._is_first = True

    def add(self, seconds: float) -> None:
        if self._is_first:
            self._is_first = False
        elif self.value is None:
            self.value = seconds
        else:
            # Cap outliers: one slow measurement on a busy machine must not dominate.
            self.value += _WEIGHT * (min(seconds, 2 * self.value) - self.value)


def _size_of(n_tokens: int) -> int:
    return 1 << max(0, n_tokens - 1).bit_length()
