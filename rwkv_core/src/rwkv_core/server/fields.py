"""Fields that several request bodies share: sampling and stop strings."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from rwkv_core.generation.sampling_parameters import Sampling
from rwkv_core.server.errors import invalid

MAX_STOPS = 16
MAX_CHOICES = 128


class Body(BaseModel):
    """A request's body. Unknown fields are ignored; types are not converted."""

    model_config = ConfigDict(extra="ignore", strict=True, protected_namespaces=())


class StreamOptions(Body):
    """What a stream contains besides the text."""

    include_usage: bool | None = None


def _no_bool(value: Any) -> Any:
    # False equals 0, which a Literal accepts.
    if isinstance(value, bool):
        raise ValueError("Input should be a number")
    return value


Finite = Annotated[float, Field(allow_inf_nan=False)]


class SamplingFields(Body):
    """Sampling parameters. The fields from `top_k` on are not in OpenAI's API.

    Attributes:
        state: the name of a stored state, from which the prompt continues.
        grammar: a grammar in llguidance's Lark syntax, which the text must match.
    """

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    seed: int | None = None
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[Finite, Field(ge=-100, le=100)]] | None = None
    top_k: int | None = None
    min_p: Finite | None = None
    typical_p: Finite | None = None
    repetition_penalty: Finite | None = None
    mirostat: Annotated[Literal[0, 2], BeforeValidator(_no_bool)] | None = None
    mirostat_tau: Finite | None = None
    mirostat_eta: Finite | None = None
    dry_multiplier: Finite | None = None
    dry_base: Finite | None = None
    dry_allowed_length: int | None = None
    ignore_eos: bool | None = None
    grammar: str | None = None
    state: str | None = None

    @property
    def stops(self) -> list[str]:
        stops = [self.stop] if isinstance(self.stop, str) else list(self.stop or ())
        if "" in stops:
            raise invalid("stop: found an empty string, expected text", "stop")
        return stops

    @property
    def includes_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def check_stream_options(self) -> None:
        """Raise ApiError for `stream_options` without `stream`."""
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options: needs stream=true", "stream_options")

    def sampling(self) -> Sampling:
        """Return the request's Sampling. Raises ApiError and OptionError for a wrong value."""
        given: dict[str, Any] = {
            name: value
            for name in (
                "temperature", "presence_penalty", "frequency_penalty", "top_k", "min_p",
                "typical_p", "repetition_penalty",
            )
            if (value := getattr(self, name)) is not None
        }  # fmt: skip
        if self.top_p is not None:
            # OpenAI's 0 keeps only the likeliest token.
            given["top_p"] = max(self.top_p, math.ulp(0.0))
        if self.top_k is not None:
            given["top_k"] = max(self.top_k, 0)  # vLLM's -1 means the same as 0: all tokens
        if self.logit_bias:
            given["logit_bias"] = {_token(key): value for key, value in self.logit_bias.items()}
        return Sampling(**given)

    def processors(self) -> list[str]:
        """Return the request's samplers as names with options, such as "dry:multiplier=0.8"."""
        found = []
        if self.mirostat:
            options = {"tau": self.mirostat_tau, "eta": self.mirostat_eta}
            found.append(_sampler("mirostat", options))
        if self.dry_multiplier:
            options = {
                "multiplier": self.dry_multiplier,
                "base": self.dry_base,
                "allowed_length": self.dry_allowed_length,
            }
            found.append(_sampler("dry", options))
        return found

    def seed_of(self, choice: int) -> int | None:
        """Return the seed of choice number `choice`; each choice has a different one."""
        return None if self.seed is None else (self.seed + choice) % 2**63


def texts_or_tokens(given: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """Return one or more prompts as a list."""
    if isinstance(given, str):
        return [given]
    tokens = [one for one in given if isinstance(one, int)]
    return [tokens] if tokens else [one for one in given if not isinstance(one, int)]


def _token(key: str) -> int:
    if not key.isascii() or not key.isdecimal():
        raise invalid(f"logit_bias: found {key!r:.40}, expected token numbers", "logit_bias")
    return int(key[:20])


def _sampler(name: str, options: dict[str, float | int | None]) -> str:
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    return f"{name}:{','.join(given)}"
