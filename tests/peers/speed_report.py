"""The tables and the pictures of what `speed.py` measured.

python tests/peers/speed_report.py [FOLDER]    # again, from the speed.json in it
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ratio_picture import Row, comparable_peers, decode_rate, draw_ratios, prefill_rate

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[2] / "rwkv_core" / "docs" / "results.md"
OURS, PEERS = "#2166ac", "#d6844b"
# The usual prompt, and the long one; a contender may have been measured with a shorter one.
_LENGTHS = (256, 1024)


def write_report(results: dict[str, Any], folder: Path) -> None:
    """Write speed.md, speed.png and ratio.png into `folder`."""
    (folder / "speed.md").write_text(markdown(results))
    draw(results, folder / "speed.png")
    draw_ratios(results, folder / "ratio.png")


def write_summary(results: dict[str, Any], page: Path) -> None:
    """Put a short table into `page`, between the marks that it has for it."""
    before, begin, rest = page.read_text().partition("<!-- speed -->\n")
    _, end, after = rest.partition("<!-- end of speed -->\n")
    if not end:
        raise ValueError(f"{page} has no marks for the speed table")
    page.write_text(f"{before}{begin}\n{_summary(results)}\n\n{end}{after}")


def _summary(results: dict[str, Any]) -> str:
    """Decode | prefill of 256 of each contender at each shape."""
    machine, shapes = results["machine"], results["shapes"]
    header = ["tokens/s, decode \\| prefill", *shapes]
    found: dict[str, dict[str, str]] = {}
    for shape, rows in shapes.items():
        for row in _measured(rows):
            name = f"**{_label(row)}**" if row["ours"] else _label(row)
            rates = f"{_rate(decode_rate(row))} \\| {_rate(prefill_rate(row))}"
            found.setdefault(name, {})[shape] = rates
    lines = [header, ["---", *["---:"] * len(shapes)]]
    lines += [[name, *(rates.get(shape, "-") for shape in shapes)] for name, rates in found.items()]
    simd = ", ".join(machine["simd"])
    about = f"{machine['cpu']}, {machine['cores']} cores, {simd}, {machine['date']}; ours in bold."
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{about}"


def markdown(results: dict[str, Any]) -> str:
    """The page: the machine, the plot, and a table for each shape."""
    parts = ["# Speed, side by side", _about(results), "![Decoding and prefill](speed.png)"]
    for shape, rows in results["shapes"].items():
        parts += [f"## {shape}", _table(rows)]
        parts += [f"{_label(row)} failed: {row['error']}" for row in rows if "error" in row]
    return "\n\n".join(parts) + "\n"


def _about(results: dict[str, Any]) -> str:
    machine, numpy = results["machine"], results["numpy"]
    versions = ", ".join(
        f"{name} {version}" for name, version in machine["versions"].items() if version != "-"
    )
    simd = ", ".join(machine["simd"]) or "SIMD unknown"
    return f"""\
Written by `tests/peers/speed.py` on {machine["date"]}; no figure is put in by hand.

- Machine: {machine["cpu"]}, {machine["cores"]} cores, {simd}, {machine["system"]}.
- Threads: {machine["threads"]}.
- In the same run NumPy read float32 matrices at {numpy["read_bytes_per_second"] / 1e9:.1f} GB/s in
  `W @ x`, and multiplied them at {numpy["gemm_flops_per_second"] / 1e9:.0f} GFLOP/s.
- Versions: {versions}.

All programs have the same random weights, stored in 16 bits. Each program runs in a process of its
own. The programs of one precision take turns, for {results["rounds"]} rounds, and figures are
medians. *Peak* is the peak memory of the process until the model is loaded, with the libraries.
*Load* does not include the import of the libraries. *Of best peer* is the rate divided by the rate
of the fastest peer with the same number of bits per weight or more."""


def _table(rows: list[Row]) -> str:
    header = (
        "", "precision", "decode, tokens/s", "of best peer", "prefill of 256, tokens/s",
        "of best peer", "prefill of 1,024", "load, s", "peak, MB",
    )  # fmt: skip
    lines = [header, ("---", "---", *["---:"] * (len(header) - 2))]
    shorter = False
    for row in _measured(rows):
        peers = comparable_peers(row, rows)
        name = f"**{row['name']}**" if row["ours"] else row["name"]
        shorter |= _prefill_tokens(row) < _LENGTHS[0]
        lines.append(
            (
                name, row["precision"], _rate(decode_rate(row)), _ratio(row, peers, decode_rate),
                _prefill_cell(row), _ratio(row, peers, prefill_rate), _rate(_long_prefill(row)),
                f"{row['load_seconds']:.1f}", _megabytes(row["peak_bytes"]),
            )
        )  # fmt: skip
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    note = "\n\n\\* Of so many tokens; more would have taken too long." if shorter else ""
    return table + note


def _measured(rows: list[Row]) -> list[Row]:
    return [row for row in rows if "error" not in row]


def _label(row: Row) -> str:
    return f"{row['name']} {row['precision']}"


def _prefill_tokens(row: Row) -> int:
    return row["prefill"][0]["tokens"]


def _long_prefill(row: Row) -> float | None:
    rates = {one["tokens"]: one["tokens_per_second"] for one in row["prefill"]}
    return rates.get(_LENGTHS[1])


def _prefill_cell(row: Row) -> str:
    tokens = _prefill_tokens(row)
    return _rate(prefill_rate(row)) + (f" \\* {tokens}" if tokens < _LENGTHS[0] else "")


def _ratio(row: Row, peers: list[Row], of: Callable[[Row], float]) -> str:
    return f"{of(row) / max(map(of, peers)):.2f}" if peers else "-"


def _rate(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _megabytes(n_bytes: int | None) -> str:
    return "-" if n_bytes is None else f"{n_bytes / 1e6:,.0f}"


def draw(results: dict[str, Any], path: Path) -> None:
    """A PNG: for each shape the contenders' bars, decoding on the left, prefill on the right."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    shapes = {shape: _measured(rows) for shape, rows in results["shapes"].items()}
    heights = [max(len(rows), 1) + 2 for rows in shapes.values()]
    figure = Figure(figsize=(11, 0.27 * sum(heights) + 0.9), layout="constrained")
    axes = figure.subplots(len(shapes), 2, squeeze=False, height_ratios=heights)
    for (shape, rows), pair in zip(shapes.items(), axes, strict=True):
        _draw_bars(pair[0], rows, decode_rate, f"{shape}: decode, tokens/s")
        _draw_bars(pair[1], rows, prefill_rate, f"{shape}: prefill of 256, tokens/s")
        pair[1].set_yticklabels([])
    machine = results["machine"]
    figure.suptitle(
        f"RWKV-4 on {machine['cpu']}, {machine['cores']} cores, {machine['date']}", fontsize=11
    )
    colours = {"rwkv-core": OURS, "from PyPI": PEERS}
    handles = [Patch(color=colour, label=label) for label, colour in colours.items()]
    figure.legend(handles=handles, loc="upper right", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def _draw_bars(axis: Any, rows: list[Row], of: Callable[[Row], float], title: str) -> None:
    """Horizontal bars from the top, with a gap between the precisions."""
    groups = list(dict.fromkeys(row["group"] for row in rows))
    places = [i + groups.index(row["group"]) for i, row in enumerate(rows)]
    colours = [OURS if row["ours"] else PEERS for row in rows]
    bars = axis.barh(places, [of(row) for row in rows], color=colours, height=0.8)
    axis.bar_label(bars, [_rate(of(row)) for row in rows], padding=3, fontsize=8)
    axis.set_yticks(places, [_label(row) for row in rows], fontsize=8)
    for label, colour in zip(axis.get_yticklabels(), colours, strict=True):
        label.set_color(colour)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_title(title, fontsize=10, loc="left")
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.tick_params(axis="x", bottom=False, labelbottom=False)
    axis.tick_params(axis="y", length=0)


if __name__ == "__main__":
    at = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    found = json.loads((at / "speed.json").read_text())
    write_report(found, at)
    if at == RESULTS:
        write_summary(found, PAGE)
