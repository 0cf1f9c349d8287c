"""The pictures that say why: acceptance by position, draft lengths, where the time goes, speed-up by group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from draftwise.bench.measures import Figure
from draftwise.bench.page.canvas import LIGHT, empty, kind, label, svg, visible
from draftwise.bench.schema import Row

_COLUMNS = 4
_ROW = 0.26  # inches of height per variant
_FEW = 0.25  # a round that fewer answers than this share have is not drawn
FEW_ROUNDS = 10  # nor is a position in the draft that fewer rounds reached


def acceptance(figures: Sequence[Figure], table: Mapping[str, Sequence[Row]]) -> str:
    """One small picture per variant: how often a draft is accepted up to a position; the others behind it in grey. '' with too few rounds."""
    told = [(f, _percent(f.by_position[: _reached(table[f.variant])])) for f in figures]
    known = [(f, shares) for f, shares in told if shares]
    if not known:
        return ""
    figure, axes = _grid(len(known))
    for axis, (f, shares) in zip(axes, known, strict=False):
        for _, others in known:
            axis.plot(range(1, len(others) + 1), others, color=LIGHT["rule"], lw=0.8)
        axis.plot(range(1, len(shares) + 1), shares, color=LIGHT[kind(f)], lw=2, marker="o", ms=3)
        axis.set_title(label(f, 26), loc="left")
        axis.set_ylim(0, 103)
        axis.set_xlim(0.5, max(len(others) for _, others in known) + 0.5)
    figure.supxlabel("position in the draft", fontsize=10)
    figure.supylabel("drafts accepted up to there, %", fontsize=10)
    return svg(figure, "Acceptance by position in the draft, one panel per variant")


def length(figures: Sequence[Figure], table: Mapping[str, Sequence[Row]]) -> str:
    """One small picture per variant: drafted tokens in the first, second, ... round of an answer, mean and middle 80 %; and accepted ones."""
    known = [(f, found) for f in figures if (found := _by_round(table[f.variant]))]
    figure, axes = _grid(len(known))
    top = max((max(np.quantile(drafted, 0.9) for drafted, _ in found) for _, found in known), default=1)
    last = max((len(found) for _, found in known), default=1)
    for axis, (f, found) in zip(axes, known, strict=False):
        x, colour = range(1, len(found) + 1), LIGHT[kind(f)]
        low, high = ([np.quantile(drafted, q) for drafted, _ in found] for q in (0.1, 0.9))
        axis.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
        axis.plot(x, [np.mean(drafted) for drafted, _ in found], color=colour, lw=1.8, label="drafted: mean, and the middle 80 % of answers")
        axis.plot(x, [np.mean(accepted) for _, accepted in found], color=LIGHT["text"], lw=1, ls=(0, (2, 1.5)), label="accepted: mean")
        axis.set_title(label(f, 26), loc="left")
        axis.set_ylim(0, 1.08 * max(top, 1))
        axis.set_xlim(0.5, last + 0.5)
    figure.supxlabel("round of the answer", fontsize=10)
    figure.supylabel("tokens", fontsize=10)
    if known:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return svg(figure, "Draft length over the rounds of an answer, one panel per variant")


def shares(figures: Sequence[Figure]) -> str:
    """Where the time goes: drafting, verifying, the rest."""
    known = [f for f in figures if f.draft_share is not None][::-1]
    figure, axes = empty(_ROW * len(known) + 1.15)
    axis, names = axes[0, 0], {"draft": "drafting", "verify": "verifying (the target's passes)", "other": "everything else"}
    left = np.zeros(len(known))
    for name, shown in names.items():
        wide = np.array(_percent([getattr(f, f"{name}_share") for f in known]))
        axis.barh(range(len(known)), wide, left=left, color=LIGHT[name], height=0.7, label=shown)
        for y in np.flatnonzero(wide >= 5):
            axis.text(left[y] + wide[y] / 2, y, f"{wide[y]:.0f}", ha="center", va="center", fontsize=8.5, color="#000000")
        left += wide
    axis.set_yticks(range(len(known)), [label(f) for f in known])
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(-0.7, len(known) - 0.3)
    axis.set_xlim(0, 100)
    axis.set_xlabel("share of the wall time, %")
    figure.legend(loc="outside upper left", ncols=3)
    return svg(figure, "Shares of time: drafting, verifying, everything else")


def groups(figures: Sequence[Figure]) -> str:
    """A heat map: speed-up over the own plain decoding, by variant and group of problems."""
    from matplotlib.colors import TwoSlopeNorm

    known = [f for f in figures if f.variant != f.own_plain and any(group.over_plain for group in f.groups.values())]
    names = sorted({name for f in known for name in f.groups})
    found = [[f.groups[name].over_plain if name in f.groups else None for name in names] for f in known]
    values = np.array([[math.log2(cell.point) if cell and cell.point > 0 else math.nan for cell in row] for row in found]).reshape(len(known), -1)
    few = len(names) < 6
    figure, axes = empty(_ROW * 1.1 * len(known) + (0.9 if few else 1.8))
    axis, reach = axes[0, 0], float(np.nanmax(np.abs(values), initial=0.1))
    norm = TwoSlopeNorm(0, -1.8 * reach, 1.8 * reach)  # never the full colour, so that black can be read on it
    edges = np.arange(len(names) + 1) - 0.5, np.arange(len(known) + 1) - 0.5
    axis.pcolormesh(*edges, values, cmap="PuOr", norm=norm, edgecolors=LIGHT["paper"], linewidth=1)
    axis.invert_yaxis()
    for y, x in np.argwhere(np.isfinite(values)):
        cell = found[y][x]
        weight = "bold" if cell and (cell.low > 1 or cell.high < 1) else "normal"
        axis.text(x, y, f"{cell.point:.2f}" if cell else "", ha="center", va="center", fontsize=9, color="#000000", weight=weight)
    counts = {name: next(f.groups[name].problems for f in known if name in f.groups) for name in names}
    axis.set_xticks(range(len(names)), [f"{visible(name)} ({counts[name]})" for name in names])
    axis.xaxis.tick_top()
    axis.tick_params(axis="x", labelrotation=0 if few else 35)
    for text in axis.get_xticklabels():
        text.set(horizontalalignment="center" if few else "left", rotation_mode="default" if few else "anchor")
    axis.set_yticks(range(len(known)), [label(f) for f in known])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("times the plain decoding of the same engine (bold: the 95 % interval is clear of 1)")
    return svg(figure, "Speed-up over plain decoding of the same engine, by group of problems")


def _reached(rows: Sequence[Row]) -> int:
    """How many positions enough rounds have drafted."""
    depths = sorted((some.depth for row in rows for turn in row.turns for some in turn.rounds), reverse=True)
    return depths[FEW_ROUNDS - 1] if len(depths) >= FEW_ROUNDS else 0


def _by_round(rows: Sequence[Row]) -> list[tuple[list[int], list[int]]]:
    """(levels drafted, accepted) of all answers that have an i-th round, while enough of them have. Rounds that only read the prompt do not count."""
    told = [[some for some in turn.rounds if some.emitted] for row in rows for turn in row.turns if turn.rounds]
    if not any(some.drafted for turn in told for some in turn):
        return []
    reached = [[turn[i] for turn in told if len(turn) > i] for i in range(max(len(turn) for turn in told))]
    return [([p.depth for p in some], [p.accepted for p in some]) for some in reached if len(some) >= _FEW * len(told)]


def _grid(n: int) -> tuple[Any, list[Any]]:
    """Panels of one size with shared axes; those that stay empty are hidden, and the ones above them keep their numbers."""
    rows = max(1, -(-n // _COLUMNS))
    figure, axes = empty(1.45 * rows + 0.6, rows, _COLUMNS, sharex=True, sharey=True)
    flat = list(axes.flat)
    for i, axis in enumerate(flat):
        axis.set_visible(i < n)
        axis.grid(axis="y")
        axis.tick_params(length=0, labelcolor=LIGHT["soft"], labelsize=8.5, labelbottom=i < n <= i + _COLUMNS)
    return figure, flat


def _percent(values: Sequence[float]) -> list[float]:
    return [100 * value for value in values]
