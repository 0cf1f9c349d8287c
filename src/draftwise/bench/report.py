"""`write`: from a results folder to one page that needs no network, a Markdown table and the pictures as files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from draftwise.bench import charts, measures
from draftwise.bench.bootstrap import plain_json
from draftwise.bench.measures import OURS, PLAIN, Answered, Figure
from draftwise.bench.page import table
from draftwise.bench.page.canvas import FONT, INKS, for_page, kind
from draftwise.bench.page.detail import FEW_ROUNDS
from draftwise.bench.page.samples import samples
from draftwise.bench.sampled import clusters
from draftwise.bench.schema import Row, from_json

FEW = 8  # problems below which a bootstrap interval is too narrow (simulated: it covers less than 93 %)
TITLES = {
    "speed": (
        "How fast",
        "Left: what a user gets, in tokens per second. Right: what speculation adds, since every variant is compared with the plain decoding of its "
        "own engine and precision. Lines are 95 % intervals over problems; one that crosses 1 may be noise.",
    ),
    "pareto": (
        "Quality against speed",
        "Up is better, right is faster; no variant beats those on the dashed line in both. Lossless methods differ in quality only by rounding "
        "and by chance. Where points crowd some go without a name: the table has all.",
    ),
    "acceptance": (
        "How far drafts are right",
        "Of the rounds that drafted at least so many tokens, the share in which all of them up to there were accepted. Positions that fewer than "
        f"{FEW_ROUNDS} rounds reached are not drawn. Grey: the other variants.",
    ),
    "length": (
        "Draft length over an answer",
        "How many tokens a method drafts in the first, second, … round of an answer, and how many of them are accepted. The gap is work thrown away. "
        "Drawn while at least a quarter of the answers still run.",
    ),
    "shares": ("Where the time goes", "Of the wall time of all answers. Engines that do not tell are missing."),
    "groups": (
        "By kind of problem",
        "Speed-up over the plain decoding of the same engine. Purple is faster, orange slower; bold where the interval is clear of 1. "
        "The number of problems stands with each group.",
    ),
}


class Results(NamedTuple):
    """What a results folder holds. `torn`: its last row was cut short and is not among the rows."""

    folder: Path
    config: dict[str, Any]
    rows: list[Row]
    memory: dict[str, int]
    torn: bool


def read(folder: Path) -> Results:
    """The rows of a run, finished or not. Raises ValueError where there is none, and for a broken line that is not the last one."""
    path = folder / "rows.jsonl"
    if not path.is_file():
        raise ValueError(f"there are no results in '{folder}': the folder of a bench holds a file rows.jsonl")
    rows, torn = _lines(path, from_json)
    memory, _ = _lines(folder / "memory.jsonl", lambda data: (str(data["variant"]), int(data["peak_bytes"])))
    config = folder / "config.json"
    found = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return Results(folder, found if isinstance(found, dict) else {}, rows, dict(memory), torn)


def summary(folder: Path, baseline: str | None = None) -> dict[str, Any]:
    """The figures of a results folder as JSON holds them: {"baseline", "notes", "figures": [...]}. Raises ValueError as `write` does."""
    results = read(folder)
    answered = measures.answered(results.rows)
    chosen = baseline or _baseline(results, answered)
    figures = measures.figures(results.rows, chosen, results.memory)
    return {"baseline": chosen, "notes": list(notes(results, answered)), "figures": plain_json(figures)}


def write(folder: Path, out: Path | None = None, baseline: str | None = None, tokenizer: Any = None) -> list[Path]:
    """Writes report.html, report.md and one SVG per picture to `out` (by default the folder itself), and returns their paths. `baseline`: the
    variant that all are compared with besides their own plain decoding (by default the run's, or plain). `tokenizer`: of the target, for the
    colours of the text samples; where it is not given and the target is on this machine it is read from there.

    Raises ValueError for a folder without results, an unknown baseline, and without matplotlib."""
    results, to = read(folder), out or folder
    to.mkdir(parents=True, exist_ok=True)
    answered = measures.answered(results.rows)
    chosen = baseline or _baseline(results, answered)
    figures = measures.figures(results.rows, chosen, results.memory)
    told = [*table.headline(figures), *notes(results, answered)]
    pictures = charts.draw(figures, answered.table)
    names = {"report.html": _page(results, answered, figures, chosen, pictures, tokenizer)}
    names["report.md"] = table.markdown(figures, chosen, [machine(results.rows), *told])
    names |= {f"{name}.svg": picture for name, picture in pictures.items()}
    for name, text in names.items():
        (to / name).write_text(text, encoding="utf-8", errors="backslashreplace")
    return [to / name for name in names]


def notes(results: Results, answered: Answered) -> Iterator[str]:
    """What a reader must know before believing the figures."""
    yield from _gaps(results, answered)
    n = len(set(clusters(next(iter(answered.table.values()), []))))
    if 0 < n < FEW:
        yield f"Only {n} problems: the intervals are too narrow; believe large differences only."
    judged = [row for rows in answered.table.values() for row in rows if row.correct is not None]
    cut = sum(any(turn.finish_reason == "length" for turn in row.turns) for row in judged)
    if cut * 10 > len(judged):
        yield f"{cut / len(judged):.0%} of the judged answers were cut by the limit of tokens: the shares of right answers are too low."
    if results.config.get("temperature"):
        yield "The answers were sampled, so lossless variants need not give the text of plain decoding."
    if any(len({json.dumps(row.machine, sort_keys=True) for row in rows}) > 1 for rows in answered.table.values()):
        yield "Some variant's rows come from more than one machine or set of versions: speeds may not be comparable."


def _gaps(results: Results, answered: Answered) -> Iterator[str]:
    """What is not there although it should be."""
    n, planned = len(next(iter(answered.table.values()), ())), _planned(results.config)  # answers
    if results.torn:
        yield "The last row was cut short and is not counted: the run was ended in the middle of a line."
    if n < planned:
        why = "the run is not finished, an engine failed, or problems are longer than the model's context"
        yield f"{n} of {planned} {_what(results)} have been answered by all variants and are compared here: {why}."
    elif answered.left_out:
        yield f"{answered.left_out} {_what(results)} are left out because some variant has not answered them."
    if unheard := [name for name in results.config.get("methods") or () if all(row.variant != name for row in results.rows)]:
        yield f"Without any answer so far: {', '.join(map(str, unheard))}."
    for variant, count in answered.absent.items():
        yield f"{variant} is left out: it answered {count} problems only."
    if not n:
        yield "There is nothing to compare yet."
    if _baseline(results, answered) != (results.config.get("baseline") or PLAIN):
        yield f"The baseline {results.config['baseline']} has no answers; {PLAIN} stands in for it."


def machine(rows: Sequence[Row]) -> str:
    """Where it was measured, in one line; versions are those of our own engine where there are several."""
    ours = next((row for row in rows if row.engine == OURS), rows[0] if rows else None)
    return ", ".join(_facts(ours.machine)) if ours else "no machine: there are no rows"


def _page(results: Results, answered: Answered, figures: list[Figure], baseline: str, pictures: Mapping[str, str], tokenizer: Any) -> str:
    from jinja2 import Environment, StrictUndefined

    template = files("draftwise.bench.page").joinpath("page.html.j2").read_text(encoding="utf-8")
    columns = table.columns(figures, baseline)
    fastest = max((f for f in figures if f.tokens_per_second), key=lambda f: f.tokens_per_second or (0.0,), default=None)
    title, found = samples(answered.table, results.folder, tokenizer or _tokenizer(results.config))
    return (
        Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
        .from_string(template)
        .render(
            title=_title(results.config),
            machine=machine(results.rows),
            sentences=table.headline(figures),
            notes=list(notes(results, answered)),
            about=_about(figures, results.rows),
            columns=columns,
            rows=[{"kind": kind(f), "best": f is fastest, "cells": [column.cell(f) for column in columns]} for f in figures],
            pictures=[{"title": TITLES[name][0], "caption": TITLES[name][1], "svg": for_page(svg)} for name, svg in pictures.items()],
            samples=found,
            sample_title=title,
            coloured=any(origin for sample in found for _, origin in sample.runs),
            setup=list(_setup(results)),
            inks=INKS,
            font=FONT,
        )
    )


def _about(figures: Sequence[Figure], rows: Sequence[Row]) -> str:
    if not figures:
        return ""
    sizes = ", ".join(f"{group.problems} {name}" for name, group in figures[0].groups.items())
    return f"{figures[0].problems} problems, the same for all {len(figures)} variants ({sizes}); the variants took turns, problem by problem."


def _title(config: Mapping[str, Any]) -> str:
    target, draft = (Path(str(config.get(name) or "")).name for name in ("target", "draft"))
    return f"Speed and quality of {target or 'a model'}" + (f", drafted by {draft}" if draft else "")


def _setup(results: Results) -> Iterator[tuple[str, str]]:
    for command in sorted({row.command for row in results.rows}):
        yield "command", command
    for key, value in results.config.items():
        if key != "command":
            yield key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    for engine, facts in sorted({row.engine: row.machine for row in results.rows}.items()):
        yield f"machine of {engine}", ", ".join(_facts(facts))


def _facts(machine: Mapping[str, Any]) -> Iterator[str]:
    """'AMD EPYC', '2 threads', 'torch 2.13.0': a word for what does not speak for itself."""
    for key, value in machine.items():
        if isinstance(value, Mapping):
            yield from _facts(value)
        elif key.endswith("_bytes") and isinstance(value, int):
            yield f"{value / 2**30:.0f} GiB {key.removesuffix('_bytes')}"
        elif key in ("cpu", "system", "gpu"):
            yield str(value)
        else:
            yield f"{value} {key.removesuffix('s') if value == 1 else key}" if isinstance(value, int) else f"{key} {value}"


def _planned(config: Mapping[str, Any]) -> int:
    """How many problems the run was to have; 0 where the configuration does not say."""
    tasks = config.get("tasks")
    counts = [task.get("problems") for task in tasks.values() if isinstance(task, dict)] if isinstance(tasks, dict) else []
    samples = config.get("samples") or 1
    return sum(count for count in counts if isinstance(count, int)) * (samples if isinstance(samples, int) else 1)


def _what(results: Results) -> str:
    return "samples of problems" if results.config.get("samples") else "problems"


def _baseline(results: Results, answered: Answered) -> str:
    """The run's own, or plain where that has no answers."""
    own = str(results.config.get("baseline") or PLAIN)
    return own if own in answered.table else PLAIN


def _tokenizer(config: Mapping[str, Any]) -> Any:
    """That of a target on this machine, or None: samples are then as an earlier report left them."""
    target = str(config.get("target") or "")
    if not target or (target.lower() != "smollm2" and not Path(target).expanduser().exists()):
        return None  # a name of the Hub would have to be downloaded
    from draftwise.bench import rendering  # takes seconds, and only a sample needs it

    try:
        return rendering.load(target).tokenizer
    except ValueError:
        return None


def _lines(path: Path, make: Callable[[dict[str, Any]], Any]) -> tuple[list[Any], bool]:
    """What each line of JSON makes, and whether the last one was torn (and dropped). A file that is not there has no lines."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    found = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            found.append(make(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is no line of a bench: {error}") from None
    return found, bool(lines[-1].strip())
