"""Engine: runs many requests on one model."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from rwkv_core.errors import OptionError, PromptTooLongError, QueueFullError
from rwkv_core.generation.choosing import Seed, TokenChooser
from rwkv_core.generation.sampling_parameters import (
    Sampling,
    check_tokens,
    is_whole,
    sampling_with,
)
from rwkv_core.generation.stop_strings import encode_stop_strings
from rwkv_core.generation.stream import FIRST_TOKEN
from rwkv_core.plugins.sampler import Processor
from rwkv_core.serving.constraint import Constraint
from rwkv_core.serving.disk_cache import DiskCache
from rwkv_core.serving.handle import Handle
from rwkv_core.serving.prefix_cache import PrefixCache
from rwkv_core.serving.prompts import Prompts
from rwkv_core.serving.request import Asked, Request
from rwkv_core.serving.results import Completion
from rwkv_core.serving.scheduler import Scheduler
from rwkv_core.serving.stats import Stats
from rwkv_core.state import State
from rwkv_core.tokenizer import check_fits
from rwkv_core.util.utf8 import unfinished_character

if TYPE_CHECKING:
    from rwkv_core.model import Model
    from rwkv_core.tokenizer import Tokenizer

Prompt = str | Sequence[str] | Sequence[int]


class Engine:
    """Runs many requests at the same time on one model, in its own thread.

    A request joins the batch at the next token and leaves when it is done. Except for rounding, a
    request's result does not depend on the other requests. Call `close` at the end, or use `with`.

    Attributes:
        model, tokenizer: the arguments of the constructor.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        *,
        max_batch: int = 16,
        cache_bytes: int = 2**30,
        cache_folder: str | os.PathLike[str] | None = None,
        max_waiting: int = 1024,
        max_prompt: int | None = None,
    ) -> None:
        """Start the thread.

        Arguments:
            max_batch: largest number of requests that run at the same time; others wait.
            cache_bytes: largest size of the prefix cache in bytes; 0 for no cache.
            cache_folder: folder in which the cache is also kept for the next run; None keeps it in
                memory only.
            max_waiting: largest number of waiting requests.
            max_prompt: largest number of tokens in a prompt; None for no limit.

        Raises OptionError for a wrong argument, TokenizerError if the tokenizer does not fit the
        model, and StateError if the folder cannot be written to.
        """
        _check_whole("max_batch", max_batch, 1)
        _check_whole("cache_bytes", cache_bytes, 0)
        _check_whole("max_waiting", max_waiting, 1)
        if max_prompt is not None:
            _check_whole("max_prompt", max_prompt, 1)
        check_fits(tokenizer, model.n_vocab)
        self.model, self.tokenizer = model, tokenizer
        self._max_prompt = max_prompt
        cache, self._disk = PrefixCache(cache_bytes), None
        if cache_folder is not None:
            self._disk = DiskCache(cache_folder, model, tokenizer, cache_bytes)
            for entry in self._disk.load():
                cache.add(entry)
        prompts = Prompts(model, tokenizer, cache, self._disk)
        self._scheduler = Scheduler(model, tokenizer, prompts, max_batch, max_waiting)
        self._thread = threading.Thread(
            target=self._scheduler.run, name="rwkv-core engine", daemon=True
        )
        self._thread.start()
        # Also runs when the interpreter exits: a thread inside a library's code could crash it.
        self._end = weakref.finalize(self, _end, self._scheduler, self._thread, self._disk)

    def submit(
        self,
        prompt: Prompt,
        max_tokens: int,
        *,
        stop_strings: Sequence[str] = (),
        stop_tokens: Collection[int] = (),
        ignore_eos: bool = False,
        sampling: Sampling | None = None,
        seed: Seed = None,
        processors: Sequence[Processor | str] = (),
        state: State | None = None,
        top_logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        constraint: Constraint | None = None,
        keep_state: bool = False,
        max_seconds: float | None = None,
        marks: Collection[int] = (),
        **sampling_options: Any,
    ) -> Handle:
        """Queue a request. Returns at once.

        Arguments:
            prompt: text, tokens, or a list of texts, such as messages. Each text of a list is
                encoded separately, and the cache also keeps the state at the end of each text. With
                an empty prompt, the text continues `state`, or begins a document.
            max_tokens: largest number of tokens to generate. 0 only prefills the prompt.
            stop_strings, stop_tokens, ignore_eos, seed, processors: as for `RWKV.generate`.
            sampling, sampling_options: a Sampling, and parameters by name that override its values.
            state: a single state of this model, from which the prompt continues.
            top_logprobs: return each token's logprob, and the logprobs of this number of likeliest
                tokens.
            prompt_logprobs: the same for each token of the prompt, which is then prefilled in full.
            constraint: restricts the tokens; must not be shared with another request.
            keep_state: return the state after the text.
            max_seconds: time limit of the request in seconds, including the time in the queue. At
                the limit, the request ends with the text so far.
            marks: numbers of prompt tokens after which the cache also keeps the state, for example
                [120] if a system prompt has 120 tokens. Without marks, the cache detects where
                prompts diverge.

        Raises OptionError, TokenizerError and StateError for a wrong argument, PromptTooLongError
        for a prompt of more than `max_prompt` tokens, QueueFullError if `max_waiting` requests
        wait, and EngineClosedError after `close`.
        """
        chosen = sampling_with(sampling, sampling_options)
        _check_whole("max_tokens", max_tokens, 0)
        for name, count in (("top_logprobs", top_logprobs), ("prompt_logprobs", prompt_logprobs)):
            if count is not None:
                _check_whole(name, count, 0)
        _check_seconds(max_seconds)
        check_tokens("marks", marks)
        if state is not None:
            self.model.check_state(state)
        tokens, pending, ends = self._prompt_tokens(prompt, state)
        stops = encode_stop_strings(stop_strings)
        chooser = TokenChooser(
            self.model, self.tokenizer, chosen, processors, stop_tokens, ignore_eos, seed
        )
        asked = Asked(
            prompt=tokens,
            start=state,
            max_tokens=int(max_tokens),
            chooser=chooser,
            n_vocab=self.model.n_vocab,
            stop_strings=tuple(stop_strings),
            stops=stops,
            pending=pending,
            top_logprobs=top_logprobs,
            prompt_logprobs=prompt_logprobs,
            constraint=constraint,
            keep_state=keep_state,
            seconds=max_seconds,
            marks=frozenset([*marks, *ends]),
        )
        return self._queue(asked)

    def embed(
        self,
        prompt: Prompt,
        *,
        state: State | None = None,
        max_seconds: float | None = None,
    ) -> Handle:
        """Queue a prompt whose embedding is computed: see `Model.embed`.

        The result has `embedding`, float32 [D], and no text. If the request ends at `max_seconds`,
        the embedding is None. Arguments and errors are the same as in `submit`. An empty prompt is
        read as the token that begins a document.
        """
        _check_seconds(max_seconds)
        if state is not None:
            self.model.check_state(state)
        tokens, _, ends = self._prompt_tokens(prompt, state)
        asked = Asked(
            prompt=tokens or [FIRST_TOKEN],
            start=state,
            max_tokens=0,
            chooser=TokenChooser(self.model, self.tokenizer, Sampling(), (), (), False, 0),
            n_vocab=self.model.n_vocab,
            seconds=max_seconds,
            marks=frozenset(ends),
            embeds=True,
        )
        return self._queue(asked)

    def _queue(self, asked: Asked) -> Handle:
        handle = Handle(self._wake)
        self._scheduler.submit(Request(asked, handle))
        return handle

    def generate_many(
        self, prompts: Iterable[Prompt], max_tokens: int, **options: Any
    ) -> list[Completion]:
        """Continue all `prompts`, many at the same time. Returns completions in the same order.

        `max_tokens` and `options` are as in `submit`. If a seed is given, all prompts use this
        seed. There may be more prompts than the queue holds. An error of one request cancels all
        requests and is raised.
        """
        handles: list[Handle] = []
        try:
            for prompt in prompts:
                handles.append(self._submit_when_possible(prompt, max_tokens, options))
            return [handle.result for handle in handles]
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise

    def _submit_when_possible(
        self, prompt: Prompt, max_tokens: int, options: dict[str, Any]
    ) -> Handle:
        while True:
            try:
                return self.submit(prompt, max_tokens, **options)
            except QueueFullError:
                self._scheduler.wait_for_room()

    def stats(self) -> Stats:
        """Return the engine's counters."""
        return self._scheduler.stats()

    def close(self, grace: float = 0.0) -> None:
        """Refuse new requests, and wait until the running and waiting requests have ended.

        After `grace` seconds the remaining requests are cancelled.
        """
        self._scheduler.close(grace)
        self._thread.join()
        self._end()

    def _wake(self) -> None:
        # Handles hold this bound method, which keeps the engine alive.
        self._scheduler.wake()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prompt_tokens(
        self, prompt: Prompt, state: State | None
    ) -> tuple[list[int], bytes, list[int]]:
        """Return the tokens, the bytes of an unfinished last character, and the ends of parts."""
        if isinstance(prompt, str):
            tokens, ends = self.tokenizer.encode(prompt), list[int]()
        elif isinstance(prompt, bytes | bytearray) or not isinstance(prompt, Iterable):
            raise OptionError(
                f"prompt: found {prompt!r:.40}, expected text, or a list of texts or of tokens"
            )
        else:
            tokens, ends = self._encoded_parts(list(prompt))
        if self._max_prompt is not None and len(tokens) > self._max_prompt:
            raise PromptTooLongError(
                f"prompt: found {len(tokens)} tokens, expected at most {self._max_prompt}"
            )
        if tokens and max(tokens) >= self.model.n_vocab:
            raise OptionError(
                f"prompt: found token {max(tokens)}, expected 0 to {self.model.n_vocab - 1}"
            )
        begun = state.pending if state is not None else b""
        if not tokens and (state is None or state.logits is None):
            return [FIRST_TOKEN], b"", []
        known = [token for token in tokens if token < self.tokenizer.n_vocab]
        return tokens, unfinished_character(begun + self.tokenizer.to_bytes(known)), ends

    def _encoded_parts(self, parts: list[Any]) -> tuple[list[int], list[int]]:
        """Return the tokens of `parts`, all texts or all tokens, and where each text ends."""
        if not any(isinstance(part, str) for part in parts):
            check_tokens("prompt", parts)
            return [int(part) for part in parts], []
        encoded = [self.tokenizer.encode(part) for part in parts]
        ends = accumulate(len(tokens) for tokens in encoded)
        return [token for tokens in encoded for token in tokens], list(ends)


def _check_whole(name: str, value: object, least: int) -> None:
    if not is_whole(value) or value < least:  # type: ignore[operator]
        raise OptionError(f"{name}: found {value!r}, expected a whole number >= {least}")


def _check_seconds(seconds: object) -> None:
    if seconds is not None and (
        isinstance(seconds, bool)
        or not isinstance(seconds, int | float)
        or not 0 < seconds < math.inf
    ):
        raise OptionError(f"max_seconds: found {seconds!r}, expected a number > 0")


def _end(scheduler: Scheduler, thread: threading.Thread, disk: DiskCache | None) -> None:
    scheduler.close(0.0)
    # A thread may hold the last reference to the engine.
    if thread is not threading.current_thread():
        thread.join()
    if disk is not None:
        disk.close()
