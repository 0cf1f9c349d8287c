"""The two pictures that answer most questions: how fast, and at what quality."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

from draftwise.bench.bootstrap import Estimate, wilson
from draftwise.bench.measures import Figure
from draftwise.bench.page.canvas import LIGHT, empty, kind, label, svg

_KINDS = {"ours": "draftwise", "peer": "peers", "plain": "plain decoding"}
_ROW = 0.26  # inches of height per variant
_FURTHEST = 6  # lines of text between a point and its name
Box: TypeAlias = tuple[float, float, float, float]
"""Left, bottom, right, top, in pixels."""


class Spot(NamedTuple):
    """A variant in the picture of quality against speed."""

    figure: Figure
    x: float
    y: float
    low: float
    high: float


def speed(figures: Sequence[Figure]) -> str:
    """Tokens per second, and the speed-up over the plain decoding of the same engine, both with intervals; the fastest on top."""
    known = sorted((f for f in figures if f.tokens_per_second), key=lambda f: (f.tokens_per_second or Estimate(0, 0, 0)).point)
    figure, axes = empty(_ROW * len(known) + 1.15, 1, 2, sharey=True, gridspec_kw={"width_ratios": [1.25, 1]})
    left, right = axes[0]
    for y, f in enumerate(known):
        colour = LIGHT[kind(f)]
        assert f.tokens_per_second
        left.barh(y, f.tokens_per_second.point, color=colour, height=0.68, alpha=0.85)
        _whisker(left, f.tokens_per_second, y, LIGHT["text"])
        _value(left, f.tokens_per_second, y)
        if f.over_plain and f.variant != f.own_plain:
            _whisker(right, f.over_plain, y, colour)
            right.plot(f.over_plain.point, y, _marker(f), color=colour, ms=6)
            _value(right, f.over_plain, y, left=f.over_plain.high < 1)
    left.set_yticks(range(len(known)), [label(f) for f in known])
    left.set_ylim(-0.7, len(known) - 0.3)
    left.set_xlabel("tokens per second")
    right.set_xlabel("times own plain decoding")
    right.axvline(1, color=LIGHT["plain"], lw=1.2)
    right.spines["left"].set_visible(False)
    for axis in (left, right):
        axis.grid(axis="x")
        axis.tick_params(axis="y", length=0)
    _legend(figure, known)
    return svg(figure, "Tokens per second and speed-up over plain decoding, with 95 % intervals")


def pareto(figures: Sequence[Figure]) -> str:
    """Quality against speed. Quality: right answers over all tasks that have them, or else how much of the text equals plain decoding's."""
    return svg(scatter(figures), "Quality against speed, with the Pareto front")


def scatter(figures: Sequence[Figure]) -> Any:
    """That picture before it is written."""
    judged = any(f.accuracy for f in figures)
    spots = list(_spots(figures, judged))
    figure, axes = empty(5.4)
    axis = axes[0, 0]
    best = front(spots)
    axis.plot([s.x for s in best], [s.y for s in best], color=LIGHT["soft"], lw=1, ls=(0, (4, 3)), drawstyle="steps-pre", zorder=1)
    for s in spots:
        axis.plot(s.x, s.y, _marker(s.figure), color=LIGHT[kind(s.figure)], ms=7, mec=LIGHT["paper"], mew=0.6, zorder=3)
    axis.set_xlabel("tokens per second (further right is faster)")
    axis.set_ylabel("right answers, % of all tasks that have them" if judged else "text equal to plain decoding's, %")
    axis.grid()
    axis.margins(0.12, 0.22)
    _frame(axis, [s.y for s in spots])
    if judged and spots:
        _typical_interval(axis, spots)
    _legend(figure, [s.figure for s in spots])
    _name(figure, axis, sorted(spots, key=lambda s: (s not in best, kind(s.figure) == "plain", -s.x)), best)
    return figure


def front(spots: Sequence[Spot]) -> list[Spot]:
    """Those that no other beats in one of speed and quality without losing in the other, slowest first."""
    better = [s for s in spots if not any(o.x >= s.x and o.y >= s.y and (o.x, o.y) != (s.x, s.y) for o in spots)]
    return sorted(better, key=lambda s: (s.x, -s.y))


def _spots(figures: Sequence[Figure], judged: bool) -> Iterator[Spot]:
    for f in figures:
        right, of = (sum(getattr(task, name) for task in f.accuracy.values()) for name in ("right", "of"))
        share = wilson(right, of) if judged else Estimate(*[f.common_prefix] * 3) if f.common_prefix is not None else None
        if share and f.tokens_per_second:
            yield Spot(f, f.tokens_per_second.point, *(100 * value for value in share))


def _frame(axis: Any, values: Sequence[float]) -> None:
    """Room above and below, a range that does not blow up small differences, and nothing far outside of 0 to 100."""
    if not values:
        return
    low, high = min(values), max(values)
    room = max(0.22 * (high - low), (16 - (high - low)) / 2)
    axis.set_ylim(max(-3, low - room), min(106, high + room))


def _typical_interval(axis: Any, spots: Sequence[Spot]) -> None:
    """One interval in the corner stands for all: 25 crossing ones could not be read."""
    middle = sorted(spots, key=lambda s: s.high - s.low)[len(spots) // 2]
    note = f"95 % interval of a share of right answers: about ± {(middle.high - middle.low) / 2:.0f} points"
    axis.annotate(note, (0.995, 0.015), xycoords="axes fraction", ha="right", va="bottom", color=LIGHT["soft"], fontsize=9)


def _name(figure: Any, axis: Any, spots: Sequence[Spot], best: Sequence[Spot]) -> None:
    """A name beside each point, the important ones first, at the nearest place where it covers neither a point nor another name and no line to a
    point crosses a name. Where points crowd some are left without one."""
    figure.draw_without_rendering()
    box = axis.get_window_extent()
    pixels = [axis.transData.transform((s.x, s.y)) for s in spots]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in pixels]
    taken.append((box.x1 - 300, box.y0, box.x1, box.y0 + 18))  # the note in the corner
    steps = [axis.transData.transform([(a.x, b.y), (a.x, a.y)]) for a, b in zip(best, best[1:], strict=False)]
    taken += [(low[0] - 1, low[1], low[0] + 1, high[1]) for low, high in steps]  # the steps of the front
    names: list[Box] = []
    for s, at in zip(spots, pixels, strict=True):
        text = label(s.figure, 30)
        size = 5.6 * len(text) * figure.dpi / 72, 11 * figure.dpi / 72
        inside = [p for p in _places(at[0], at[1], *size) if p[0] > box.x0 and p[2] < box.x1 and p[1] > box.y0 and p[3] < box.y1]
        free = [p for p in inside if not _hits([p], taken) and not _hits([p], names)]
        if place := next((p for p in free if not _hits(_leader(p, at), names)), None):
            names.append(place)
            taken += _leader(place, at)[2:]
            _write(axis, text, s, place, at, figure.dpi)


def _hits(boxes: Sequence[Box], others: Sequence[Box]) -> bool:
    return any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for a in boxes for b in others)


def _leader(place: Box, at: tuple[float, float]) -> list[Box]:
    """Small boxes along the line from a point to its name, where they are so far apart that one is drawn."""
    x, y = _anchor(place, at)[0], (place[1] + place[3]) / 2
    if abs(y - at[1]) < place[3] - place[1]:
        return []
    dots = [(at[0] + (x - at[0]) * i / 16, at[1] + (y - at[1]) * i / 16) for i in range(1, 15)]
    return [(u - 1, v - 1, u + 1, v + 1) for u, v in dots]


def _anchor(place: Box, at: tuple[float, float]) -> tuple[float, str]:
    """Where a name is held, and by which of its sides."""
    return (place[0], "left") if place[0] > at[0] else (place[2], "right") if place[2] < at[0] else ((place[0] + place[2]) / 2, "center")


def _places(x: float, y: float, wide: float, high: float) -> Iterator[Box]:
    """Boxes around a point, nearest first: right, left, above, below, then further up and down."""
    for step in (0.0, *(sign * level * high for level in range(1, _FURTHEST) for sign in (1, -1))):
        for left in (x + 8, x - 8 - wide, x - wide / 2) if step else (x + 8, x - 8 - wide):
            yield left, y + step - high / 2, left + wide, y + step + high / 2


def _write(axis: Any, text: str, spot: Spot, place: Box, at: tuple[float, float], dpi: float) -> None:
    anchor, side = _anchor(place, at)
    offset = [(a - b) * 72 / dpi for a, b in zip((anchor, (place[1] + place[3]) / 2), at, strict=True)]
    far = abs(offset[1]) > 10
    edge = {"left": 0.0, "center": 0.5, "right": 1.0}[side], 0.5
    line = {"relpos": edge, "arrowstyle": "-", "color": LIGHT["plain"], "lw": 0.5, "shrinkA": 0, "shrinkB": 3} if far else None
    ground = {"facecolor": LIGHT["paper"], "edgecolor": "none", "alpha": 0.75, "pad": 0.3}
    how = {"textcoords": "offset points", "ha": side, "va": "center", "fontsize": 9, "arrowprops": line, "bbox": ground, "zorder": 2}
    axis.annotate(text, (spot.x, spot.y), offset, **how)


def _whisker(axis: Any, found: Estimate, y: float, colour: str) -> None:
    axis.plot([found.low, found.high], [y, y], color=colour, lw=1.3, solid_capstyle="butt")


def _value(axis: Any, found: Estimate, y: float, left: bool = False) -> None:
    """The figure behind its interval, or before it."""
    x, shift, side = (found.low, -5, "right") if left else (found.high, 5, "left")
    how = {"textcoords": "offset points", "va": "center", "ha": side, "fontsize": 8.5, "color": LIGHT["soft"]}
    axis.annotate(f"{found.point:.2f}", (x, y), (shift, 0), **how)


def _marker(figure: Figure) -> str:
    return "D" if figure.relaxed_share else "s" if kind(figure) == "peer" else "o"


def _legend(figure: Any, known: Sequence[Figure]) -> None:
    from matplotlib.lines import Line2D

    kinds = [name for name in _KINDS if any(kind(f) == name for f in known)]
    signs = [Line2D([], [], ls="", marker="s" if name == "peer" else "o", color=LIGHT[name], ms=7, label=_KINDS[name]) for name in kinds]
    if any(f.relaxed_share for f in known):
        signs.append(Line2D([], [], ls="", marker="D", color=LIGHT["ours"], ms=6, label="draftwise, lossy"))
    figure.legend(handles=signs, loc="outside upper left", ncols=len(signs), handletextpad=0.2, columnspacing=1.4)
