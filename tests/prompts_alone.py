"""Prompts, and what a model gives for one without an engine."""

import rwkv_core
from rwkv_core import RWKV

PROMPTS = [
    "The old man looked at the sea and",
    "It was",
    "In the beginning there was a house on the hill, and nobody knew who had built it. " * 5,
    "She said: ",
    "Once upon a time",
    "A",
]


def alone(rwkv: RWKV, prompt: str, max_tokens: int, **options: object) -> rwkv_core.Generated:
    """What a request gives without an engine."""
    rwkv = RWKV(rwkv.model, tokenizer=rwkv.tokenizer)
    rwkv.load_context(prompt)
    return rwkv.generate(max_tokens, **options)
