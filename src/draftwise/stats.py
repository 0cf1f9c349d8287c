"""From rounds to figures: pure functions over records of rounds, and the running cost table that length policies read.

Definitions follow the field: tau counts the bonus or correction token; the acceptance rate is accepted over drafted **levels** (in a chain:
tokens) and never above 1. Of a tree at most one token a level can be accepted, so that over its nodes the rate would fall with its width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from draftwise.timings import Steps, Timings


class Counts(Protocol):
    """What the figures read of a round: a `draftwise.types.Round`, or whatever remains of one."""

    @property
    def drafted(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def accepted(self) -> int: ...
    @property
    def relaxed(self) -> int: ...
    @property
    def emitted(self) -> int: ...
    @property
    def draft_s(self) -> float: ...
    @property
    def verify_s(self) -> float: ...


class Summary(NamedTuple):
    """`tokens` emitted in `rounds` target passes and `seconds`. `tau`: tokens per target pass. `drafted`: of trees all nodes.
    `by_position[i]`: share of rounds that drafted more than i levels in which the first i+1 were all accepted. `relaxed_share`: of the emitted
    tokens. The three shares of time are of `seconds` and add up to 1; the drafter's prompt reading counts as draft, the target's as verify.
    `drafters`: pairs (who drafted, in how many rounds), most rounds first; empty where the records do not tell. `levels`: drafted, of which
    `acceptance_rate` is the share accepted; of chains the same as `drafted`."""

    tokens: int
    rounds: int
    seconds: float
    tokens_per_second: float
    tau: float
    drafted: int
    accepted: int
    relaxed: int
    acceptance_rate: float
    by_position: tuple[float, ...]
    drafted_per_round: float
    relaxed_share: float
    draft_share: float
    verify_share: float
    other_share: float
    drafters: tuple[tuple[str, int], ...] = ()
    levels: int = 0


def summarize(rounds: Sequence[Counts], seconds: float) -> Summary:
    """The figures of one sequence's `rounds`, decoded in `seconds` of wall time. Empty rounds give zeros."""
    passes = [r for r in rounds if r.emitted]
    tokens, drafted = sum(r.emitted for r in rounds), sum(r.drafted for r in rounds)
    accepted, relaxed, levels = sum(r.accepted for r in rounds), sum(r.relaxed for r in rounds), sum(r.depth for r in rounds)
    draft_share, verify_share = _over(sum(r.draft_s for r in rounds), seconds), _over(sum(r.verify_s for r in rounds), seconds)
    return Summary(
        tokens,
        len(passes),
        seconds,
        _over(tokens, seconds),
        _over(tokens, len(passes)),
        drafted,
        accepted,
        relaxed,
        _over(accepted, levels),
        by_position(passes),
        _over(drafted, len(passes)),
        _over(relaxed, tokens),
        draft_share,
        verify_share,
        max(0.0, 1 - draft_share - verify_share) if seconds > 0 else 0.0,
        tuple(Counter(origin for r in rounds if r.drafted and (origin := getattr(r, "origin", ""))).most_common()),
        levels,
    )


def by_position(rounds: Sequence[Counts]) -> tuple[float, ...]:
    """P(the first i+1 draft levels are all accepted), for i up to the deepest round; over the rounds that drafted that deep."""
    deepest = max((r.depth for r in rounds), default=0)
    reached = [[r for r in rounds if r.depth > i] for i in range(deepest)]
    return tuple(sum(r.accepted > i for r in some) / len(some) for i, some in enumerate(reached))


def _over(a: float, b: float) -> float:
    return a / b if b else 0.0


@dataclass(slots=True)
class Costs:
    """Measured seconds of a draft step and of target passes."""

    steps: Steps = field(default_factory=Steps)
    passes: Timings = field(default_factory=Timings)

    @property
    def draft_s(self) -> float:
        """Of one draft step; NaN where none was measured."""
        return self.steps.usual

    @property
    def verify_s(self) -> tuple[tuple[int, float], ...]:
        """Of a target pass by its rows, in rising order."""
        return self.passes.curve

    def drafting(self, steps: int) -> float:
        """What a proposal of `steps` levels usually takes; NaN where no step was measured."""
        return self.draft_s * steps if steps else 0.0

    def verifying(self, rows: int) -> float:
        """What a target pass over `rows` tokens usually takes; NaN where none was measured."""
        return dict(self.verify_s).get(rows, math.nan)

    def drafted(self, steps: int, seconds: float) -> None:
        """A proposal of `steps` levels took `seconds`."""
        self.steps.add(steps, seconds)

    def verified(self, rows: int, seconds: float) -> None:
        """A target pass over `rows` tokens took `seconds`."""
        self.passes.add(rows, seconds)
