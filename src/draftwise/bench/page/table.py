"""Figures as text: the cells of the main table, the same in Markdown, and the sentences above it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from draftwise.bench.bootstrap import Estimate
from draftwise.bench.measures import OURS, PLAIN, Figure
from draftwise.bench.page.canvas import kind, label


class Column(NamedTuple):
    """`head` and, in a few words, `meaning`; `cell` of a figure."""

    head: str
    meaning: str
    cell: Callable[[Figure], str]


def columns(figures: Sequence[Figure], baseline: str = PLAIN) -> list[Column]:
    """The columns that have something to say about these figures."""
    tasks = sorted({task for f in figures for task in f.accuracy})
    found = [
        Column("variant", "engine and method", lambda f: f.variant),
        Column("precision", "of the weights", lambda f: f.precision),
        Column("tokens/s", "total tokens over total seconds", lambda f: _number(f.tokens_per_second and f.tokens_per_second.point)),
        Column("× own plain", "times the plain decoding of the same engine, 95 % interval", lambda f: _times(f, f.over_plain, f.own_plain)),
        Column(f"× {baseline}", f"times our variant {baseline}, 95 % interval", lambda f: _times(f, f.over_baseline, baseline)),
        *(Column(task, "right answers", lambda f, task=task: _right(f, task)) for task in tasks),  # type: ignore[misc]
        Column("same text, %", "answers equal to plain decoding's / mean common prefix", _same),
        Column("relaxed, %", "relaxed acceptances per token: the divergence from the target; 0 is lossless", _relaxed),
        Column("first → last sample", "tokens/s of the first and of the last answer to a problem, and their ratio, 95 % interval", _learnt),
        Column("tau by sample", "tau of the first, second, … answer to a problem", _by_sample),
        Column("tau", "tokens per target pass, bonus token included", lambda f: _number(f.tau)),
        Column("accepted, %", "accepted over drafted tokens, of trees over their levels", lambda f: _hundred(f.acceptance_rate)),
        Column("drafted", "drafted tokens per round", lambda f: _number(f.drafted_per_round)),
        Column("first, s", "median time to the first token", lambda f: _number(f.first_token_s)),
        Column("token, ms", "time per later token: median / 90th percentile", _token),
        Column("memory, GB", "peak of a process of its own (10⁹ bytes)", lambda f: _number(f.peak_bytes and f.peak_bytes / 1e9)),
    ]
    return [column for column in found if any(column.cell(f) != "–" for f in figures)]


def markdown(figures: Sequence[Figure], baseline: str, notes: Sequence[str]) -> str:
    """Notes, the table, and what its heads mean."""
    shown = columns(figures, baseline)
    lines = [*(_flat(note) + "\n" for note in notes), _line(column.head for column in shown), "|" + " --- |" * len(shown)]
    lines += [_line(column.cell(f) for column in shown) for f in figures]
    return "\n".join([*lines, "", "; ".join(f"{column.head}: {column.meaning}" for column in shown[2:]) + ".", ""])


def headline(figures: Sequence[Figure]) -> list[str]:
    """What a reader should take away, most important first; every sentence is made from figures."""
    timed = sorted((f for f in figures if f.tokens_per_second and kind(f) != "plain"), key=_speed, reverse=True)
    lossless = next((f for f in timed if f.engine == OURS and not f.relaxed_share), None)
    lossy = next((f for f in timed if f.engine == OURS and f.relaxed_share), None)
    peers = [f for f in figures if f.tokens_per_second and f.engine != OURS]  # their plain decoding too: it may be their best
    found = []
    if lossless:
        found.append(f"The fastest lossless method is {_praise(lossless)}.")
    if lossy and (lossless is None or _speed(lossy) > _speed(lossless)):
        found.append(f"Lossy, and faster: {_praise(lossy)}, with {_hundred(lossy.relaxed_share)} % of its tokens relaxed.")
    if timed and peers:
        best = max(peers, key=_speed)
        ours = f"; {label(lossless)} is {_speed(lossless) / _speed(best):.2f} times as fast" if lossless else ""
        found.append(f"The fastest peer is {_praise(best)}{ours}.")
    return found or [f"Only plain decoding has been timed so far: {_number(_speed(f))} tokens/s ({f.variant})." for f in figures[:1]]


def _praise(f: Figure) -> str:
    told = f"{label(f)} at {_number(_speed(f))} tokens/s"
    if kind(f) == "plain":
        return f"{told}, decoding plainly"
    if f.over_plain is None:
        return told
    point, low, high = f.over_plain
    doubt = ", which may be noise" if low <= 1 <= high else ""
    return f"{told}, {point:.2f} times the plain decoding of its engine (95 %: {low:.2f} to {high:.2f}{doubt})"


def _speed(f: Figure) -> float:
    return f.tokens_per_second.point if f.tokens_per_second else 0.0


def _times(f: Figure, found: Estimate | None, other: str | None) -> str:
    if found is None or f.variant == other:
        return "1" if found else "–"
    return f"{found.point:.2f} ({found.low:.2f} to {found.high:.2f})"


def _relaxed(f: Figure) -> str:
    if not f.relaxed_share:
        return "–" if f.divergence is None else "0"
    return f"{_hundred(f.relaxed_share)} ({_hundred(f.divergence.low)} to {_hundred(f.divergence.high)})" if f.divergence else "–"


def _token(f: Figure) -> str:
    return "–" if f.token_s is None or f.token_s_p90 is None else f"{_number(1e3 * f.token_s)} / {_number(1e3 * f.token_s_p90)}"


def _right(f: Figure, task: str) -> str:
    return f"{f.accuracy[task].right}/{f.accuracy[task].of}" if task in f.accuracy else "–"


def _same(f: Figure) -> str:
    return "–" if f.same_text is None or f.variant == f.own_plain else f"{_hundred(f.same_text)} / {_hundred(f.common_prefix)}"


def _learnt(f: Figure) -> str:
    if f.samples is None:
        return "–"
    first, *_, last = f.samples.tokens_per_second
    ratio = f.samples.last_over_first
    return f"{_number(first)} → {_number(last)}" + (f", × {ratio.point:.2f} ({ratio.low:.2f} to {ratio.high:.2f})" if ratio else "")


def _by_sample(f: Figure) -> str:
    return "–" if f.samples is None or None in f.samples.tau else " ".join(_number(tau) for tau in f.samples.tau)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 20 else f"{value:.2f}"


def _hundred(value: float | None) -> str:
    """A share as per cent, with a digit more where it is small."""
    return "–" if value is None else f"{100 * value:.1f}" if 0 < value < 0.1 else f"{100 * value:.0f}"


def _line(cells: Iterator[str]) -> str:
    return "| " + " | ".join(_flat(cell).replace("|", "\\|") for cell in cells) + " |"


def _flat(text: str) -> str:
    """On one line, and without the letters that Markdown would read as HTML."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
