"""Compares a model's precisions with float32 on the same texts.

The precisions are the backend's dtypes, then int8 and int4, prequantized with one group size. A
backend without a kernel for quantized matrices dequantizes them to float32, which does not change
the numbers.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rwkv_core import plugins
from rwkv_core.checkpoint import diagnose, open_checkpoint
from rwkv_core.checkpoint.lora import Lora
from rwkv_core.checkpoint.pqth_writer import check_quantizable
from rwkv_core.dtypes import BYTES_PER_WEIGHT, GROUP_SIZE, QUANTIZED_BITS
from rwkv_core.errors import BackendError, OptionError
from rwkv_core.evaluation.perplexity import Score, compare_tokens, encode, score_tokens
from rwkv_core.loading import load
from rwkv_core.model import Model
from rwkv_core.model_file import known_versions, local_lora, open_model, prequantize
from rwkv_core.rwkv import RWKV
from rwkv_core.sources import local_file
from rwkv_core.tokenizer import load_tokenizer
from rwkv_core.tokenizer.search import fetch_tokenizers
from rwkv_core.util.atomic_write import temporary_folder
from rwkv_core.util.progress import OnProgress

REFERENCE = "float32"


class Comparison(NamedTuple):
    """One precision: the score of all texts together, and its distance from float32."""

    precision: str
    score: Score
    divergence: float
    """Mean KL divergence from float32's predictions, in nats per token."""
    matrix_bytes: int
    """Bytes of all matrices. Decoding reads each matrix once per token."""


class Precisions:
    """Compares a model in all precisions of a backend, one per call of `compare`.

    Attributes:
        backend: the backend whose precisions are compared.
        names: names of the precisions; float32, the reference, is the first.
        reference: the model in float32, on another backend if `backend` has no float32.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        texts: Sequence[tuple[str, str]],
        backend: str | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        *,
        group_size: int = GROUP_SIZE,
        context: int | None = None,
        max_tokens: int | None = None,
        lora: Lora | str | os.PathLike[str] | None = None,
        on_load: OnProgress | None = None,
        **options: Any,
    ) -> None:
        """Load the reference and the tokenizer.

        Arguments:
            model, backend, tokenizer, lora, options: as for `RWKV`; without the option dtype.
            texts: (name, text) pairs.
            context, max_tokens: as for `score`.
            group_size: weights per group of int8 and int4; see `quantize`.

        Raises CheckpointError if the model is quantized already, and the errors of `RWKV`.
        """
        if "dtype" in options:
            raise OptionError("dtype: found one, expected none: all dtypes are compared")
        # The tokenizer comes first, so that its errors show before a long download.
        given = None if tokenizer is None else load_tokenizer(tokenizer)
        if given is None:
            fetch_tokenizers(model)
        self._lora = local_lora(lora)
        self._source, self._options = local_file(model), options
        self._context, self._group_size = context, group_size
        with open_model(self._source, self._lora) as checkpoint:
            config = diagnose(checkpoint, known_versions())
            for bits in QUANTIZED_BITS.values():
                check_quantizable(checkpoint, config, bits, group_size)
        self._n_weights = config.count_parameters().matrices
        self.backend = backend or plugins.start_backend(None, options)[0]
        self._dtypes = _dtypes(self.backend)
        first, own = self.backend, {**options, "dtype": REFERENCE}
        if REFERENCE not in self._dtypes:
            first, own = plugins.default_backend(None, {"dtype": REFERENCE}), {"dtype": REFERENCE}
        rwkv = RWKV(self._source, first, given, on_progress=on_load, lora=self._lora, **own)
        self.reference = rwkv.model
        floats = [name for name in self._dtypes if name not in (REFERENCE, *QUANTIZED_BITS)]
        self.names = [REFERENCE, *floats, *QUANTIZED_BITS]
        encoded = [encode(rwkv.tokenizer, text, name, max_tokens) for name, text in texts]
        self._texts = [tokens for tokens, _ in encoded]
        self._n_tokens, self._n_bytes = sum(map(len, self._texts)), sum(n for _, n in encoded)

    def compare(self, name: str, on_progress: OnProgress | None = None) -> Comparison:
        """Load the model in the precision `name`, one of `names`, score it and free it.

        `on_progress` is called with the number of tokens so far and in all. Raises the errors of
        `load` and `score`.
        """
        if name == REFERENCE:
            return self._compared(name, self.reference, self._bytes_of(name), on_progress)
        if name not in QUANTIZED_BITS:
            own = {**self._options, "dtype": name}
            model = load(self._source, self.backend, lora=self._lora, **own)
            return self._compared(name, model, self._bytes_of(name), on_progress)
        # A backend without this quantized dtype dequantizes the file to this one.
        dtype = REFERENCE if REFERENCE in self._dtypes else name
        options = {**self._options, "dtype": dtype} if self._dtypes else self._options
        with temporary_folder(tempfile.gettempdir()) as folder:
            file = folder / f"{name}.pqth"
            prequantize(self._source, file, QUANTIZED_BITS[name], self._group_size, lora=self._lora)
            n_bytes = _quantized_bytes(file)
            model = load(file, self.backend, **options)
        return self._compared(name, model, n_bytes, on_progress)

    def _bytes_of(self, dtype: str) -> int:
        return round(self._n_weights * BYTES_PER_WEIGHT[dtype])

    def _compared(
        self, name: str, model: Model, matrix_bytes: int, on_progress: OnProgress | None
    ) -> Comparison:
        nats = divergence = seconds = 0.0
        done = 0

        def show(tokens: int, _: int) -> None:
            if on_progress is not None:
                on_progress(done + tokens, self._n_tokens)

        for tokens in self._texts:
            if model is self.reference:
                began = time.perf_counter()
                nats += score_tokens(model, tokens, self._context, show)
                seconds += time.perf_counter() - began
            else:
                found = compare_tokens(self.reference, model, tokens, self._context, show)
                nats, divergence = nats + found[0], divergence + found[1]
                seconds += found[2]
            done += len(tokens)
        score = Score(name, self._n_tokens, self._n_bytes, nats, seconds)
        return Comparison(name, score, divergence / self._n_tokens, matrix_bytes)


def _dtypes(backend: str) -> list[str]:
    """Return a backend's dtypes that have a known size. Raises BackendError for the backend."""
    ready = {row.name: row for row in plugins.list_backends() if row.status == "ready"}
    if backend not in ready:
        raise BackendError(plugins.why_not(backend))
    dtypes = [option.choices for option in ready[backend].options if option.name == "dtype"]
    return [dtype for choices in dtypes for dtype in choices if dtype in BYTES_PER_WEIGHT]


def _quantized_bytes(file: Path) -> int:
    with open_checkpoint(file) as checkpoint:
        matrices = map(checkpoint.read_quantized, checkpoint.tensors)
        return sum(matrix.n_bytes for matrix in matrices if matrix is not None)
