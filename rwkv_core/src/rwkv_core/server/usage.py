"""Counts of tokens, and why a text ended, as OpenAI says them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rwkv_core.serving import Completion

_REASONS = {"stop": "stop", "length": "length", "time": "length", "cancelled": "length"}


def finish_reason(completion: Completion) -> str:
    """ "stop" or "length"."""
    return _REASONS[completion.finish_reason]


def usage(
    completions: Sequence[Completion], n_per_prompt: int = 1, n_thought: int = 0
) -> dict[str, Any]:
    """The `usage` of `completions`, `n_per_prompt` of them for each prompt, one after the other."""
    firsts = [one.usage for one in completions[::n_per_prompt]]
    n_prompt = sum(one.prompt_tokens for one in firsts)
    n_completion = sum(one.usage.completion_tokens for one in completions)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": n_prompt + n_completion,
        "prompt_tokens_details": {"cached_tokens": sum(one.cached_tokens for one in firsts)},
        "completion_tokens_details": {"reasoning_tokens": n_thought},
    }
