"""The states of the running requests in one array; requests join and leave between steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from rwkv_core.state import State

if TYPE_CHECKING:
    from rwkv_core.model import Model

Member = TypeVar("Member")

# The array shrinks only after so many steps with too many rows: growing it again copies all rows.
_STEPS_BEFORE_SHRINKING = 16


class Batch(Generic[Member]):
    """Members, such as requests, that are decoded together.

    The states of all members are the rows of one array [C, L, R, D]. C is 1, 2, 4, 8, ... or
    `max_rows`: few sizes, since some backends compile for each shape. Rows without a member are
    computed too, and their results are dropped.
    """

    def __init__(self, model: Model, max_rows: int) -> None:
        self._model = model
        self._sizes = [2**i for i in range(max_rows.bit_length()) if 2**i < max_rows] + [max_rows]
        self._members: list[Member | None] = []
        self._places: dict[Member, int] = {}
        self._array: Any = None
        self._surplus_steps = 0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, member: object) -> bool:
        return member in self._places

    @property
    def members(self) -> list[Member]:
        """The members in the order of their rows."""
        return [member for member in self._members if member is not None]

    def add(self, member: Member, row: Any) -> None:
        """Give `member` a row that holds the state `row` [L, R, D]."""
        if None not in self._members:
            self._resize(self._size_for(len(self) + 1), row)
        place = self._members.index(None)
        self._members[place] = member
        self._places[member] = place
        try:
            self._array[place, ...] = row
        except TypeError:  # the library's arrays are immutable
            rows = self._rows()
            rows[place] = row
            self._array = self._model.ops.xp.stack(rows)

    def remove(self, member: Member) -> None:
        """Free a member's row."""
        self._members[self._places.pop(member)] = None
        if not self._places:
            self._members, self._array = [], None

    def row(self, member: Member) -> Any:
        """Return a copy of a member's row [L, R, D]."""
        place = self._places[member]
        return self._model.ops.xp.asarray(self._array[place, ...], copy=True)

    def step(self, tokens: dict[Member, int]) -> NDArray[np.float32]:
        """Decode one token for each member. Returns logits [n, V] in the order of `members`."""
        column, batch = self._next_step(tokens)
        logits, after = self._model.forward([[token] for token in column], batch)
        self._array = after.array
        return self._of_members(self._model.ops.to_numpy(logits))

    def step_beside(
        self, tokens: dict[Member, int], chunk: list[int], state: State | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], State]:
        """Decode one token for each member, and read a chunk of a prompt in the same pass.

        Returns the logits of the members [n, V], the logits after the chunk's last token [V], and
        the state after the chunk.
        """
        column, batch = self._next_step(tokens)
        state = state or self._model.empty_state()
        logits, after = self._model.forward_ragged(chunk, state, column, batch)
        self._array = after.array[1:, ...]
        found = self._model.ops.to_numpy(logits)
        # A copy, so that a kept state does not keep the whole batch in memory.
        own = self._model.ops.xp.asarray(after.array[0, ...], copy=True)
        read = State(own, model=self._model.fingerprint)
        return self._of_members(found[1:]), found[0].copy(), read

    def _next_step(self, tokens: dict[Member, int]) -> tuple[list[int], State]:
        """Return each row's next token, and the state of all rows."""
        self._shrink_if_long_enough()
        column = [0 if member is None else tokens[member] for member in self._members]
        return column, State(self._array, model=self._model.fingerprint)

    def _of_members(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        places = [place for place, member in enumerate(self._members) if member is not None]
        return rows if len(places) == len(rows) else rows[places]

    def _size_for(self, n_rows: int) -> int:
        return next(size for size in self._sizes if size >= n_rows)

    def _rows(self) -> list[Any]:
        return [self._array[place, ...] for place in range(len(self._members))]

    def _shrink_if_long_enough(self) -> None:
        size = self._size_for(len(self))
        self._surplus_steps = self._surplus_steps + 1 if size < len(self._members) else 0
        if self._surplus_steps > _STEPS_BEFORE_SHRINKING:
            self._resize(size, None)
            self._surplus_steps = 0

    def _resize(self, size: int, filling: Any) -> None:
        """Copy the members' rows into an array of `size` rows; free rows get `filling`."""
        rows = [
            row
            for member, row in zip(self._members, self._rows(), strict=True)
            if member is not None
        ]
        filling = rows[0] if filling is None else filling
        n_free = size - len(rows)
        self._array = self._model.ops.xp.stack([*rows, *[filling] * n_free])
        self._members = [*self.members, *[None] * n_free]
        self._places = {member: place for place, member in enumerate(self.members)}
