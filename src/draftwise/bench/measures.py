"""From rows to the figures of a report: one `Figure` per variant, over the problems that all variants answered. Definitions: docs/bench.md."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from draftwise.bench.bootstrap import Array, Bootstrap, Estimate, Statistic, over, quotient, wilson
from draftwise.bench.sampled import Samples, by_sample, clusters, paired
from draftwise.bench.schema import Row, Turn
from draftwise.stats import Summary, summarize

PLAIN, OURS = "plain", "draftwise"
Key = tuple[str, str, int]


class Answered(NamedTuple):
    """`table`: variant -> its rows over the same problems in the same order. `left_out`: problems that some variant of the table did not
    answer. `absent`: variant -> how many problems it answered, for those with less than half of what the fullest has; they are not compared,
    since they would take the problems of all others with them."""

    table: dict[str, list[Row]]
    left_out: int
    absent: dict[str, int]


class Group(NamedTuple):
    """One group of problems (a category or a task) for one variant."""

    problems: int
    tokens_per_second: float
    over_plain: Estimate | None


class Figure(NamedTuple):
    """What one variant did. Seconds, tokens per second and bytes; shares in [0, 1]; None where it cannot be told. `own_plain`: the plain
    variant of the same engine, which `over_plain`, `same_text` and `common_prefix` refer to. `over_baseline`: over the one that was chosen for
    all. The other fields are defined in docs/bench.md."""

    variant: str
    engine: str
    precision: str
    problems: int
    tokens: int
    seconds: float
    tokens_per_second: Estimate | None
    own_plain: str | None
    over_plain: Estimate | None
    over_baseline: Estimate | None
    tau: float | None
    acceptance_rate: float | None
    by_position: tuple[float, ...]
    drafted_per_round: float | None
    relaxed_share: float | None
    divergence: Estimate | None
    first_token_s: float | None
    token_s: float | None
    token_s_p90: float | None
    draft_share: float | None
    verify_share: float | None
    other_share: float | None
    peak_bytes: int | None
    accuracy: dict[str, Accuracy]
    same_text: float | None
    common_prefix: float | None
    groups: dict[str, Group]
    samples: Samples | None = None


class Accuracy(NamedTuple):
    """Right answers of one task, and their share with Wilson's interval."""

    right: int
    of: int
    share: Estimate | None


def answered(rows: Sequence[Row]) -> Answered:
    """The rows as a table. Raises ValueError where a problem was answered twice by one variant."""
    found: dict[str, dict[Key, Row]] = {}
    for row in rows:
        mine = found.setdefault(row.variant, {})
        key = (row.task, row.id, -1 if row.sample is None else row.sample)
        if key in mine:
            raise ValueError(f"the variant {row.variant!r} has two rows of problem {row.id!r} of task {row.task!r}: rows of two runs were mixed")
        mine[key] = row
    most = max((len(mine) for mine in found.values()), default=0)
    absent = {variant: len(mine) for variant, mine in sorted(found.items()) if 2 * len(mine) < most}
    kept = {variant: mine for variant, mine in found.items() if variant not in absent}
    every: set[Key] = set().union(*kept.values())
    shared = sorted(key for key in every if all(key in mine for mine in kept.values()))
    some = {variant: list(mine.values()) for variant, mine in kept.items()}
    ordered = sorted(kept, key=lambda variant: _rank(some[variant][0], plain_of(variant, some)))
    return Answered({variant: [kept[variant][key] for key in shared] for variant in ordered}, len(every) - len(shared), absent)


def figures(rows: Sequence[Row], baseline: str = PLAIN, memory: Mapping[str, int] | None = None) -> list[Figure]:
    """The figures of all variants: plain first, then ours, then the peers by engine. Empty where no problem was answered by all. `memory`: peak
    bytes by variant. Raises ValueError for a baseline that no row has."""
    table = answered(rows).table
    if baseline not in table and baseline != PLAIN:
        raise ValueError(f"there is no variant {baseline!r} to compare with: {', '.join(table) or 'no variant has answered anything'}")
    if not any(table.values()):
        return []
    draws = paired(next(iter(table.values())))
    return [_figure(table, variant, baseline, draws, memory or {}) for variant in table]


def plain_of(variant: str, table: Mapping[str, Sequence[Row]]) -> str | None:
    """The plain variant of the same engine. For our own 'plain', for those of another process the one with its name ('int8/plain' of 'int8/auto'), or
    'plain' where that has the same precision. For a peer one named like the engine, alone or with its precision ('vllm', 'openvino-int4'), or a name
    that others of the engine go on from ('openvino-mine' of 'openvino-mine-draft'); of several the one that the variant's own name goes on from, then
    one of the same precision."""
    row = table[variant][0]
    if row.engine == OURS:
        process, slash, _ = variant.partition("/")
        own = f"{process}/{PLAIN}" if slash else PLAIN
        return own if own in table else PLAIN if PLAIN in table and table[PLAIN][0].precision == row.precision else None
    names = [name for name, some in table.items() if some[0].engine == row.engine]
    sure = [name for name in names if _is_plain(table[name][0])]
    led = [name for name in names if any(_leads(name, other) for other in names) and not any(_leads(plain, name) for plain in sure)]
    return max(
        {*sure, *led}, key=lambda name: (name == variant or _leads(name, variant), table[name][0].precision == row.precision, name), default=None
    )


def speed(rows: Sequence[Row]) -> Statistic:
    """Total tokens over total seconds."""
    return over([sum(len(turn.tokens) for turn in row.turns) for row in rows], [sum(turn.seconds for turn in row.turns) for row in rows])


def right(rows: Sequence[Row]) -> Statistic:
    """The share of right answers among the problems that have one."""
    return over([row.correct is True for row in rows], [row.correct is not None for row in rows])


def accepted(rows: Sequence[Row]) -> Statistic:
    """Accepted over drafted tokens."""
    return over(*([_total(row, name) for row in rows] for name in ("accepted", "drafted")))


def _total(row: Row, name: str) -> int:
    return sum(turn.total(name) or 0 for turn in row.turns)


def pooled(rows: Sequence[Row]) -> Summary | None:
    """The engine's own summary over the rounds of all turns that have any. None where the engine told of none."""
    turns = [turn for row in rows for turn in row.turns if turn.rounds]
    return summarize([some for turn in turns for some in turn.rounds], sum(turn.seconds for turn in turns)) if turns else None


def token_times(turns: Sequence[Turn]) -> tuple[Array, Array]:
    """Seconds to the first token, one per turn, and seconds per token after the first arrival: k tokens that arrive together share the wait
    before them evenly, so the mean is that of any other way to count."""
    told = [np.array(turn.arrivals, dtype=np.float64) for turn in turns if turn.arrivals]
    first = np.array([some[0, 0] for some in told])
    later = [(np.diff(some[:, 0]), some[1:, 1].astype(int)) for some in told]
    each = [np.repeat(gaps[n > 0] / n[n > 0], n[n > 0]) for gaps, n in later]
    return first, np.concatenate(each) if each else np.zeros(0)


def _figure(table: dict[str, list[Row]], variant: str, baseline: str, draws: Bootstrap, memory: Mapping[str, int]) -> Figure:
    rows, own = table[variant], plain_of(variant, table)
    plain, chosen = table.get(own or ""), table.get(baseline)
    turns = [turn for row in rows for turn in row.turns]
    first, later = token_times(turns)
    likeness = [_likeness(row, other) for row, other in zip(rows, plain, strict=True)] if plain else []
    return Figure(
        variant,
        rows[0].engine,
        rows[0].precision,
        problems=len(set(clusters(rows))),
        tokens=sum(len(turn.tokens) for turn in turns),
        seconds=sum(turn.seconds for turn in turns),
        tokens_per_second=draws.estimate(speed(rows)),
        own_plain=own,
        over_plain=draws.estimate(quotient(speed(rows), speed(plain))) if plain else None,
        over_baseline=draws.estimate(quotient(speed(rows), speed(chosen))) if chosen else None,
        **_rounds(rows, draws),
        first_token_s=_quantile(first, 0.5),
        token_s=_quantile(later, 0.5),
        token_s_p90=_quantile(later, 0.9),
        peak_bytes=memory.get(variant),
        accuracy=_accuracy(rows),
        same_text=sum(share == 1 for share in likeness) / len(likeness) if plain else None,
        common_prefix=sum(likeness) / len(likeness) if plain else None,
        groups=_groups(rows, plain),
        samples=by_sample(rows, speed, lambda some: found.tau if (found := pooled(some)) else None),
    )


def _rounds(rows: list[Row], draws: Bootstrap) -> dict[str, Any]:
    """The fields of a `Figure` that come from rounds."""
    names = ("tau", "acceptance_rate", "drafted_per_round", "relaxed_share", "draft_share", "verify_share", "other_share")
    found = pooled(rows)
    if found is None:
        return dict.fromkeys(names) | {"by_position": (), "divergence": None} | _sums(rows)
    told = {name: getattr(found, name) for name in names} | {"by_position": found.by_position}
    if not found.drafted:
        told["acceptance_rate"] = None
    if not found.draft_share and not found.verify_share:  # counts without times
        told |= dict.fromkeys(("draft_share", "verify_share", "other_share"))
    relaxed = [sum(some.relaxed for turn in row.turns for some in turn.rounds) for row in rows]
    emitted = [sum(some.emitted for turn in row.turns for some in turn.rounds) for row in rows]
    return told | {"divergence": draws.estimate(over(relaxed, emitted))}


def _sums(rows: list[Row]) -> dict[str, float | None]:
    """What the sums of an engine that tells no single passes give."""
    turns = [turn for row in rows for turn in row.turns if turn.passes]
    accepted, drafted, passes = (sum(turn.total(name) or 0 for turn in turns) for name in ("accepted", "drafted", "passes"))
    tokens = sum(len(turn.tokens) for turn in turns)
    return {
        "tau": tokens / passes if passes else None,
        "acceptance_rate": accepted / drafted if drafted else None,
        "drafted_per_round": drafted / passes if passes else None,
    }


def _accuracy(rows: list[Row]) -> dict[str, Accuracy]:
    judged: dict[str, list[bool]] = {}
    for row in rows:
        if row.correct is not None:
            judged.setdefault(row.task, []).append(row.correct)
    return {task: Accuracy(sum(some), len(some), wilson(sum(some), len(some))) for task, some in judged.items()}


def _groups(rows: list[Row], plain: list[Row] | None) -> dict[str, Group]:
    found: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault(row.group, []).append(i)
    return {name: _group([rows[i] for i in some], [plain[i] for i in some] if plain else None) for name, some in sorted(found.items())}


def _group(rows: list[Row], plain: list[Row] | None) -> Group:
    draws = paired(rows)
    found = draws.estimate(speed(rows))
    return Group(draws.n, found.point if found else 0.0, draws.estimate(quotient(speed(rows), speed(plain))) if plain else None)


def _likeness(row: Row, other: Row) -> float:
    """Length of the common prefix of two answers, turns joined, over that of the longer: 1 where they are equal."""
    a, b = ([token for turn in some.turns for token in turn.tokens] for some in (row, other))
    return _common(a, b) / max(len(a), len(b)) if a or b else 1.0


def _common(a: Sequence[Any], b: Sequence[Any]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _is_plain(row: Row) -> bool:
    """Whether a peer's variant is named like its engine, with nothing behind but (the beginning of) its precision."""
    engine, rest = row.engine.lower(), row.variant.lower()
    if not rest.startswith(engine):
        return False
    letters, precision = (re.sub(r"[\W_]", "", text) for text in (rest.removeprefix(engine), row.precision.lower()))
    return letters == PLAIN or precision.startswith(letters)


def _leads(name: str, other: str) -> bool:
    return other.startswith(f"{name}-")


def _quantile(values: Array, q: float) -> float | None:
    return float(np.quantile(values, q)) if len(values) else None


def _rank(row: Row, own: str | None) -> tuple[Any, ...]:
    """Plain first, ours, then the peers, each after its own plain; numbers within names by size."""
    parts = [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", row.variant)]
    return row.variant != PLAIN, row.engine != OURS, row.engine, own != PLAIN, own or "", row.variant != own, parts
