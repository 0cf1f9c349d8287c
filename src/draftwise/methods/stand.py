"""STAND: drafts a tree from mean laws of the target after the same n-gram, children drawn without replacement.

    D = the law stored for the longest run of the last `order` .. 1 tokens (`methods.grams`);   q = D at the request's temperature and truncation
    children of a node: the k largest of  ln q + g,  g fresh Gumbel noise, in that order;  k is the tree's, at most the support of q
    `Draft.probs` row of a child: q without its elder siblings, renormalised                       (T = 0: the k largest of D, no law)
    after every pass, for each row of the target: the store learns it, rows after refused tokens included

k is fixed before the draw and no number is used twice, which the acceptance test needs to be exact. A shared `coupled` noise takes the place of g
where the request is coupled, so that the first child of a node is the token plain decoding takes whenever D is right.

Reference: Song et al. 2025, "Accelerated Test-Time Scaling with Model-Free Speculative Sampling" (arXiv 2506.04708). A reconstruction where the
paper is silent: the order of merge and truncation (union first, so that an id that stays keeps its exact mean), the verification (siblings
without replacement), raw laws in the store and the temperature applied to their mean. Differs from the paper: rows of the prompt are not
learned, since nothing asks the target for them; noise is made when it is needed, not in bulk; the built-in tree comes from `draftwise
calibrate-tree` on 20 texts of Qwen2.5-Coder-0.5B for five GSM8K problems at T = 0.6, and is a long trunk with few branches.
Requests that share a store need different seeds, as a list of prompts has: with the same seed, what one wrote and what the next
draws are not independent.

The paper's headline (2.7 times as fast with 16 samples a problem) is of texts of thousands of tokens by a reasoning model on a GPU, where a
pass over 81 rows costs what one over a single row costs and the store grows for minutes. On a CPU a row more costs nearly its share: take
`nodes=8` or so. Answers of a hundred tokens fill a store little.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from draftwise import noise, nucleus, probs
from draftwise.methods import shapes
from draftwise.methods.contexts import held, tails
from draftwise.methods.grams import Grams, identity
from draftwise.methods.recycling import shaped
from draftwise.protocols import Ask
from draftwise.types import Draft, Outcome, Sampling, Sparse, Text

_SHARES = ("problem", "all", "request")
_LEAST = 1e-12  # what is rarer is no child: float32 has to hold the law that its elder siblings leave


@dataclass
class _Tree:
    """A draft that grows: `live` holds (node of the shape, index in the draft, last tokens) of its deepest level."""

    live: list[tuple[int, int, list[int]]]
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    ids: list[NDArray[np.int64]] = field(default_factory=list)
    laws: list[NDArray[np.float64]] = field(default_factory=list)


class Stand:
    """`order`, `top`, `size`: of the store. `tree`: 'default', 'chain', or a file of `draftwise calibrate-tree`; `nodes`: its best so many (0 = all).
    `share`: who learns into one store: requests of the same prompt ('problem'; those of the last four prompts are kept), 'all', or each
    'request' alone. `refused`: learn rows after refused tokens too. `store`: a file that is read now and written whenever a request ends; all
    requests share it. Raises ValueError for options out of range and for a file of another model."""

    taps: tuple[int, ...] = ()
    has_logits: bool = False
    learns_rows: bool = True

    def __init__(
        self,
        order: int = 4,
        top: int = 10,
        size: int = 200_000,
        tree: str | shapes.Shape = "default",
        nodes: int = 80,
        share: str = "problem",
        refused: bool = True,
        store: str | None = None,
        model: str = "",
        vocab_size: int = 0,
        problems: int = 4,
    ) -> None:
        if nodes < 0 or problems < 1:
            raise ValueError(f"nodes must be at least 0 (all) and problems at least 1, got {nodes} and {problems}")
        if share not in _SHARES:
            raise ValueError(f"share must be one of {', '.join(_SHARES)}, got {share!r}")
        self.order, self.top, self.size, self.refused, self.problems = order, top, size, refused, problems
        self.file, self.model, self.vocab_size = store, model, vocab_size
        self.share = "all" if store else share
        self.shape = shaped(_built_in() if tree == "default" else tree, nodes, top)
        self.trees = not self.shape.is_chain
        self._all = Grams(order, top, size)
        if store and Path(store).exists():
            self._all.load(store, model)
        self._stores: OrderedDict[tuple[int, ...], Grams] = OrderedDict()
        self._own: dict[int, Grams] = {}

    @classmethod
    def from_context(
        cls,
        context: Any,
        order: int = 4,
        top: int = 10,
        size: int = 200_000,
        tree: str = "default",
        nodes: int = 80,
        share: str = "problem",
        refused: bool = True,
        store: str | None = None,
    ) -> Stand:
        """Built by the catalog, for the model whose rows it will see."""
        return cls(order, top, size, tree, nodes, share, refused, store, identity(context.target), context.vocab_size)

    @property
    def nbytes(self) -> int:
        """Bytes of all stores."""
        return sum(store.nbytes for store in {id(s): s for s in (self._all, *self._stores.values(), *self._own.values())}.values())

    def lag(self, text: Text) -> int:
        return 0

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        return [self._draft(ask.text, ask.n) for ask in asks]

    def observe(self, text: Text, draft: Draft, outcome: Outcome) -> None:
        begin = text.tokens[: len(text.tokens) - held(text, draft, outcome)]
        store = self._store(text, begin)
        if outcome.last is None or not len(outcome.rows.logits):
            return
        wanted = range(len(draft.tokens) + 1) if self.refused else [0, *(i + 1 for i in outcome.path)]
        every = tails(draft, begin, self.order)
        store.learn([every[i] for i in wanted], outcome.rows.logits if self.refused else outcome.rows.logits[list(wanted)])

    def free(self, text: Text) -> None:
        if self._own.pop(text.id, None) is not None and self.file:
            self._all.save(self.file, self.model)

    def _store(self, text: Text, tokens: Sequence[int]) -> Grams:
        """The store of a text; its `tokens` when it is first seen say which problem it is."""
        if text.id not in self._own:
            self._own[text.id] = self._all if self.share == "all" else self._problem(text, tokens) if self.share == "problem" else self._fresh()
        return self._own[text.id]

    def _problem(self, text: Text, tokens: Sequence[int]) -> Grams:
        """The store of a prompt, with an encoder's input where there is one."""
        prompt = (*tokens, *(() if text.source is None else (-1, hash(tuple(text.source.flatten().tolist())))))
        store = self._stores.setdefault(prompt, self._fresh())
        self._stores.move_to_end(prompt)
        while len(self._stores) > self.problems:
            self._stores.popitem(last=False)
        return store

    def _fresh(self) -> Grams:
        return Grams(self.order, self.top, self.size)

    def _draft(self, text: Text, n: int) -> Draft:
        store = self._store(text, text.tokens)
        tree = _Tree([(0, -1, list(text.tokens[-self.order :]))])
        for depth in range(n):
            if not tree.live:
                break
            self._grow(tree, text, depth, *store.find([tail for _, _, tail in tree.live]))
        lawful = text.sampling.temperature > 0 and not text.noise.coupled and tree.tokens
        laws = Sparse(torch.from_numpy(np.stack(tree.ids)), torch.from_numpy(np.stack(tree.laws)).float()) if lawful else None
        above = torch.tensor(tree.parents, dtype=torch.int64) if self.trees and tree.tokens else None
        return Draft(torch.tensor(tree.tokens, dtype=torch.int64), laws, None, above, (), "stand")

    def _grow(self, tree: _Tree, text: Text, depth: int, ids: NDArray[np.int64], p: NDArray[np.float64]) -> None:
        """One level more: the children of all live nodes, whose stored laws are `ids` and `p` [m, top]."""
        q = tempered(p, text.sampling)
        with np.errstate(divide="ignore"):
            scores = np.log(q) + self._gumbel(text, depth, ids)
        order = np.argsort(-scores, 1, kind="stable")
        support = (q > 0).sum(1)
        live, tree.live = tree.live, []
        for i, (node, index, tail) in enumerate(live):
            first, count = self.shape.children[node]
            rest = q[i].copy()
            for rank, at in enumerate(order[i, : min(count, support[i])].tolist()):
                token = int(ids[i, at])
                if token not in text.sampling.stop_ids:  # nothing comes after the end of a text
                    tree.live.append((first + rank, len(tree.tokens), [*tail, token][-self.order :]))
                tree.tokens.append(token)
                tree.parents.append(index)
                tree.ids.append(ids[i].clip(0))
                tree.laws.append(rest / rest.sum())
                rest[at] = 0

    def _gumbel(self, text: Text, depth: int, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Noise for the laws of one level: [m, top]. Fresh, the target's own where the request is coupled, none at temperature 0."""
        if text.sampling.temperature == 0:
            return np.zeros(ids.shape)
        if text.noise.coupled:
            width = max(self.vocab_size, int(ids.max()) + 1)
            return np.asarray(text.noise.race(0, len(text.tokens) + depth, 1, width)[0].numpy()[ids.clip(0)])
        u = text.noise.fresh(noise.DRAFT, 0, ids.size).numpy().reshape(ids.shape)
        return np.asarray(-np.log(-np.log(np.maximum(u, 2.0**-54))))


def tempered(p: NDArray[np.float64], sampling: Sampling) -> NDArray[np.float64]:
    """The laws that children are drawn from: rows `p` [m, top] at the request's temperature and truncation, 0 where nothing is stored."""
    some = p.sum(1) > 0
    q = np.zeros_like(p)
    if not some.any():
        return q
    with np.errstate(divide="ignore", over="ignore", under="ignore"):
        logs = np.log(p[some])
        if sampling.temperature == 0:
            law = p[some]
        elif nucleus.truncates(sampling):
            law = probs.law(torch.from_numpy(logs), sampling, checked=False).double().numpy()
        else:
            law = np.exp((logs - logs.max(1, keepdims=True)) / sampling.temperature)
    law = law / law.sum(1, keepdims=True)
    q[some] = np.where(law < _LEAST, 0, law)
    found: NDArray[np.float64] = q / np.maximum(q.sum(1, keepdims=True), _LEAST)
    return found


def _built_in() -> str:
    """The file of the built-in tree."""
    return str(resources.files("draftwise") / "data" / "stand-tree.json")
