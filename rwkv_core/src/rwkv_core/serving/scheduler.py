"""Runs the model in one thread: decode steps of the batch alternate with chunks of prefill."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from rwkv_core.errors import EngineClosedError, QueueFullError
from rwkv_core.serving.batch import Batch
from rwkv_core.serving.drawing import Drawn, End, draw, end_of_all, grow, take_forced
from rwkv_core.serving.pacing import MAX_TOKENS
from rwkv_core.serving.prompts import Prompts
from rwkv_core.serving.results import Completion, FinishReason, Times, Usage
from rwkv_core.serving.settling import mark_held_text, settled
from rwkv_core.serving.stats import Stats
from rwkv_core.state import State
from rwkv_core.util.threads import available_threads

if TYPE_CHECKING:
    from rwkv_core.model import Model
    from rwkv_core.serving.request import Request
    from rwkv_core.tokenizer import Tokenizer


class Scheduler:
    """Holds the requests, and runs them in `run`, which must be called in one thread only."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        prompts: Prompts,
        max_batch: int,
        max_waiting: int,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._max_batch, self._max_waiting = max_batch, max_waiting
        self._changed = threading.Condition()
        self._waiting: list[Request] = []
        self._prompts = prompts
        self._batch: Batch[Request] = Batch(model, max_batch)
        self._pool = ThreadPoolExecutor(
            min(available_threads(), max_batch), thread_name_prefix="rwkv-core drawing"
        )
        self._shortest_first = False
        self._closing: float | None = None
        self._counts: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()

    def submit(self, request: Request) -> None:
        """Put a request into the queue.

        Raises QueueFullError if `max_waiting` requests wait, and EngineClosedError after `close`.
        """
        with self._changed:
            if self._closing is not None:
                raise EngineClosedError("the engine is closed: it takes no more requests")
            if len(self._waiting) >= self._max_waiting:
                raise QueueFullError(
                    f"the queue is full: {len(self._waiting)} requests wait; try again later"
                )
            self._waiting.append(request)
            self._changed.notify_all()

    def wait_for_room(self) -> None:
        """Wait until the queue takes another request, or the engine is closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._waiting) < self._max_waiting or self._closing is not None
            )

    def wake(self) -> None:
        """Wake the thread, so that it sees cancelled requests."""
        with self._changed:
            self._changed.notify_all()

    def close(self, grace: float) -> None:
        """Refuse new requests. `run` returns when the running and waiting requests have ended.

        After `grace` seconds, the requests that have not ended are cancelled.
        """
        with self._changed:
            end = time.monotonic() + grace
            self._closing = end if self._closing is None else min(self._closing, end)
            self._changed.notify_all()

    def stats(self) -> Stats:
        with self._changed:
            counts, cache = self._counts, self._prompts.cache
            return Stats(
                waiting=len(self._waiting),
                reading=len(self._prompts.requests),
                running=len(self._batch),
                prompt_tokens=self._prompts.n_tokens,
                cached_tokens=self._prompts.n_cached,
                completion_tokens=counts["completion_tokens"],
                steps=counts["steps"],
                step_rows=counts["step_rows"],
                cache_bytes=cache.nbytes,
                cache_entries=len(cache),
                cache_lookups=cache.lookups,
                cache_hits=cache.hits,
                finished=dict(self._finished),
            )

    def run(self) -> None:
        """Run requests until `close` was called and all requests have ended."""
        with self._pool:
            self._run()

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._drop_ended()
                self._admit()
                self._step()
            except Exception as error:  # A bug in the engine ends all requests with the error.
                for request in [*self._waiting, *self._prompts.requests, *self._batch.members]:
                    self._fail(request, error)

    def _wait_for_work(self) -> bool:
        """Wait for a request. Returns False if the engine is closed and no request is left."""
        with self._changed:
            while not (self._waiting or self._prompts.requests or len(self._batch)):
                if self._closing is not None:
                    return False
                self._changed.wait()
        return True

    def _drop_ended(self) -> None:
        """End cancelled and late requests; when the grace period is over, end all requests."""
        over = self._closing is not None and time.monotonic() >= self._closing
        for request in [*self._waiting, *self._prompts.requests, *self._batch.members]:
            if over or request.handle.is_cancelled:
                self._finish(request, end_of_all(request, "cancelled"))
            elif request.is_late:
                self._finish(request, end_of_all(request, "time"))

    def _admit(self) -> None:
        while self._waiting and len(self._prompts.requests) + len(self._batch) < self._max_batch:
            with self._changed:
                request = self._waiting.pop(0)
                try:
                    self._prompts.begin(request)
                except Exception as error:
                    self._fail(request, error)
                self._changed.notify_all()

    def _step(self) -> None:
        """Decode a token for each request in the batch, then prefill waiting prompts for a while.

        Prefill takes at most as long as the requests in the batch may wait (`pacing`). Where it is
        faster, the first chunk of a prompt is read in the same pass as the batch's tokens. Every
        second step prefills the shortest prompt first, and the other steps prefill in the order of
        arrival. If the batch is empty, one chunk is read.
        """
        self._shortest_first = not self._shortest_first
        prompts = list(self._prompts.requests)
        if self._shortest_first:
            prompts.sort(key=lambda request: len(request.unread))
        first = next((request for request in prompts if request.leader is None), None)
        seconds = 0.0
        if len(self._batch) and first is not None and self._prompts.may_share_a_pass(first):
            prompts.remove(first)
            seconds = self._decode_beside(first)
        elif len(self._batch):
            self._decode()
        self._read_prompts(prompts, seconds)

    def _decode(self) -> None:
        """Decode one token for each request in the batch, and draw its next token."""
        members = self._batch.members
        begin = time.monotonic()
        try:
            rows = self._batch.step({member: member.next_token for member in members})
        except Exception as error:
            for member in members:
                self._fail(member, error)
            return
        self._note_step(members, rows)
        self._prompts.pace.note_step(time.monotonic() - begin)

    def _decode_beside(self, request: Request) -> float:
        """Decode, and read a chunk of `request` in the same pass. Returns the chunk's seconds."""
        members, pace = self._batch.members, self._prompts.pace
        tokens = {member: member.next_token for member in members}
        n_tokens = self._prompts.next_tokens(request, pace.n_tokens_beside())
        begin = time.monotonic()
        try:
            rows, request.logits, request.state = self._batch.step_beside(
                tokens, request.unread[:n_tokens], request.state
            )
        except Exception as error:
            self._fail(request, error)  # The members go on, without it.
            return 0.0
        self._note_step(members, rows)
        seconds = pace.note_pass(n_tokens, time.monotonic() - begin)
        self._prompts.note_read(request, n_tokens)
        self._draw_first(request)
        return seconds

    def _note_step(self, members: list[Request], rows: Any) -> None:
        """Draw each member's next token from its row of logits."""
        self._counts["steps"] += 1
        self._counts["step_rows"] += len(members)
        for member in members:
            member.n_read += 1
        # NumPy releases the GIL, so threads draw in parallel.
        draws = (map if len(members) == 1 else self._pool.map)(self._draw, members, rows)
        for member, drawn in zip(members, draws, strict=True):
            self._go_on(member, drawn)

    def _read_prompts(self, requests: list[Request], seconds: float) -> None:
        """Prefill chunks of `requests`, for as long as the batch may wait after `seconds`."""
        pace, n_reads = self._prompts.pace, 0
        begin = time.monotonic() - seconds
        for request in requests:
            if request.leader is not None or request not in self._prompts.requests:
                continue
            most = pace.n_tokens() if len(self._batch) else MAX_TOKENS
            n_tokens = self._prompts.next_tokens(request, most)
            if (n_reads or seconds) and not pace.fits(n_tokens, time.monotonic() - begin):
                return
            self._read(request, n_tokens)
            n_reads += 1

    def _read(self, request: Request, n_tokens: int) -> None:
        """Prefill the next `n_tokens` tokens of a request, and draw a token after the last."""
        try:
            self._prompts.read(request, n_tokens)
        except Exception as error:
            self._fail(request, error)
            return
        self._draw_first(request)

    def _draw_first(self, request: Request) -> None:
        """Draw a token after a prompt, if it is read."""
        if request.unread:
            return
        if request.asked.embeds or not request.asked.max_tokens:
            self._finish(request, End("length"))
            return
        self._go_on(request, self._draw(request, request.logits))

    def _draw(self, request: Request, logits: Any) -> Drawn | Exception:
        try:
            return draw(self._tokenizer, request, logits)
        except Exception as error:
            return error

    def _go_on(self, request: Request, drawn: Drawn | Exception) -> None:
        """Add the drawn token to a request's text, give out a piece, and place or end the request.

        `drawn` is an exception if drawing failed.
        """
        n_tokens = len(request.text.tokens)
        try:
            if isinstance(drawn, Exception):
                raise drawn
            end = grow(request, drawn) or take_forced(self._tokenizer, request)
            self._counts["completion_tokens"] += len(request.text.tokens) - n_tokens
            if end is not None:
                self._finish(request, end)
                return
            piece = request.text.next_piece()
            if request.asked.keep_state:
                mark_held_text(request, self._state_of)
            self._place(request)
        except Exception as error:
            self._fail(request, error)
            return
        if piece is not None:
            request.handle.put(piece)

    def _place(self, request: Request) -> None:
        """Move a request into the batch, or back to prefill if it has tokens to read."""
        in_batch = request in self._batch
        with self._changed:
            if request.unread and in_batch:
                request.state = self._state_of(request)
                self._batch.remove(request)
                self._prompts.requests.append(request)
            elif not request.unread and not in_batch:
                assert request.state is not None
                self._batch.add(request, request.state.array)
                self._prompts.remove(request)
                request.state = None

    def _state_of(self, request: Request) -> State:
        """Return the state after the tokens that a request has read, with its logits."""
        if request in self._batch:
            array = self._batch.row(request)
        else:
            array = (request.state or self._model.empty_state()).array
        logits, ops = request.logits, self._model.ops
        if logits is not None:
            logits = ops.xp.astype(ops.vector(logits), ops.xp.float32, copy=False)
        return State(array, logits, model=self._model.fingerprint)

    def _finish(self, request: Request, end: End) -> None:
        try:
            completion, piece = self._completed(request, end)
        except Exception as error:
            self._fail(request, error)
            return
        self._remove(request, end.reason)
        if piece is not None:
            request.handle.put(piece)
        request.handle.put(completion=completion)

    def _completed(self, request: Request, end: End) -> tuple[Completion, Any]:
        asked, text = request.asked, request.text
        state = None
        n_drawn = len(text.tokens)
        if request in self._batch:
            self._prompts.keep(request, self._batch.row(request))
        if asked.keep_state and request.n_read >= request.n_prompt:
            before = self._state_of(request)
            state = settled(self._model, self._tokenizer, request, before, end.place)
        piece = text.last_piece(end.place)
        now = time.monotonic()
        started = now if request.started is None else request.started
        first = request.first_token
        completion = Completion(
            text=text.text.text(),
            tokens=tuple(text.tokens),
            finish_reason=end.reason,
            stop=end.stop,
            usage=Usage(request.n_prompt, request.n_cached, n_drawn),
            times=Times(
                queued=started - request.submitted,
                first_token=None if first is None else first - request.submitted,
                total=now - request.submitted,
            ),
            logprobs=tuple(text.logprobs),
            prompt_logprobs=tuple(request.prompt_logprobs),
            state=state,
            embedding=request.embedding,
        )
        return completion, piece

    def _fail(self, request: Request, error: BaseException) -> None:
        self._remove(request, "error")
        request.handle.put(error=error)

    def _remove(self, request: Request, reason: FinishReason | str) -> None:
        with self._changed:
            self._finished[reason] += 1
            if request in self._waiting:
                self._waiting.remove(request)
            elif request in self._prompts.requests:
                self._prompts.remove(request)
            elif request in self._batch:
                self._batch.remove(request)
            self._changed.notify_all()
