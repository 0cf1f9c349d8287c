"""Two results side by side: what changed between them, and which of the changes are more than noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from draftwise.bench import measures
from draftwise.bench.bootstrap import Bootstrap, Estimate, Statistic, difference, plain_json, quotient
from draftwise.bench.report import Results, read
from draftwise.bench.sampled import paired
from draftwise.bench.schema import Row
from draftwise.bench.store import differences

if TYPE_CHECKING:
    from rich.table import Table


class Change(NamedTuple):
    """One variant in both results, over the problems that both answered. `speed`: tokens per second of the second over the first. `accuracy`
    and `acceptance`: the second less the first, as shares; None where either does not tell. `same_text`: share of problems with equal tokens.
    `beyond_noise`: which of speed, accuracy and acceptance have an interval without 'no change'."""

    variant: str
    problems: int
    tokens_per_second: tuple[float, float]
    speed: Estimate | None
    accuracy: Estimate | None
    acceptance: Estimate | None
    same_text: float
    beyond_noise: tuple[str, ...]


class Comparison(NamedTuple):
    """`configuration`: 'key: X there, Y here' for each difference, "there" being `a`. `only_a`, `only_b`: variants that the other lacks, or with
    which it shares no problem."""

    a: str
    b: str
    configuration: tuple[str, ...]
    changes: tuple[Change, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


def compare(a: Path, b: Path) -> Comparison:
    """Variant by variant, `b` against `a`. Raises ValueError where either folder holds no results, or they share no variant and problem."""
    first, second = read(a), read(b)
    old, new = _by_variant(first.rows), _by_variant(second.rows)
    pairs = {
        variant: [(mine[key], new[variant][key]) for key in sorted(mine.keys() & new[variant].keys())]
        for variant, mine in old.items()
        if variant in new
    }
    changes = tuple(_change(variant, *map(list, zip(*some, strict=True))) for variant, some in sorted(pairs.items()) if some)
    if not changes:
        raise ValueError(f"'{a}' and '{b}' share no problem answered by the same variant: {_names(old)} there, {_names(new)} here")
    shared = {change.variant for change in changes}
    only = [tuple(sorted(side.keys() - shared)) for side in (old, new)]
    told = tuple(differences(_circumstances(first), _circumstances(second)))
    return Comparison(str(a), str(b), told, changes, only[0], only[1])


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON holds it."""
    found: dict[str, Any] = plain_json(comparison)
    return found


def render(comparison: Comparison) -> Table:
    """A table for a terminal; what is beyond noise is marked with a star and in bold."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=f"{comparison.b} against {comparison.a}", caption=_caption(comparison), title_justify="left", caption_justify="left", box=None
    )
    for heading in ("variant", "problems", "tokens/s", "speed", "right answers", "acceptance", "same text"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for change in comparison.changes:
        before, after = change.tokens_per_second
        cells = [_times(change.speed), _points(change.accuracy), _points(change.acceptance)]
        marked = [
            Text(f"{cell} *", "bold") if name in change.beyond_noise else Text(cell)
            for name, cell in zip(("speed", "accuracy", "acceptance"), cells, strict=True)
        ]
        fixed = [Text(change.variant), Text(str(change.problems)), Text(f"{before:.2f} to {after:.2f}")]
        table.add_row(*fixed, *marked, Text(f"{change.same_text:.0%}"))
    return table


def _change(variant: str, before: Sequence[Row], after: Sequence[Row]) -> Change:
    draws = paired(before)
    speed = draws.estimate(quotient(measures.speed(after), measures.speed(before)))
    accuracy, acceptance = (_difference(draws, statistic, before, after) for statistic in (measures.right, measures.accepted))
    found = {"speed": (speed, 1.0), "accuracy": (accuracy, 0.0), "acceptance": (acceptance, 0.0)}
    beyond = tuple(name for name, (estimate, none) in found.items() if estimate and not estimate.low <= none <= estimate.high)
    same = sum([t.tokens for t in x.turns] == [t.tokens for t in y.turns] for x, y in zip(before, after, strict=True))
    rates = [draws.estimate(measures.speed(rows)) for rows in (before, after)]
    old, new = (rate.point if rate else 0.0 for rate in rates)
    return Change(variant, draws.n, (old, new), speed, accuracy, acceptance, same / len(before), beyond)


def _difference(draws: Bootstrap, statistic: Callable[[Sequence[Row]], Statistic], before: Sequence[Row], after: Sequence[Row]) -> Estimate | None:
    return draws.estimate(difference(statistic(after), statistic(before)))


def _circumstances(results: Results) -> dict[str, Any]:
    """What was asked for and where it ran, without what differs in any case."""
    config = {key: value for key, value in results.config.items() if key != "command"}
    return {"asked": config, "machine": results.rows[0].machine}


def _by_variant(rows: Sequence[Row]) -> dict[str, dict[tuple[str, int, str, int], Row]]:
    """Rows by variant, problem and sample; a task of another version has other problems."""
    found: dict[str, dict[tuple[str, int, str, int], Row]] = {}
    for row in rows:
        found.setdefault(row.variant, {})[row.task, row.version, row.id, row.sample or 0] = row
    return found


def _caption(comparison: Comparison) -> str:
    told = ["In brackets 95 % intervals over problems; * marks what is more than noise; where nothing changed, one in twenty gets one."]
    told += ["The two runs did not take turns: a machine that was slower in one of them shows as a change of all its variants."]
    told += [f"Only in {name}: {', '.join(some)}." for name, some in ((comparison.a, comparison.only_a), (comparison.b, comparison.only_b)) if some]
    told += [f"Differs: {line}" for line in comparison.configuration]
    return "\n".join(told)


def _times(found: Estimate | None) -> str:
    return "-" if found is None else f"x {found.point:.2f} ({found.low:.2f} to {found.high:.2f})"


def _points(found: Estimate | None) -> str:
    return "-" if found is None else "{:+.1f} ({:+.1f} to {:+.1f}) points".format(*(100 * value for value in found))


def _names(side: Mapping[str, Any]) -> str:
    return ", ".join(sorted(side)) or "none"
