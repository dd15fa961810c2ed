"""Samplers: named steps of the sampling chain, with options; some keep a state of their own.

A user names a sampler on the command line (`--sampler mirostat:tau=3,eta=0.1`) or in Python
(`processors=["mirostat:tau=3,eta=0.1"]`). Both rwkv-core's own samplers and the samplers of plugins
are offered through the hook `rwkv_samplers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rwkv_core import plugins
from rwkv_core.backends.descriptor import resolve_options
from rwkv_core.errors import OptionError
from rwkv_core.plugins.sampler import Sampler
from rwkv_core.util.spelling import did_you_mean

if TYPE_CHECKING:
    from rwkv_core.plugins.sampler import Logits, Processor


def started(processors: Sequence[Processor | str]) -> list[Processor]:
    """Return the processors for one generation, as functions (logits, tokens) -> logits.

    A processor that is given as a function is returned as it is. For the name of a sampler, such as
    "mirostat:tau=3", the sampler makes a new function, which may keep a state of its own.

    Raises OptionError for anything else, for an unknown sampler, and for a wrong option.
    """
    if isinstance(processors, str) or not isinstance(processors, Iterable):
        raise OptionError(f"processors: found {processors!r}, expected a list of them")
    return [_started(processor) for processor in processors]


def _started(processor: Processor | str) -> Processor:
    if callable(processor):
        return processor
    if not isinstance(processor, str):
        raise OptionError(
            f"processors: found {processor!r} in the list, expected functions or samplers' names"
        )
    sampler, options = find_sampler(processor)
    process = sampler.start(options)
    if not callable(process):
        raise OptionError(
            f"sampler {sampler.name}: its start returned a {type(process).__name__}, expected a "
            "function (logits, tokens) -> logits: report it there"
        )

    def named(logits: Logits, history: Sequence[int]) -> Logits:
        return process(logits, history)

    named.__name__ = f"sampler {sampler.name}"
    return named


def find_sampler(text: str) -> tuple[Sampler, dict[str, Any]]:
    """Return the sampler that NAME or NAME:KEY=VALUE,KEY=VALUE names, and all its options.

    Raises OptionError if there is no such sampler, or an option is wrong.
    """
    name, _, rest = text.partition(":")
    samplers = plugins.offered("rwkv_samplers")
    if name not in samplers:
        there_are = f"no sampler {name!r} is installed (there are: {', '.join(samplers)})"
        hints = [there_are, did_you_mean(name, samplers), plugins.broken_plugins()]
        raise OptionError("; ".join(filter(None, hints)))
    sampler: Sampler = samplers[name]
    try:
        return sampler, resolve_options(sampler, _pairs(rest))
    except OptionError as error:
        raise OptionError(f"sampler {text}: {error}") from None


def _pairs(text: str) -> dict[str, str]:
    """Return the KEY=VALUE pairs between commas. A part without "=" continues the value before."""
    pairs: dict[str, str] = {}
    name = ""
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if equals and key.strip() in pairs:
            raise OptionError(f"found {key.strip()} twice, expected it once")
        if equals and key.strip():
            name = key.strip()
            pairs[name] = value.strip()
        elif not equals and name:
            pairs[name] += f",{part}"
        else:
            raise OptionError(f"found {part!r}, expected KEY=VALUE, such as tau=3")
    return pairs
