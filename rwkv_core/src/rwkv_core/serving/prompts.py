"""Prefills prompts in chunks, from the longest cached prefix; shared prefixes are computed once."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from rwkv_core.generation.transcript import bytes_of
from rwkv_core.serving.logprobs import token_logprob
from rwkv_core.serving.pacing import Pace
from rwkv_core.serving.prefix_cache import Entry, PrefixCache, n_same
from rwkv_core.serving.results import TokenLogprob
from rwkv_core.state import State

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rwkv_core.model import Model
    from rwkv_core.serving.disk_cache import DiskCache
    from rwkv_core.serving.request import Request
    from rwkv_core.tokenizer import Tokenizer

# Prompt tokens between two cached states. The interval is longer if the cache has room for fewer
# than _MIN_STATES states: otherwise one long prompt would fill it.
_KEEP_EVERY, _MIN_STATES = 256, 64
# A shorter shared prefix is not worth an entry of its own or a wait.
_MIN_SHARED = 16
# Largest chunk if the logits after each token are needed: 17 MB for World's vocabulary.
_MAX_LOGITS = 64


class Prompts:
    """The requests that have tokens to prefill.

    Attributes:
        requests: the requests, in the order in which they came.
        cache: the states after prompts and their prefixes.
        pace: the measured durations of prefill chunks and decode steps.
        n_tokens, n_cached: number of prompt tokens so far, and number of these whose state came
            from the cache.
    """

    def __init__(
        self, model: Model, tokenizer: Tokenizer, cache: PrefixCache, disk: DiskCache | None
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self.cache, self.pace, self._disk = cache, Pace(), disk
        self.requests: list[Request] = []
        n_bytes = model.to_numpy(model.empty_state()).nbytes + 4 * model.n_vocab
        self._keep_every = _KEEP_EVERY * max(1, _MIN_STATES * n_bytes // max(1, cache.max_bytes))
        self.n_tokens = self.n_cached = 0
        self._roots: WeakKeyDictionary[State, bytes] = WeakKeyDictionary()

    def begin(self, request: Request) -> None:
        """Add a request, and look up its prompt in the cache."""
        request.started = time.monotonic()
        self.n_tokens += request.n_prompt
        start = request.asked.start
        request.root = b"" if start is None else self._root_of(start)
        if start is not None and start.logits is not None:
            request.logits = self._model.to_numpy(start.logits)
        self._find_beginning(request)
        self.requests.append(request)

    def remove(self, request: Request) -> None:
        """Remove a request that has ended or joins the batch."""
        self.requests.remove(request)
        left = [other for other in self.requests if other.leader is request]
        for other in left:
            other.leader = None
        for other in left:
            self._find_beginning(other)

    def next_tokens(self, request: Request, n_tokens: int) -> int:
        """Return the size of a request's next chunk, at most `n_tokens`; 0 if it waits."""
        if request.leader is not None:
            return 0
        n_tokens = min(n_tokens, len(request.unread))
        if request.asked.prompt_logprobs is not None:
            n_tokens = min(n_tokens, _MAX_LOGITS)
        if request.n_read >= request.n_prompt:
            return n_tokens
        stops = [place for place in request.marks if place > request.n_read]
        stops += [request.n_prompt, (request.n_read // self._keep_every + 1) * self._keep_every]
        return min(n_tokens, min(stops) - request.n_read)

    def may_share_a_pass(self, request: Request) -> bool:
        """Whether a request's next chunk is read in the same pass as a decode step."""
        asked = request.asked
        plain = asked.prompt_logprobs is None and not asked.embeds
        return self._model.ops.ragged and self.pace.knows_step and plain and bool(request.unread)

    def read(self, request: Request, n_tokens: int) -> None:
        """Prefill the next `n_tokens` tokens of a request. Raises what `Model.forward` raises."""
        if n_tokens == 0:
            return
        begin = time.monotonic()
        tokens = request.unread[:n_tokens]
        if request.asked.embeds and n_tokens == len(request.unread):
            found = self._model.embed(tokens, request.state)
            request.embedding = self._model.to_numpy(found)
        else:
            self._forward(request, tokens)
        self.pace.note_read(n_tokens, time.monotonic() - begin)
        self.note_read(request, n_tokens)

    def note_read(self, request: Request, n_tokens: int) -> None:
        """Count the next `n_tokens` tokens of a request as read; its state and logits are set."""
        del request.unread[:n_tokens]
        request.n_read += n_tokens
        if request.embedding is None and request.n_read <= request.n_prompt:
            self._share(request)

    def keep(self, request: Request, array: Any) -> None:
        """Cache `array` [L, R, D], the state after all tokens that a request has read."""
        tokens = [*request.asked.prompt, *request.text.tokens][: request.n_read]
        if not self.cache.max_bytes or request.logits is None or not tokens:
            return
        if self.cache.has(request.root, tokens):
            return
        state, logits = self._model.to_numpy(array), np.array(request.logits, np.float32)
        entry = Entry(request.root, np.array(tokens, np.int64), state, logits)
        dropped = self.cache.add(entry)
        # An entry that is too large for the cache is dropped at once.
        if self._disk is not None and dropped != [entry]:
            for one in dropped:
                self._disk.remove(one)
            self._disk.save(entry)

    def _forward(self, request: Request, tokens: list[int]) -> None:
        wanted = request.asked.prompt_logprobs
        every = wanted is not None and request.n_read < request.n_prompt
        logits, request.state = self._model.forward(tokens, request.state, all_logits=every)
        found = self._model.to_numpy(logits)
        if every and wanted is not None:
            self._note_logprobs(request, tokens, found, wanted)
            found = found[-1]
        request.logits = found

    def _note_logprobs(
        self, request: Request, tokens: list[int], rows: NDArray[Any], n_top: int
    ) -> None:
        """Record the logprob of each of `tokens`. `rows` [n, V] are the logits after each token."""
        before = [request.logits, *rows[:-1]]
        for token, logits in zip(tokens, before, strict=True):
            data = bytes_of(self._tokenizer, token)
            request.prompt_logprobs.append(
                TokenLogprob(token, data, None)
                if logits is None
                else token_logprob(logits, token, data, n_top)
            )

    def _find_beginning(self, request: Request) -> None:
        """Start from the longest cached prefix, or wait while another request prefills more."""
        asked = request.asked
        # Logprobs need all logits, an embedding the last token's hidden state.
        usable = request.n_prompt - asked.embeds
        if asked.prompt_logprobs is not None or usable <= 0:
            return
        found = self.cache.find(request.root, asked.prompt[:usable])
        n_known = max(request.n_read, 0 if found.entry is None else len(found.entry.tokens))
        leader, n_shared = self._leader_of(request, usable)
        if n_shared >= n_known + _MIN_SHARED:
            assert leader is not None
            leader.marks.add(n_shared)
            request.leader, request.awaited = leader, n_shared
            return
        if found.entry is not None and n_known > request.n_read:
            state = State(self._model.ops.vector(found.entry.state), model=self._model.fingerprint)
            self._take_over(request, n_known, state, found.entry.logits)
        if found.n_shared >= n_known + _MIN_SHARED:
            # Two prompts diverge here; a third prompt may diverge at the same token.
            request.marks.add(found.n_shared)

    def _leader_of(self, request: Request, usable: int) -> tuple[Request | None, int]:
        """Return the request that will prefill the longest shared prefix, and its length."""
        best, best_shared = None, 0
        wanted = np.array(request.asked.prompt[:usable], np.int64)
        for other in self.requests:
            if other is request or other.leader is not None or other.root != request.root:
                continue
            n_shared = n_same(wanted, np.array(other.asked.prompt, np.int64))
            n_shared = min(n_shared, other.n_prompt - other.asked.embeds)
            if n_shared > max(other.n_read, best_shared):
                best, best_shared = other, n_shared
        return best, best_shared

    def _share(self, request: Request) -> None:
        """Cache a request's state if it is at a mark, and pass it to the requests that wait."""
        state, place = request.state, request.n_read
        assert state is not None and request.logits is not None
        if place in (request.n_prompt, *request.marks) or place % self._keep_every == 0:
            self.keep(request, state.array)
        for other in self.requests:
            if other.leader is request and other.awaited == place:
                other.leader = None
                self._take_over(other, place, state, request.logits)

    def _take_over(
        self, request: Request, place: int, state: State, logits: NDArray[np.floating[Any]]
    ) -> None:
        request.state, request.logits = state, logits
        self.n_cached += place - request.n_cached
        request.n_read = request.n_cached = place
        request.unread = request.asked.prompt[place:]

    def _root_of(self, start: State) -> bytes:
        """Return the digest of a start state's values: the `Entry.root` of all states after it."""
        found = self._roots.get(start)
        if found is None:
            values = self._model.to_numpy(start).tobytes()
            found = self._roots[start] = hashlib.sha256(values).digest()
        return found
