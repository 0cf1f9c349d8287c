"""Heuristic: two tokens more after a fully accepted round, one fewer after any other.

    n <- min(n + 2, cap)   if every drafted token was accepted
    n <- max(n - 1, 1)     else

Reference: the `heuristic` schedule of assisted generation in huggingface/transformers (Gante 2023, "Assisted generation: a new direction
toward low-latency text generation"). Differs from it: `cap` bounds the growth, and each request starts afresh unless `persist` is set
(there: ``heuristic_transient`` against ``heuristic``). The start of 5 is that of old versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from draftwise.types import DraftStep, Now, Round


@dataclass(frozen=True)
class Heuristic:
    """Starts with `start` tokens, adds `up`, takes `down` away, stays within 1 and `cap`. The state is the next length."""

    start: int = 5
    up: int = 2
    down: int = 1
    cap: int = 20
    persist: bool = False

    per_token: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 1 <= self.start <= self.cap:
            raise ValueError(f"start and cap must be draft lengths with 1 <= start <= cap, got start={self.start} and cap={self.cap}")
        if self.up < 0 or self.down < 0:
            raise ValueError(f"up and down must be at least 0 draft tokens, got up={self.up} and down={self.down}")

    def init(self, last: int | None) -> int:
        return self.start if last is None or not self.persist else last

    def budget(self, state: int, now: Now) -> int:
        return state

    def more(self, state: int, now: Now, steps: Sequence[DraftStep]) -> bool:
        return True

    def update(self, state: int, round: Round) -> int:
        return min(state + self.up, self.cap) if round.accepted == round.depth else max(state - self.down, 1)
