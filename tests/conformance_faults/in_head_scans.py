"""Faults of the scans of RWKV-5 to 7."""

from __future__ import annotations

from typing import Any

import numpy as np

from conformance_faults.in_heads import one_per_head, transposed
from conformance_faults.planting import Ops, fault, spoil


class Changed(Ops):
    """Both scans, with places for faults: their arguments and their results."""

    def given(self, name: str, parts: dict[str, Any]) -> dict[str, Any]:
        return parts

    def result(self, name: str, parts: dict[str, Any], y: Any, s: Any) -> tuple[Any, Any]:
        return y, s

    def _run(self, name: str, **parts: Any) -> tuple[Any, Any]:
        changed = self.given(name, parts)
        y, s = getattr(super(), name)(*changed.values())
        return self.result(name, parts, y, s)

    def wkv6(self, r: Any, w: Any, k: Any, v: Any, bonus: Any, s: Any) -> tuple[Any, Any]:
        return self._run("wkv6", r=r, w=w, k=k, v=v, bonus=bonus, s=s)

    def wkv7(self, r: Any, w: Any, k: Any, v: Any, kk: Any, b: Any, s: Any) -> tuple[Any, Any]:
        return self._run("wkv7", r=r, w=w, k=k, v=v, kk=kk, b=b, s=s)


def of_scans(name: str, scans: str = "67", caught_by: str = "head_scans", **methods: Any) -> None:
    """A fault of one scan or of both; `given` and `result` as in `Changed`, without `self`."""
    for number in scans:

        def bound(method: Any, right: Any, scan: str = f"wkv{number}") -> Any:
            def run(self: Any, name: str, *arguments: Any) -> Any:
                return method(*arguments) if name == scan else right(self, name, *arguments)

            return run

        changes = {key: bound(method, getattr(Changed, key)) for key, method in methods.items()}
        fault(f"wkv{number}: {name}", caught_by)(type("Spoiled", (Changed,), changes))


def last_read_before(parts: dict[str, Any], y: Any, s: Any) -> tuple[Any, Any]:
    """S before the last token, as if a chunk had not been completed."""
    return y, s * np.float32(0.9)


of_scans("bonus left out", "6", given=lambda p: p | {"bonus": 0 * p["bonus"]})
of_scans("bonus of another head", "6", given=lambda p: p | {"bonus": np.roll(p["bonus"], 32)})
of_scans(
    "decay one per head for one per channel",
    given=lambda p: p | {"w": one_per_head(p["w"], p["s"].shape[1])},
)
of_scans("decays held above 0", "6", "0_and_of_1", given=lambda p: p | {"w": p["w"].clip(1e-2)})
of_scans(
    "decays held below 1", "6", "0_and_of_1", given=lambda p: p | {"w": p["w"].clip(0, 1 - 1e-3)}
)
of_scans("exp(-exp) clamped", "6", given=lambda p: p | {"w": p["w"].clip(np.exp(-np.exp(1.5)))})
of_scans("a decay for all tokens", given=lambda p: p | {"w": p["w"][..., :1, :] + 0 * p["k"]})
of_scans("starts from nothing", caught_by="goes_on", given=lambda p: p | {"s": 0 * p["s"]})
of_scans("a state transposed where it comes in", given=lambda p: p | {"s": transposed(p["s"])})
of_scans("the state transposed", result=lambda p, y, s: (y, transposed(s)))
of_scans("k and v exchanged", given=lambda p: p | {"k": p["v"], "v": p["k"]})
of_scans("state faded once more", result=last_read_before)
of_scans("state in float16", result=lambda p, y, s: (y, s.astype("float16").astype("float32")))
of_scans("state in float64", result=lambda p, y, s: (y, s.astype("float64")))
of_scans(
    "NaN hidden",
    caught_by="nan_stays_in_its_head",
    result=lambda p, y, s: (np.nan_to_num(y), np.nan_to_num(s)),
)
of_scans("kk and b exchanged", "7", given=lambda p: p | {"kk": p["b"], "b": p["kk"]})
of_scans("nothing is taken out", "7", given=lambda p: p | {"b": 0 * p["b"]})
of_scans("what is taken out is added", "7", given=lambda p: p | {"b": -p["b"]})


def work_in_place(parts: dict[str, Any], y: Any, s: Any) -> tuple[Any, Any]:
    parts["s"][...] = s
    return y, s


of_scans("works in place", result=work_in_place)


@fault("wkv7: y before the update", "head_scans")
class _(Ops):
    def wkv7(self, r: Any, w: Any, k: Any, v: Any, kk: Any, b: Any, s: Any) -> tuple[Any, Any]:
        _, after = super().wkv7(r, w, k, v, kk, b, s)
        rows = []
        for t in range(k.shape[1]):
            at = slice(t, t + 1)
            nothing = np.zeros_like(k[:, at])
            rows.append(super().wkv6(r[:, at], nothing, nothing, nothing, nothing[0, 0], s)[0])
            s = super().wkv7(*(one[:, at] for one in (r, w, k, v, kk, b)), s)[1]
        return np.concatenate(rows, axis=1), after


@fault("wkv6: y after the update", "head_scans")
class _(Ops):
    def wkv6(self, r: Any, w: Any, k: Any, v: Any, bonus: Any, s: Any) -> tuple[Any, Any]:
        nothing = np.zeros_like(k)
        y, s = super().wkv7(r, np.broadcast_to(w, k.shape), k, v, nothing, nothing, s)
        return y + self.head_sums(r * k * bonus, s.shape[1]) * v, s


@fault("wkv6: divides by products of decays", "head_scans")
class _(Ops):
    def wkv6(self, r: Any, w: Any, k: Any, v: Any, bonus: Any, s: Any) -> tuple[Any, Any]:
        with np.errstate(all="ignore"):
            decays = np.cumprod(np.broadcast_to(w, k.shape), axis=1)
            one = np.ones_like(decays)
            before = np.concatenate([one[:, :1], decays[:, :-1]], axis=1)
            y, after = super().wkv6(r * before, one, k / decays, v, 0 * bonus, s)
            return y + self.head_sums(r * k * bonus, s.shape[1]) * v, after * decays[:, -1:]


@fault("wkv7: divides by products of decays", "fastest_decay")
class _(Ops):
    def wkv7(self, r: Any, w: Any, k: Any, v: Any, kk: Any, b: Any, s: Any) -> tuple[Any, Any]:
        with np.errstate(all="ignore"):
            decays = np.cumprod(w, axis=1)
            one = np.ones_like(decays)
            before = np.concatenate([one[:, :1], decays[:, :-1]], axis=1)
            y, after = super().wkv7(r * decays, one, k / decays, v, kk * before, b / decays, s)
            return y, after * decays[:, -1:]


@fault("wkv7: takes out after the decay", "head_scans")
class _(Ops):
    def wkv7(self, r: Any, w: Any, k: Any, v: Any, kk: Any, b: Any, s: Any) -> tuple[Any, Any]:
        return super().wkv7(r, w, k, v, kk * w, b, s)


for scan in ("wkv6", "wkv7"):
    spoil(f"{scan}: T of 1", "head_scans", scan, lambda r, *_: r.shape[1] == 1)
    spoil(f"{scan}: T of 64", "head_scans", scan, lambda r, *_: r.shape[1] == 64)
    spoil(f"{scan}: T > 256", "head_scans", scan, lambda r, *_: r.shape[1] > 256)
    spoil(f"{scan}: T of 17", "head_scans", scan, lambda r, *_: r.shape[1] == 17)
    spoil(f"{scan}: in a batch", "head_scans", scan, lambda r, *_: len(r) > 1)
    spoil(f"{scan}: heads of 64", "head_scans", scan, lambda *p: p[-1].shape[1] == 64)
    spoil(f"{scan}: more than 4 heads", "head_scans", scan, lambda *p: p[-1].shape[2] > 160)
