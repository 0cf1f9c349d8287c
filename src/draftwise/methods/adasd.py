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

import torch
from torch import Tensor

from draftwise import probs
from draftwise.methods.adasd_kde import POINTS, Distances, mean, posterior, seen
from draftwise.methods.speculative import one_hot, passes, remainder
from draftwise.protocols import Relax, always
from draftwise.types import Draft, DraftStep, Now, Round, Target, Uniforms, Verdict


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

    def judge(self, target: Target, draft: Draft, u: Uniforms, state: Judged, relax: Relax = always) -> tuple[Verdict, Judged]:
        passed = matches(target, draft, u) if self.base == "match" else passes(target, draft, u)
        near, allowed = self._near(state), target.allowed.tolist()
        distances: list[float] = []
        relaxed: list[int] = []
        for i, fine in enumerate(passed):
            if i == len(distances):
                distances += _distances(target, draft, i, passed)
            if not fine and not (near(distances[i]) and allowed[i] and relax(i)):
                return self._refused(target, draft, u, i, relaxed), Judged(seen(state.accepted, distances[:i]), seen(state.rejected, distances[i:]))
            relaxed += [] if fine else [i]
        n = len(passed)
        return Verdict(list(range(n)), target.p[n], tuple(relaxed)), Judged(seen(state.accepted, distances), state.rejected)

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

    def _refused(self, target: Target, draft: Draft, u: Uniforms, i: int, relaxed: list[int]) -> Verdict:
        weights = choice(target, draft, u, i) if self.base == "match" else remainder(target, draft, i)
        return Verdict(list(range(i)), weights, tuple(relaxed))


def matches(target: Target, draft: Draft, u: Uniforms) -> list[bool]:
    """Whether each token of a chain is what the target draws by inversion with its own uniform, ``probs.sample(p, u.sample)``: [N].

    A token that has all of the mass, or none, needs no look at its row. For the others a sum up to the token stands for the cumulative sum
    of the row, at a tenth of the cost."""
    if not len(draft.tokens):
        return []
    masses = probs.picked(target.p, draft.tokens).tolist()
    passed = [mass == 1 for mass in masses]
    end = masses.index(0.0) if 0.0 in masses else len(masses)  # above temperature 0 nothing goes on after a token without mass
    for i, drawn in zip(range(end), _drawn(target.p[:end], draft.tokens[:end].tolist(), masses, u.sample), strict=True):
        passed[i] = passed[i] or drawn
    return passed


def _drawn(p: Tensor, tokens: Sequence[int], masses: Sequence[float], u: Tensor) -> list[bool]:
    """Whether inversion of each row of `p` [n, V] at `u` [n] gives its token, whose mass is known."""
    if all(mass == 1 for mass in masses[: len(tokens)]):
        return [True] * len(tokens)
    before = torch.stack([row[:token].sum(dtype=torch.float64) for row, token in zip(p, tokens, strict=True)])
    bounds = torch.stack([before, p.sum(-1, dtype=torch.float64)]).tolist()
    return [low <= aim * total < low + mass for low, total, mass, aim in zip(*bounds, masses, u.tolist(), strict=False)]


def choice(target: Target, draft: Draft, u: Uniforms, i: int) -> Tensor:
    """The law of the target's own choice in place of draft token i, which is not it: one-hot [V], or p where that token has no mass, so that
    drawing from p is drawing something else."""
    p = target.p[i]
    if not float(p[int(draft.tokens[i])]):
        return p
    return one_hot(int(probs.sample(p[None], u.sample[i : i + 1])[0]), p)


def _distances(target: Target, draft: Draft, start: int, passed: Sequence[bool]) -> list[float]:
    """The distances of token `start` and those after it, up to the first that fails the base test: the others may never be judged."""
    if draft.logits is None:
        raise ValueError(f"the acceptance rule adasd compares rows, and the drafter {draft.origin!r} gave none: use a draft model, or another rule")
    end = next((i + 1 for i in range(start, len(passed)) if not passed[i]), len(passed))
    found: list[float] = probs.js_distance(target.logits[start:end], draft.logits[start:end].to(target.logits.device)).tolist()
    return found
