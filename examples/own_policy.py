"""A length policy of your own in one class: double the draft after a round that was accepted whole, halve it otherwise.

    python examples/own_policy.py [TARGET [DRAFT]]

The policy itself is a frozen value; what changes is the state, a plain number that each request carries. Whatever a length policy does,
the text keeps its distribution: that is the acceptance rule's business.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import draftwise
from draftwise.types import DraftStep, Now, Round

PROMPT = "Copy this line three times:\nthe quick brown fox jumps over the lazy dog\nthe quick brown fox jumps over the lazy dog\n"


@dataclass(frozen=True)
class Doubling:
    """Between 1 and `most` tokens; the state is the next length."""

    most: int = 16
    per_token: ClassVar[bool] = False  # it never looks at single draft tokens

    def init(self, last: int | None) -> int:
        return last or 2

    def budget(self, state: int, now: Now) -> int:
        return state

    def more(self, state: int, now: Now, steps: Sequence[DraftStep]) -> bool:
        return True

    def update(self, state: int, round: Round) -> int:
        return min(2 * state, self.most) if round.accepted == round.depth else max(1, state // 2)


def main(target: str = "smollm2", draft: str | None = None) -> None:
    model = draftwise.load(target, draft, length=Doubling())
    for name, result in [("doubling", model.generate(PROMPT, 60)), ("fixed 4", model.generate(PROMPT, 60, method="fixed:n=4"))]:
        stats = result.stats
        print(f"{name:8} drafted {stats.drafted_per_round:4.1f} a round, accepted {stats.acceptance_rate:4.0%}, {stats.tau:.2f} tokens per pass")


if __name__ == "__main__":
    main(*sys.argv[1:])
