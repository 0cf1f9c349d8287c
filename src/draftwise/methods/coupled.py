"""Coupled: the tokens of plain decoding for the same seed, and not only their distribution.

    the target's token at depth d is y = argmax(log p_d + g_d);  draft token x accepted iff x = y;  the first one refused is replaced by y

g is Gumbel noise counted by output position, so y does not depend on what was drafted. A drafter that takes the argmax of its own log
law plus the same g agrees often; any other drafter is still judged correctly, only less often accepted. At temperature 0 p is one-hot and
g changes nothing, so that the caller may leave it out. In a tree, the child that is y is gone down to, if there is one.

References: the Gumbel-max trick (Gumbel 1954); Daliri, Musco, Suresh 2024, "Coupling without communication and drafter-invariant
speculative decoding" (arXiv 2408.07978).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from draftwise.evidence import Live, choose
from draftwise.methods.speculative import one_hot
from draftwise.protocols import Evidence, Relax, always
from draftwise.trees import children
from draftwise.types import Decision, Draft, Target, Uniforms, Verdict


@dataclass(frozen=True)
class Coupled:
    """The state is a constant 0."""

    lossless: ClassVar[bool] = True
    trees: ClassVar[bool] = True
    wants_logits: ClassVar[bool] = False
    coupled: ClassVar[bool] = True

    def init(self, last: int | None) -> int:
        return 0

    def decide(self, evidence: Evidence, state: int, relax: Relax = always) -> Decision:
        n = len(evidence)
        return Decision(next((i for i in range(n) if not evidence.match(i)), n), (), state)

    def judge(self, target: Target, draft: Draft, u: Uniforms, state: int, relax: Relax = always) -> tuple[Verdict, int]:
        if draft.parents is not None:
            return _down(target, draft, u), state
        evidence = Live(target, draft, u)
        n, _, state = self.decide(evidence, state)
        return Verdict(list(range(n)), one_hot(evidence.choice(n), target.p[n])), state


def _down(target: Target, draft: Draft, u: Uniforms) -> Verdict:
    """The path of the target's own choices as far as the tree holds it."""
    tokens: list[int] = draft.tokens.tolist()
    below = children(draft.parents, len(tokens))
    path: list[int] = []
    while True:
        here = path[-1] if path else -1
        chosen = choose(target, u, here + 1, len(path))
        child = next((i for i in below[here] if tokens[i] == chosen), None)
        if child is None:
            return Verdict(path, one_hot(chosen, target.p[here + 1]))
        path.append(child)
