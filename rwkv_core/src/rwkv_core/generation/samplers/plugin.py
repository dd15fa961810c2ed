"""Offers rwkv-core's own samplers through `rwkv_samplers`, the hook that plugins use.

NumPy is imported when a sampler is started, not when samplers are listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rwkv_core.backends.descriptor import Option
from rwkv_core.plugins.hookspecs import hookimpl
from rwkv_core.plugins.sampler import Sampler

if TYPE_CHECKING:
    from rwkv_core.plugins.sampler import Processor


def _mirostat(options: Mapping[str, Any]) -> Processor:
    from rwkv_core.generation.samplers.mirostat import Mirostat

    return Mirostat(**options)


def _dry(options: Mapping[str, Any]) -> Processor:
    from rwkv_core.generation.samplers.dry import Dry

    return Dry(**options)


MIROSTAT = Sampler(
    "mirostat",
    "keeps the text as surprising as tau says (mirostat 2.0, arXiv 2007.14966)",
    _mirostat,
    (
        Option("tau", float, 5.0, "target surprise in bits per token; lower is more focused"),
        Option("eta", float, 0.1, "rate of adaptation to the target, 0 to 1"),
    ),
)
DRY = Sampler(
    "dry",
    "penalizes tokens that would repeat an earlier sequence (DRY, by p-e-w)",
    _dry,
    (
        Option("multiplier", float, 0.8, "penalty of a repetition of allowed_length tokens"),
        Option("base", float, 1.75, "factor of the penalty for each further token"),
        Option("allowed_length", int, 2, "length in tokens of the shortest penalized repetition"),
        Option("breakers", list, [], "numbers of tokens at which a repetition ends"),
    ),
)


@hookimpl
def rwkv_samplers() -> list[Sampler]:
    """Describe rwkv-core's own samplers."""
    return [MIROSTAT, DRY]
