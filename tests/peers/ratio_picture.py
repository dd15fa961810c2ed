"""One picture of what `speed.py` measured: our rates over those of the fastest peer.

A peer is compared where it stores as many bits a weight as we do, or more: one in 16 bits is a
peer of 4 bits too, since its user could run the same model here in 4.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]

DECODE, PREFILL = "#2166ac", "#8fb8de"
# What a user chooses: both kinds of 16 bits are one choice.
_PRECISIONS = {
    "float32": ("float32",),
    "16 bits": ("bfloat16", "float16"),
    "int8": ("int8",),
    "int4": ("int4",),
}


class Ratio(NamedTuple):
    """Our best rates in one precision over those of the fastest peer."""

    precision: str
    decode: float
    prefill: float


def decode_rate(row: Row) -> float:
    return row["decode"]["tokens_per_second"]


def prefill_rate(row: Row) -> float:
    return row["prefill"][0]["tokens_per_second"]


def comparable_peers(row: Row, rows: list[Row]) -> list[Row]:
    """Return the peers with as many bits a weight as `row`, or more."""
    groups = list(dict.fromkeys(other["group"] for other in rows))  # from most bits to fewest
    wider = groups[: groups.index(row["group"]) + 1]
    return [r for r in rows if r["group"] in wider and not r["ours"] and "error" not in r]


def ratios(rows: list[Row]) -> list[Ratio]:
    """Return a Ratio for each precision that we and a peer were measured in."""
    found = []
    for precision, names in _PRECISIONS.items():
        ours = [r for r in rows if r["ours"] and r["precision"] in names and "error" not in r]
        peers = comparable_peers(ours[0], rows) if ours else []
        if peers:
            found.append(
                Ratio(
                    precision,
                    _best(ours, decode_rate) / _best(peers, decode_rate),
                    _best(ours, prefill_rate) / _best(peers, prefill_rate),
                )
            )
    return found


def _best(rows: list[Row], rate: Callable[[Row], float]) -> float:
    return max(map(rate, rows))


def title(found: list[Ratio], peers: list[str]) -> str:
    """Say the result in one sentence."""
    decode, prefill = ([getattr(one, name) for one in found] for name in ("decode", "prefill"))
    return (
        f"rwkv-core decodes {_span(decode)} times as fast as {' or '.join(peers)},\n"
        f"and reads prompts {_span(prefill)} times as fast"
    )


def _span(values: list[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def draw_ratios(results: dict[str, Any], path: Path) -> None:
    """Write a PNG of the ratios at the largest shape that was measured; none without peers."""
    from matplotlib.figure import Figure

    shape, rows = list(results["shapes"].items())[-1]
    found = ratios(rows)
    if not found:
        return
    figure = Figure(figsize=(8, 3.9), layout="constrained")
    axis = figure.subplots()
    for offset, name, colour in ((-0.2, "decode", DECODE), (0.2, "prefill", PREFILL)):
        places = [i + offset for i in range(len(found))]
        values = [getattr(one, name) for one in found]
        bars = axis.bar(places, values, width=0.38, color=colour, label=name)
        axis.bar_label(bars, [f"{value:.1f}" for value in values], padding=2, fontsize=9)
    axis.axhline(1, color="#d6844b", linewidth=1.2)
    peers = sorted({row["name"] for row in rows if not row["ours"]})
    axis.text(
        len(found) - 0.45, 1, "fastest peer", color="#d6844b", fontsize=9, va="bottom", ha="left"
    )
    axis.set_xticks(range(len(found)), [one.precision for one in found])
    axis.set_xlim(-0.6, len(found) + 0.25)
    names = [peer.partition(" ")[0] for peer in peers]
    axis.set_title(title(found, names), loc="left", fontsize=12)
    axis.legend(frameon=False, loc="upper left", ncols=2, fontsize=9)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", left=False, labelleft=False)
    axis.tick_params(axis="x", length=0)
    machine = results["machine"]
    axis.set_xlabel(
        f"RWKV-4 {shape} on {machine['cpu']}, {machine['cores']} cores, {machine['date']}. "
        f"Peers: {', '.join(peers)}, with as many bits a weight or more",
        fontsize=8, loc="left", color="#555555",
    )  # fmt: skip
    figure.savefig(path, dpi=130)
