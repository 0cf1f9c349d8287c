"""Budget: any lossy rule, held to a stated mean divergence per emitted token.

    relax token i only if   spent + cost_i <= rate * (tokens emitted so far, i included);   then spent += cost_i

for each unit that has a rate:

- ``tv``: cost 1. A relaxed acceptance emits a token that a lossless rule would have replaced. Where the rule leaves the residual as it is,
  the chance of that is the total variation distance of the emitted law from the target's (at temperature 0 the distance is 1 or 0), so the number of
  relaxed tokens is an unbiased account of the distances summed over positions. ``tv=0`` relaxes nothing, ``tv=1`` forbids nothing.
- ``kl``: cost -ln p(x) in nats, p the warped law: the divergence of "this token for sure" from the target's law. Infinite where p(x) = 0, so at
  temperature 0 it relaxes nothing. It prices relaxed tokens only, so it is no estimate of the divergence of the whole law.

What is guaranteed: at every length of the text, the account spent is at most the rate times the tokens. It is an account of each position given
the text before it, not of the quality of the text, and not of the law of whole texts. Ours; no paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

from draftwise.methods.adasd import AdaSDAccept
from draftwise.protocols import Accept, Decides, Evidence, Relax, always
from draftwise.trees import depths, judges
from draftwise.types import Decision, Draft, Target, Uniforms, Verdict


class Account(NamedTuple):
    """`tokens` emitted; spent in both units; `refused` relaxations; the state of the rule inside."""

    tokens: int
    tv: float
    kl: float
    refused: int
    inner: Any


@dataclass(frozen=True)
class Budget:
    """`tv`: mean total variation per emitted token; `kl`: mean nats per emitted token, 0 = not held to. `over`: the lossy rule."""

    tv: float = 0.02
    kl: float = 0.0
    over: Any = AdaSDAccept()

    lossless: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.tv <= 1:
            raise ValueError(f"tv must be in [0, 1], the mean total variation per emitted token, got {self.tv}")
        if not (math.isfinite(self.kl) and self.kl >= 0):
            raise ValueError(f"kl must be a number of nats >= 0 (0: not held to), got {self.kl}")
        if not isinstance(self.over, Accept):
            raise ValueError(f"over takes an acceptance rule in brackets, such as over=[adasd], got {self.over!r}")
        if self.over.lossless:
            raise ValueError(f"{type(self.over).__name__} is lossless: a budget is for rules that relax")

    @property
    def trees(self) -> bool:
        return bool(self.over.trees)

    @property
    def wants_logits(self) -> bool:
        return bool(self.over.wants_logits)

    @property
    def coupled(self) -> bool:
        return bool(self.over.coupled)

    def init(self, last: Account | None) -> Account:
        return Account(0, 0.0, 0.0, 0, self.over.init(last.inner if last else None))

    def decide(self, evidence: Evidence, state: Account, relax: Relax = always) -> Decision:
        purse = _Purse(self, state, relax, lambda i: evidence.chance(i).p)
        accepted, relaxed, inner = cast(Decides, self.over).decide(evidence, state.inner, purse.relax)
        return Decision(accepted, relaxed, purse.closed(accepted, inner))

    def judge(self, target: Target, draft: Draft, u: Uniforms, state: Account, relax: Relax = always) -> tuple[Verdict, Account]:
        n = len(draft.tokens)
        rows, at = judges(draft.parents, n), range(n) if draft.parents is None else depths(draft.parents).tolist()
        purse = _Purse(self, state, relax, lambda i: float(target.p[int(rows[i]), int(draft.tokens[i])]), lambda i: at[i])
        verdict, inner = self.over.judge(target, draft, u, state.inner, purse.relax)
        return verdict, purse.closed(len(verdict.path), inner)

    def report(self, state: Account) -> dict[str, float]:
        """What was spent and what is left, for people: {unit: ..., unit_left: ..., 'refused': ...}."""
        found = {"tv": state.tv, "tv_left": self.tv * state.tokens - state.tv}
        if self.kl:
            found |= {"kl": state.kl, "kl_left": self.kl * state.tokens - state.kl}
        return found | {"refused": float(state.refused)}


class _Purse:
    """The account during one round. `p`: the warped probability of draft token i. `depth`: its level, in a chain i."""

    def __init__(
        self, budget: Budget, state: Account, outer: Relax, p: Callable[[int], float], depth: Callable[[int], int] = lambda i: i
    ) -> None:
        self.budget, self.state, self.outer, self.p, self.depth = budget, state, outer, p, depth

    def relax(self, i: int) -> bool:
        """Asks the account, then whoever stands above; books what both allow."""
        state, p = self.state, self.p(i) if self.budget.kl else 1.0
        emitted = state.tokens + self.depth(i) + 1
        nats = -math.log(p) if p > 0 else math.inf
        fits = state.tv + 1 <= self.budget.tv * emitted and (not self.budget.kl or state.kl + nats <= self.budget.kl * emitted)
        if not fits or not self.outer(i):
            self.state = state._replace(refused=state.refused + (not fits))
            return False
        self.state = state._replace(tv=state.tv + 1, kl=state.kl + nats)
        return True

    def closed(self, accepted: int, inner: Any) -> Account:
        """The account after a round in which so many draft tokens stayed and one more was written."""
        return self.state._replace(tokens=self.state.tokens + accepted + 1, inner=inner)
