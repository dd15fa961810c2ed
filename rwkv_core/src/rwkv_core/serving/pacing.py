"""How many tokens of a prompt are read between two steps of the batch."""

from __future__ import annotations

# Running texts may wait for prompts so many times as long as one of their steps takes.
_SHARE = 1.8
_MIN_TOKENS, MAX_TOKENS = 16, 512
# Of a new measurement in the average.
_WEIGHT = 0.3
# Twice as many tokens take so many times as long, at best: then they are tried.
_GROWTH = 1.3
# Of what is known of other sizes at each read, so that they are tried again.
_FORGETTING = 0.998


class Pace:
    """Measures steps and reads, so that running texts flow while prompts are read."""

    def __init__(self) -> None:
        self._step = _Average()
        self._reads: dict[int, _Average] = {}

    def note_step(self, seconds: float) -> None:
        """A step of the batch took so long."""
        self._step.add(seconds)

    def note_read(self, n_tokens: int, seconds: float) -> None:
        """Reading `n_tokens` tokens of a prompt took so long."""
        size = _size_of(n_tokens)
        self._reads.setdefault(size, _Average()).add(seconds)
        for other, average in self._reads.items():
            if other != size and average.value is not None:
                average.value *= _FORGETTING

    @property
    def seconds(self) -> float:
        """For how long prompts may be read before the next step."""
        return _SHARE * (self._step.value or 0.0)

    def n_tokens(self) -> int:
        """The tokens to read of a prompt before the next step."""
        size = _MIN_TOKENS
        while size < MAX_TOKENS and self._estimate(2 * size) <= self.seconds:
            size *= 2
        return size

    def fits(self, n_tokens: int, seconds: float) -> bool:
        """Whether there is time to read so many tokens after `seconds` of reading."""
        return seconds + self._estimate(_size_of(n_tokens)) <= self.seconds

    def _estimate(self, size: int) -> float:
        """How long reading `size` tokens takes; of a size not measured, what it may take."""
        smaller, factor = size, 1.0
        while smaller > 1 and not self._known(smaller):
            smaller, factor = smaller // 2, factor * _GROWTH
        return (self._reads[smaller].value or 0.0) * factor if self._known(smaller) else 1e9

    def _known(self, size: int) -> bool:
        return size in self._reads and self._reads[size].value is not None


class _Average:
    """A running average, without the first time: that may be compiling."""

    def __init__(self) -> None:
        self.value: float | None = None
        self._is_first = True

    def add(self, seconds: float) -> None:
        if self._is_first:
            self._is_first = False
        elif self.value is None:
            self.value = seconds
        else:
            # One slow time, when the machine was busy, must not count for many.
            self.value += _WEIGHT * (min(seconds, 2 * self.value) - self.value)


def _size_of(n_tokens: int) -> int:
    return 1 << max(0, n_tokens - 1).bit_length()
