"""Token recycling: the target's own runners-up after a token are what is drafted after it the next time.

    M[t] <- the `top` likeliest tokens of the latest row after t, for every token of the draft, refused ones too    (replaced, not merged)
    draft: a fixed tree; the children of a node with token t are M[t] in order

No model and no law: the children are chosen without chance (``probs=None``), so each is accepted with the probability the target gives it.

Reference: Luo et al. 2024, "Turning Trash into Treasure: Accelerating Inference of Large Language Models with Token Recycling" (arXiv
2408.08696). Differs from it: the tree has the paper's level sizes (8, 21, 25, 15, 8, 3), but which nodes they are is a reconstruction (those
of low ranks; `draftwise calibrate-tree --drafter recycling` makes one from data); and rows of a prompt are not learned, since nothing asks
the target for them. The paper's headline, twice as fast, takes a pass over 81 tokens to cost as much as one over a single token: true of a
large GPU at batch 1, not of a CPU, where `nodes` should be small.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from draftwise import wide
from draftwise.methods import shapes
from draftwise.methods.contexts import held
from draftwise.protocols import Ask
from draftwise.types import Draft, Outcome, Text

_LEVELS = (8, 21, 25, 15, 8, 3)


class Recycling:
    """`tree`: 'default', 'chain', or a file of `draftwise calibrate-tree`; `nodes`: its best so many (0 = all). `share`: 'all' requests learn
    into one matrix of 4 `top` bytes a token of the vocabulary, or each 'request' into its own. Raises ValueError for options out of range."""

    taps: tuple[int, ...] = ()
    has_logits: bool = False
    learns_rows: bool = True

    def __init__(self, top: int = 8, tree: str | shapes.Shape = "default", nodes: int = 80, share: str = "all") -> None:
        if top < 1 or nodes < 0:
            raise ValueError(f"top must be at least 1 and nodes at least 0 (all), got {top} and {nodes}")
        if share not in ("all", "request"):
            raise ValueError(f"share must be 'all' or 'request', got {share!r}")
        self.top, self.share = top, share
        self.shape = shaped(tree, nodes, top)
        self.trees = not self.shape.is_chain
        self._shared: NDArray[np.int32] | None = None
        self._own: dict[int, NDArray[np.int32]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices."""
        return sum(matrix.nbytes for matrix in (self._shared, *self._own.values()) if matrix is not None)

    def lag(self, text: Text) -> int:
        return 0

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        return [self._draft(ask.text, ask.n) for ask in asks]

    def observe(self, text: Text, draft: Draft, outcome: Outcome) -> None:
        rows = outcome.rows.logits
        if outcome.last is None or not len(rows):
            return
        last = text.tokens[len(text.tokens) - held(text, draft, outcome) - 1]
        tokens = [last, *draft.tokens.tolist()]
        found = wide.largest(rows.float(), min(self.top, rows.shape[-1]))[1].cpu().numpy()
        matrix = self._matrix(text, rows.shape[-1])
        for token, ids in zip(tokens, found, strict=True):  # in order: of a token that comes twice the latest row counts
            matrix[token, : len(ids)] = ids

    def free(self, text: Text) -> None:
        self._own.pop(text.id, None)

    def _matrix(self, text: Text, vocab: int) -> NDArray[np.int32]:
        if self.share == "request":
            return self._own.setdefault(text.id, np.full((vocab, self.top), -1, np.int32))
        if self._shared is None:
            self._shared = np.full((vocab, self.top), -1, np.int32)
        return self._shared

    def _draft(self, text: Text, n: int) -> Draft:
        matrix = self._own.get(text.id) if self.share == "request" else self._shared
        tokens: list[int] = []
        parents: list[int] = []
        live = [(0, -1, text.tokens[-1])]  # node of the shape, index in the draft, token
        for _ in range(n if matrix is not None else 0):
            grown = []
            for node, index, token in live:
                first, count = self.shape.children[node]
                known = [] if token in text.sampling.stop_ids and index >= 0 else matrix[token, :count].tolist()  # type: ignore[index]
                for rank, child in enumerate(known):
                    if child >= 0:
                        grown.append((first + rank, len(tokens), child))
                        tokens.append(child)
                        parents.append(index)
            live = grown
        above = torch.tensor(parents, dtype=torch.int64) if self.trees and tokens else None
        return Draft(torch.tensor(tokens, dtype=torch.int64), parents=above, origin="recycling")


def shaped(tree: str | shapes.Shape, nodes: int, width: int) -> shapes.Shape:
    """The shape an option names. Where a node has more children than the drafter has tokens for it, it gets as many as there are."""
    if isinstance(tree, shapes.Shape):
        return tree
    if tree == "chain":
        return shapes.chain(nodes or sum(_LEVELS))
    return shapes.shape(shapes.by_levels(_LEVELS, width)[: nodes or None] if tree == "default" else shapes.read(tree, nodes))
