"""Decides how many prompt tokens are prefilled between two decode steps of the batch."""

from __future__ import annotations

# Prefill between two decode steps takes at most 1.8 times as long as a step.
_SHARE = 1.8
MAX_TOKENS = 512
# Chunk sizes between two steps: few, as some backends compile for each.
_SIZES = (16, 32, 64, 128, 256, MAX_TOKENS)
# Chunk sizes beside a step, in the same pass.
_SIZES_BESIDE = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, MAX_TOKENS)
# Weight of a new measurement in the running average.
_WEIGHT = 0.3
# Estimate for a size that was never measured: so many times as long as the next smaller size. It is
# optimistic, so that larger sizes are tried.
_GROWTH, _GROWTH_BESIDE = 1.3, 1.25
# Each measurement multiplies the averages of all other sizes by this, so that they are tried again.
_FORGETTING = 0.998
# After so many passes that decode and prefill, a step that only decodes is measured again.
_MAX_PASSES = 16


class Pace:
    """Measures decode steps and prefill chunks, and bounds the chunks by the steps' duration."""

    def __init__(self) -> None:
        self._step = _Average()
        self._reads = _Chunks(_SIZES, _GROWTH)
        self._passes = _Chunks(_SIZES_BESIDE, _GROWTH_BESIDE)
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

        Returns the seconds that prefill added to the decode step.
        """
        self._n_passes += 1
        self._passes.add(n_tokens, seconds)
        return max(0.0, seconds - (self._step.value or 0.0))

    @property
    def knows_step(self) -> bool:
        """Whether a decode step's duration is known, and was measured not long ago."""
        return self._step.value is not None and self._n_passes < _MAX_PASSES

    @property
    def seconds(self) -> float:
        """The time for prefill before the next decode step."""
        return _SHARE * (self._step.value or 0.0)

    def n_tokens(self) -> int:
        """Return the largest chunk size that is estimated to fit between two decode steps."""
        return self._reads.largest(self.seconds)

    def n_tokens_beside(self) -> int:
        """Return the largest chunk size that is estimated to fit in one pass with a step."""
        return self._passes.largest((1 + _SHARE) * (self._step.value or 0.0))

    def fits(self, n_tokens: int, seconds: float) -> bool:
        """Whether `n_tokens` more tokens fit after `seconds` of prefill."""
        return seconds + self._reads.estimate(n_tokens) <= self.seconds


class _Chunks:
    """The running averages of chunks' durations, by size.

    For chunks with fewer tokens than the smallest size, the sizes are powers of two.
    """

    def __init__(self, sizes: tuple[int, ...], growth: float) -> None:
        self._smallest, self._growth = sizes[0], growth
        self._sizes = (*(2**i for i in range(20) if 2**i < sizes[0]), *sizes)
        self._averages = {size: _Average() for size in self._sizes}

    def add(self, n_tokens: int, seconds: float) -> None:
        size = self._size_of(n_tokens)
        self._averages[size].add(seconds)
        for other, average in self._averages.items():
            if other != size and average.value is not None:
                average.value *= _FORGETTING

    def largest(self, seconds: float) -> int:
        """Return the largest size that is estimated to take `seconds`; at least the smallest."""
        fitting = self._smallest
        for size in self._sizes:
            if size > fitting:
                if self.estimate(size) > seconds:
                    break
                fitting = size
        return fitting

    def estimate(self, n_tokens: int) -> float:
        """Return the seconds for so many tokens; from a smaller size if it was never measured."""
        factor = 1.0
        for size in reversed([size for size in self._sizes if size <= self._size_of(n_tokens)]):
            value = self._averages[size].value
            if value is not None:
                return value * factor
            factor *= self._growth
        return 1e9

    def _size_of(self, n_tokens: int) -> int:
        return next(size for size in self._sizes if size >= min(n_tokens, MAX_TOKENS))


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
