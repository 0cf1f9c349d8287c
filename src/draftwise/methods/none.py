"""None: never drafts, so that every round is one plain step of the target."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from draftwise.protocols import Ask
from draftwise.types import Draft, Outcome, Text


class NoDraft:
    """Gives an empty draft to every request. It has nothing to read, so it never lags."""

    taps: tuple[int, ...] = ()
    has_logits: bool = True
    learns_rows: bool = False

    def lag(self, text: Text) -> int:
        return 0

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        return [Draft(torch.zeros(0, dtype=torch.int64), origin="none") for _ in asks]

    def observe(self, text: Text, draft: Draft, outcome: Outcome) -> None:
        pass

    def free(self, text: Text) -> None:
        pass
