"""Token counts and finish reasons in OpenAI's format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rwkv_core.serving import Completion

_REASONS = {"stop": "stop", "length": "length", "time": "length", "cancelled": "length"}


def finish_reason(completion: Completion) -> str:
    """Return OpenAI's finish reason: "stop" or "length"."""
    return _REASONS[completion.finish_reason]


def usage(
    completions: Sequence[Completion], n_per_prompt: int = 1, n_thought: int = 0
) -> dict[str, Any]:
    """Return the `usage` of `completions`.

    The first `n_per_prompt` completions are those of the first prompt, and so on. `n_thought` is
    the number of tokens in thoughts.
    """
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
