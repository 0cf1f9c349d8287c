"""A drafter of trees of one shape over a table model, for tests: siblings drawn with or without replacement, or the likeliest ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from draftwise import noise, probs
from draftwise.backends.table import Table
from draftwise.protocols import Ask
from draftwise.types import Draft, Outcome, Text


class Forest:
    """Level d gets ``shape[d]`` children under every token of the level above. `mode`: 'without', 'with' or 'likeliest'. `wrong`: siblings are
    drawn without replacement, and the laws handed up are those of drawing with it."""

    taps: tuple[int, ...] = ()
    has_logits = False
    learns_rows = False
    trees = True

    def __init__(self, table: Table, shape: Sequence[int], mode: str = "without", wrong: bool = False) -> None:
        self.table, self.shape, self.mode, self.wrong = table, tuple(shape), mode, wrong

    def lag(self, text: Text) -> int:
        return 0

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        return [self._draft(ask) for ask in asks]

    def observe(self, text: Text, draft: Draft, outcome: Outcome) -> None:
        pass

    def free(self, text: Text) -> None:
        pass

    def _draft(self, ask: Ask) -> Draft:
        tokens: list[int] = []
        parents: list[int] = []
        laws: list[torch.Tensor] = []
        level: list[tuple[int, list[int]]] = [(-1, list(ask.text.tokens))]
        for k in self.shape[: ask.n]:
            below: list[tuple[int, list[int]]] = []
            for parent, context in level:
                for token, law in self._siblings(ask.text, context, k):
                    below.append((len(tokens), [*context, token]))
                    tokens, parents, laws = [*tokens, token], [*parents, parent], [*laws, law]
            level = below
        drawn = self.mode != "likeliest" and ask.text.sampling.temperature > 0 and not ask.text.noise.coupled
        return Draft(torch.tensor(tokens), torch.stack(laws) if drawn else None, None, torch.tensor(parents), origin="forest")

    def _siblings(self, text: Text, context: list[int], k: int) -> list[tuple[int, torch.Tensor]]:
        row = probs.warp(self.table.row(context)[None], text.sampling, lambda _: context)[0]
        if self.mode == "likeliest" or text.noise.coupled:
            return [(int(token), row) for token in self.table.row(context).topk(k).indices]
        found = []
        law = row.clone()
        for _ in range(min(k, int((row > 0).sum())) if self.mode == "without" else k):
            token = int(probs.sample(law[None], text.noise.fresh(noise.DRAFT, 0, 1))[0])
            found.append((token, row if self.wrong else law))
            if self.mode == "without":
                law = law.clone()
                law[token] = 0
                law = law / law.sum()
        return found
