"""AdaSD: two thresholds, re-estimated from the tokens judged so far, end the draft and accept what the target did not choose.

    stop after a token with e > T_G          T_G = mean e of rejected tokens                             e = entropy of the draft row
    accept x if the base test passes,        T_V = (mean d of accepted + mean d of rejected tokens) / 2  d = Jensen-Shannon distance of the
    or if d < T_V and x is allowed                                                                       draft's and the target's row

The first refused token of a round is its only rejected one: those after it are not judged. Thresholds are frozen within a round. Without
history T_G is infinite and T_V below every distance, so that the first round drafts to the cap and is exactly the base test. The token
that trips T_G is kept and verified; if it were dropped, no rejected token could exceed T_G and drafting would collapse.

Base tests: `match` (x is what the target itself draws with its own uniform; at temperature 0 the argmax) and `ratio` (the rejection
test of `speculative`). With T_V switched off (``tv=False``) both keep the target's law. Version 2 replaces ``d < T_V`` by Bayes' rule on
kernel densities of both kinds of distances, once both hold two different ones, and never at or above the mean rejected distance (with
two bandwidths the posterior alone would accept the farthest rows).

Reference: Lu, Hong, Liu 2025, "AdaSD: adaptive speculative decoding for efficient language model inference" (arXiv 2512.11280). A
reconstruction: both formulas are second hand, and the starts, the cap, the base test, inclusive stopping, freezing, the lifetime of the
statistics, the guards and all of version 2 beyond "KDE and Bayes" are ours. e in nats and d = sqrt(JSD) in base 2 are of the **raw**
softmaxes at every temperature: on warped one-hot rows both thresholds would degenerate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from draftwise.evidence import Live
from draftwise.methods.adasd_kde import POINTS, Distances, mean, posterior, seen
from draftwise.methods.speculative import one_hot, remainder
from draftwise.protocols import Evidence, Relax, always
from draftwise.types import Decision, Draft, DraftStep, Now, Round, Target, Uniforms, Verdict


class Rejected(NamedTuple):
    """Rejected tokens and the sum of their draft entropies."""

    n: int = 0
    entropy: float = 0.0


class Judged(NamedTuple):
    """The distances of the accepted and of the rejected tokens."""

    accepted: Distances
    rejected: Distances


@dataclass(frozen=True)
class AdaSDStop:
    """The draft length: at most `cap` tokens. Statistics belong to the request unless `persist` hands them on to the next."""

    cap: int = 20
    persist: bool = False

    per_token: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.cap < 1:
            raise ValueError(f"cap must be at least 1 draft token, got {self.cap}")

    def init(self, last: Rejected | None) -> Rejected:
        return Rejected() if last is None or not self.persist else last

    def budget(self, state: Rejected, now: Now) -> int:
        return self.cap

    def more(self, state: Rejected, now: Now, steps: Sequence[DraftStep]) -> bool:
        return not state.n or steps[-1].entropy <= state.entropy / state.n

    def update(self, state: Rejected, round: Round) -> Rejected:
        if round.accepted >= len(round.steps):  # all accepted, or a drafter without rows
            return state
        return Rejected(state.n + 1, state.entropy + round.steps[round.accepted].entropy)


@dataclass(frozen=True)
class AdaSDAccept:
    """The acceptance rule, for chains. Statistics belong to the request unless `persist` hands them on to the next."""

    base: str = "match"
    version: int = 1
    tv: bool = True
    persist: bool = False

    lossless: ClassVar[bool] = False
    trees: ClassVar[bool] = False
    wants_logits: ClassVar[bool] = True
    coupled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.base not in ("match", "ratio"):
            raise ValueError(f"base must be 'match' or 'ratio', got {self.base!r}")
        if self.version not in (1, 2):
            raise ValueError(f"version must be 1 (midpoint threshold) or 2 (kernel densities), got {self.version}")

    def init(self, last: Judged | None) -> Judged:
        if last is not None and self.persist:
            return last
        nothing = Distances(grid=(0.0,) * POINTS if self.version == 2 else ())
        return Judged(nothing, nothing)

    def decide(self, evidence: Evidence, state: Judged, relax: Relax = always) -> Decision:
        near = self._near(state)
        distances: list[float] = []
        relaxed: list[int] = []
        for i in range(len(evidence)):
            fine = evidence.match(i) if self.base == "match" else evidence.chance(i).passed
            distances.append(evidence.distance(i))
            if not fine and not (near(distances[i]) and evidence.allowed(i) and relax(i)):
                return Decision(i, tuple(relaxed), Judged(seen(state.accepted, distances[:i]), seen(state.rejected, distances[i:])))
            relaxed += [] if fine else [i]
        return Decision(len(evidence), tuple(relaxed), Judged(seen(state.accepted, distances), state.rejected))

    def judge(self, target: Target, draft: Draft, u: Uniforms, state: Judged, relax: Relax = always) -> tuple[Verdict, Judged]:
        evidence = Live(target, draft, u)
        n, relaxed, after = self.decide(evidence, state, relax)
        return Verdict(list(range(n)), self._next(evidence, n), relaxed), after

    def _near(self, state: Judged) -> Callable[[float], bool]:
        """The test of a distance, frozen for the round."""
        accepted, rejected = state
        if not self.tv or not accepted.n or not rejected.n:
            return lambda d: False
        if self.version == 1:
            threshold = (mean(accepted) + mean(rejected)) / 2
            return lambda d: d < threshold
        if not (accepted.low < accepted.high and rejected.low < rejected.high):
            return lambda d: False
        return lambda d: d < mean(rejected) and posterior(accepted, rejected, d) > 0.5

    def _next(self, evidence: Live, n: int) -> Tensor:
        """The law of the token after n accepted ones."""
        target, draft = evidence.target, evidence.draft
        if n == len(evidence):
            return target.p[n]
        if self.base == "ratio":
            return remainder(target, draft, n)
        # the target's own choice, which draft token n is not; where that token has no mass drawing from p is drawing something else
        return one_hot(evidence.choice(n), target.p[n]) if float(target.p[n, evidence.token(n)]) else target.p[n]
