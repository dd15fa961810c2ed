"""Faults of the WKV scan."""

from __future__ import annotations

from typing import Any

import numpy as np

from conformance_faults.planting import (
    RIGHT,
    Ops,
    fault,
)


class ScanOps(Ops):
    """The scan step by step, with places for faults."""

    def top(self, pp: Any, now: Any, k: Any) -> Any:
        return np.maximum(pp, now)

    def bonus(self, first: Any) -> Any:
        return first

    def wkv(self, k: Any, v: Any, decay: Any, first: Any, state: Any) -> Any:
        aa, bb, pp = state
        means = []
        with np.errstate(all="ignore"):
            for t in range(k.shape[1]):
                now = self.bonus(first) + k[:, t]
                top = self.top(pp, now, k[:, t])
                old, new = np.exp(pp - top), np.exp(now - top)
                means.append((old * aa + new * v[:, t]) / (old * bb + new))
                top = self.top(pp + decay, k[:, t], k[:, t])
                old, new = np.exp(pp + decay - top), np.exp(k[:, t] - top)
                aa, bb, pp = old * aa + new * v[:, t], old * bb + new, top
        return np.stack(means, axis=1), (aa, bb, pp)


RIGHT["scan"] = ScanOps


@fault("wkv: the maximum leaves out first", "bonuses")
class _(ScanOps):
    def top(self, pp: Any, now: Any, k: Any) -> Any:
        return np.maximum(pp, k)


@fault("wkv: the maximum leaves out the past", "wkv")
class _(ScanOps):
    def top(self, pp: Any, now: Any, k: Any) -> Any:
        return now


@fault("wkv: no maximum", "wkv")
class _(ScanOps):
    def top(self, pp: Any, now: Any, k: Any) -> Any:
        return 0 * now


@fault("wkv: exponents end at 30", "wkv")
class _(ScanOps):
    def wkv(self, k: Any, v: Any, decay: Any, first: Any, state: Any) -> Any:
        return super().wkv(np.clip(k, -30, 30), v, decay, first, state)


@fault("wkv: exponents end at 60 with the bonus", "bonuses")
class _(ScanOps):
    def bonus(self, first: Any) -> Any:
        return np.minimum(first, 60)


@fault("wkv: no bonus", "wkv")
class _(ScanOps):
    def bonus(self, first: Any) -> Any:
        return 0 * first


@fault("wkv: decays twice", "wkv")
class _(Ops):
    def wkv(self, k: Any, v: Any, decay: Any, first: Any, state: Any) -> Any:
        return super().wkv(k, v, 2 * decay, first, state)


@fault("wkv: starts from nothing", "goes_on")
class _(Ops):
    def wkv(self, k: Any, v: Any, decay: Any, first: Any, state: Any) -> Any:
        aa, bb, pp = state
        return super().wkv(k, v, decay, first, (0 * aa, 0 * bb, 0 * pp - np.float32(1e30)))


@fault("wkv: state in another order", "wkv")
class _(Ops):
    def wkv(self, k: Any, v: Any, decay: Any, first: Any, state: Any) -> Any:
        means, (aa, bb, pp) = super().wkv(k, v, decay, first, state)
        return means, (bb, aa, pp)


@fault("wkv: state not of the last token", "wkv")
class _(Ops):
    def wkv(self, k: Any, v: Any, decay: Any, first: Any, state: Any) -> Any:
        means, _ = super().wkv(k, v, decay, first, state)
        if k.shape[1] > 1:
            state = super().wkv(k[:, :-1], v[:, :-1], decay, first, state)[1]
        return means, state


@fault("wkv: works in place on the state", "wkv")
class _(Ops):
    def wkv(self, k: Any, v: Any, decay: Any, first: Any, state: Any) -> Any:
        means, after = super().wkv(k, v, decay, first, state)
        for one, other in zip(state, after, strict=True):
            one[...] = other
        return means, after


@fault("wkv: sums in float16", "wkv")
class _(Ops):
    def wkv(self, k: Any, v: Any, decay: Any, first: Any, state: Any) -> Any:
        means, (aa, bb, pp) = super().wkv(k, v, decay, first, state)
        aa, bb = (part.astype("float16").astype("float32") for part in (aa, bb))
        return means, (aa, bb, pp)


@fault("wkv: sums without a maximum's rescaling", "defaults")
class _(Ops):
    def wkv(self, k: Any, v: Any, decay: Any, first: Any, state: Any) -> Any:
        means, (aa, bb, pp) = super().wkv(k, v, decay, first, state)
        return means, (aa * np.exp(pp / 1000), bb * np.exp(pp / 1000), pp - pp / 1000)


@fault("wkv: state in float64", "wkv")
class _(Ops):
    def wkv(self, k: Any, v: Any, decay: Any, first: Any, state: Any) -> Any:
        means, after = super().wkv(k, v, decay, first, state)
        return means, tuple(part.astype("float64") for part in after)


@fault("wkv: NaN hidden", "nan_stays_nan")
class _(Ops):
    def wkv(self, k: Any, v: Any, decay: Any, first: Any, state: Any) -> Any:
        means, after = super().wkv(k, v, decay, first, state)
        return np.nan_to_num(means), after
