"""Several answers to one problem: which rows belong together, and how the first compares with the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from draftwise.bench.bootstrap import Bootstrap, Estimate, Statistic, quotient
from draftwise.bench.schema import Row


class Samples(NamedTuple):
    """Where each problem was answered several times: tokens per second and tau (None where it cannot be told) of the first answers to all problems,
    of the second, ...; and the speed of the last over that of the first."""

    tokens_per_second: tuple[float, ...]
    tau: tuple[float | None, ...]
    last_over_first: Estimate | None


def clusters(rows: Sequence[Row]) -> list[int]:
    """For each row the number of its problem: samples of one problem share it."""
    numbers: dict[tuple[str, int, str], int] = {}
    return [numbers.setdefault((row.task, row.version, row.id), len(numbers)) for row in rows]


def paired(rows: Sequence[Row]) -> Bootstrap:
    """Resamples of the problems that these rows answer."""
    each = clusters(rows)
    n = len(set(each))
    return Bootstrap(n, clusters=each if n < len(each) else None)


def by_sample(rows: Sequence[Row], speed: Callable[[Sequence[Row]], Statistic], tau: Callable[[Sequence[Row]], float | None]) -> Samples | None:
    """The figures by which answer to its problem it was. None where each problem was asked once. Last and first are compared over the problems
    that have both."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        if row.sample is not None:
            found.setdefault(row.sample, []).append(row)
    if len(found) < 2:
        return None
    each = [found[sample] for sample in sorted(found)]
    both = {(row.task, row.id) for row in each[0]} & {(row.task, row.id) for row in each[-1]}
    first, last = (sorted((row for row in some if (row.task, row.id) in both), key=lambda row: (row.task, row.id)) for some in (each[0], each[-1]))
    rates = tuple(float(speed(some)(np.ones((1, len(some))))[0]) for some in each)
    return Samples(rates, tuple(map(tau, each)), Bootstrap(len(first)).estimate(quotient(speed(last), speed(first))) if first else None)
