"""What a run has to do, as a pure function of what was asked for: so a resumed run is the plan without what is done."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from draftwise.bench import schema
from draftwise.bench.schema import Key, Problem

_CONTINUES = re.compile(r"[\w-]+=")  # 'b=2' after 'method:a=1,': an option of that method, since a method's name comes before a colon
_PAIR = re.compile(r"(?:(?P<task>.+)=)?(?P<count>\d+)")


class Job(NamedTuple):
    """One problem for one variant, or one `sample` of it: what becomes a row."""

    problem: Problem
    variant: str
    sample: int | None = None

    @property
    def key(self) -> Key:
        """As `Row.key`."""
        return schema.key(self.problem.task, self.problem.id, self.variant, self.sample)

    def __str__(self) -> str:
        which = "" if self.sample is None else f", sample {self.sample + 1}"
        return f"{self.variant} on {self.problem.task} {self.problem.id}{which}"


def jobs(tasks: Sequence[Sequence[Problem]], workers: Mapping[str, object], seed: int, block: int = 1, samples: int = 1) -> list[Job]:
    """All of them in order: the tasks in turn, `block` problems at a time, and for each block the workers in an order drawn by `seed`, so that a
    noisy minute hurts all alike. A larger block swaps workers less often; within it the variants of a worker take turns by problem. `workers`: by
    variant the process that answers for it. All `samples` of a problem come one after the other. Raises ValueError for a block or samples below 1.
    """
    if block < 1 or samples < 1:
        raise ValueError(f"block and samples must be at least 1, got {block} and {samples}")
    problems = [problem for some in zip_longest(*tasks) for problem in some if problem is not None]
    together: dict[object, list[str]] = {}
    for variant, worker in workers.items():
        together.setdefault(worker, []).append(variant)
    found: list[Job] = []
    each = range(samples) if samples > 1 else (None,)
    for start in range(0, len(problems), block):
        chance = random.Random(f"{seed} {start}")
        for variants in chance.sample(list(together.values()), len(together)):
            for problem in problems[start : start + block]:
                found += [Job(problem, variant, sample) for variant in chance.sample(variants, len(variants)) for sample in each]
    return found


def fingerprint(problems: Sequence[Problem]) -> str:
    """What tells two sets of problems apart: their ids and every word of them."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(repr((problem.task, problem.version, problem.id, problem.turns, problem.reference)).encode())
    return digest.hexdigest()[:16]


def split(text: str) -> list[str]:
    """The specs of a comma list; commas in brackets and before a further option of the same spec do not part: ``a,b:x=1,y=2,c`` is three."""
    pieces, depth = [""], 0
    for c in text:
        depth += (c == "[") - (c == "]")
        if c == "," and depth <= 0:
            pieces.append("")
        else:
            pieces[-1] += c
    specs: list[str] = []
    for piece in (piece.strip() for piece in pieces):
        if specs and (_CONTINUES.match(piece) or piece.startswith("[")):
            specs[-1] += "," + piece
        elif piece:
            specs.append(piece)
    return list(dict.fromkeys(specs))


def by_task(text: str, defaults: Mapping[str, int | None], option: str) -> dict[str, Any]:
    """A number for each task, of ``128``, ``humaneval=256,128`` (that for humaneval, this for the rest) or '' (each task's default).
    Raises ValueError for what is no number of at least 1 and for a task that is not asked for."""
    found: dict[str, Any] = dict(defaults)
    for piece in sorted((piece.strip() for piece in text.split(",") if piece.strip()), key=lambda piece: "=" in piece):
        match = _PAIR.fullmatch(piece)
        if match is None or int(match["count"]) < 1:
            raise ValueError(f"{option} takes a number of at least 1, or task=number pairs such as humaneval=256,128, got {piece!r}")
        task, count = match["task"], int(match["count"])
        if task is not None and task not in defaults:
            raise ValueError(f"{option} names the task {task!r}, which is not asked for: there are {', '.join(defaults)}")
        found.update(dict.fromkeys(defaults, count) if task is None else {task: count})
    return found
