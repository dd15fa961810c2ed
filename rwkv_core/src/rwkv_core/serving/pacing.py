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


class Pace:
    """Measures decode steps and prefill chunks, and bounds the chunks by the steps' duration."""

    def __init__(self) -> None:
        self._step = _Average()
        self._reads: dict[int, _Average] = {}

    def note_step(self, seconds: float) -> None:
        """Record the duration of a decode step."""
        self._step.add(seconds)

    def note_read(self, n_tokens: int, seconds: float) -> None:
        """Record the duration of prefilling `n_tokens` tokens."""
        size = _size_of(n_tokens)
        self._reads.setdefault(size, _Average()).add(seconds)
        for other, average in self._reads.items():
            if other != size and average.value is not None:
                average.value *= _FORGETTING

    @property
    def seconds(self) -> float:
        """The time for prefill before the next decode step."""
        return _SHARE * (self._step.value or 0.0)

    def n_tokens(self) -> int:
        """Return the largest chunk size that is estimated to fit in `seconds`."""
        size = _MIN_TOKENS
        while size < MAX_TOKENS and self._estimate(2 * size) <= self.seconds:
            size *= 2
        return size

    def fits(self, n_tokens: int, seconds: float) -> bool:
        """Whether `n_tokens` more tokens fit after `seconds` of prefill."""
        return seconds + self._estimate(_size_of(n_tokens)) <= self.seconds

    def _estimate(self, size: int) -> float:
        """Return the seconds for `size` tokens; from a smaller size if it was never measured."""
        smaller, factor = size, 1.0
        while smaller > 1 and not self._known(smaller):
            smaller, factor = smaller // 2, factor * _GROWTH
        return (self._reads[smaller].value or 0.0) * factor if self._known(smaller) else 1e9

    def _known(self, size: int) -> bool:
        return size in self._reads and self._reads[size].value is not None


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
