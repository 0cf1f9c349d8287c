"""Fixed: always the same draft length.

    budget = n

The baseline of every adaptive length; ``n=0`` decodes plainly. It is the length of the original papers on speculative decoding.

Reference: Leviathan, Kalman, Matias 2023, "Fast inference from transformers via speculative decoding" (arXiv 2211.17192).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from draftwise.types import DraftStep, Now, Round


@dataclass(frozen=True)
class Fixed:
    """Drafts `n` tokens each round. The state is a constant 0."""

    n: int = 5

    per_token: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ValueError(f"n must be at least 0 draft tokens (0 decodes plainly), got {self.n}")

    def init(self, last: int | None) -> int:
        return 0

    def budget(self, state: int, now: Now) -> int:
        return self.n

    def more(self, state: int, now: Now, steps: Sequence[DraftStep]) -> bool:
        return True

    def update(self, state: int, round: Round) -> int:
        return state
