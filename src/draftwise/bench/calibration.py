"""Which nodes of a draft tree get accepted: the ranks of accepted children along real samples, without a tree as large as all that could be.

At each place of a text the drafter lists its children, the real rule judges them, and the token that comes out goes on the text: an exact sample
of the target, at the cost of plain decoding. The run of ranks up to the first place where no child was accepted is then the path that a tree
large enough would have had accepted from that place on, since what a node's children are depends on the text before it alone. So the passes that any
tree would have taken can be counted afterwards. (Song et al. 2025 decode with a tree of 625 nodes instead, whose passes cost accordingly.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from draftwise import noise, probs
from draftwise.methods import shapes
from draftwise.methods.recycling import Recycling
from draftwise.methods.speculative import Speculative
from draftwise.methods.stand import Stand
from draftwise.noise import Noise
from draftwise.protocols import Ask, Backend, Drafter
from draftwise.rounds import NOTHING
from draftwise.types import Draft, Feed, Outcome, Rows, Sampling, Target, Text, Uniforms

DRAFTERS = ("stand", "recycling")
NONE = -1
"""The rank where no child was accepted."""


def star(name: str, width: int, vocab_size: int) -> Drafter:
    """A new drafter that lists `width` children and looks no further. Raises ValueError for a drafter without trees of its own."""
    shape = shapes.shape((rank,) for rank in range(width))
    if name == "stand":
        return Stand(top=width, tree=shape, share="all", vocab_size=vocab_size)
    if name == "recycling":
        return Recycling(top=width, tree=shape)
    raise ValueError(f"there is no tree drafter {name!r} to calibrate for: {' or '.join(DRAFTERS)}")


def ranks(target: Backend, drafter: Drafter, prompt: Sequence[int], sampling: Sampling, id: int = 0, chunk: int = 256) -> list[int]:
    """One sample after a prompt: for each of its tokens the rank at which the drafter had it accepted, or `NONE`."""
    tokens = list(prompt)
    text = Text(id, 0, tokens, sampling, Noise(sampling.seed))
    found: list[int] = []
    try:
        while len(found) < sampling.max_tokens and len(tokens) < target.max_length and (not found or tokens[-1] not in sampling.stop_ids):
            while len(tokens) - target.length(0) > chunk:
                target.forward([Feed(0, torch.tensor(tokens[target.length(0) :][:chunk]), 0)])
            (draft,) = drafter.propose([Ask(text, 1)])
            logits = target.forward([Feed(0, torch.tensor(tokens[target.length(0) :]), 1)])[0].logits
            rank, token = _judged(logits, draft, text)
            found.append(rank)
            tokens.append(token)
            drafter.observe(text, NOTHING, Outcome([], token, (), 0, Rows(logits, {})))
    finally:
        target.free(0)
        drafter.free(text)
    return found


def _judged(logits: torch.Tensor, draft: Draft, text: Text) -> tuple[int, int]:
    """The rank of the accepted child and its token; `NONE` and what is sampled instead where all were refused. `logits` [1, V]."""
    n, position = len(draft.tokens), len(text.tokens)
    p = probs.warp(logits, text.sampling, lambda _: text.tokens)
    u = Uniforms(text.noise.fresh(noise.ACCEPT, 0, n), text.noise.at(noise.SAMPLE, 0, position, n + 1))
    same = Target(p.expand(n + 1, -1), logits.expand(n + 1, -1), torch.ones(n, dtype=torch.bool))  # children are judged by row 0 only
    parents = None if not n else torch.full((n,), -1)
    verdict, _ = Speculative().judge(same, draft._replace(parents=parents), u, 0)
    if verdict.path:
        return verdict.path[0], int(draft.tokens[verdict.path[0]])
    return NONE, int(probs.sample(verdict.weights[None], u.sample[:1])[0])


def expected(runs: Sequence[Sequence[int]], nodes: Sequence[shapes.Ranks], width: int, depth: int) -> float:
    """Tokens a pass that a tree would have given on these texts."""
    tree = set(nodes)
    passes = sum(1 for run in runs for _ in shapes.rounds(run, tree, width, depth))
    return sum(len(run) for run in runs) / max(passes, 1)


def tree(runs: Sequence[Sequence[int]], nodes: int, width: int, depth: int, made: dict[str, Any]) -> dict[str, Any]:
    """The record of a tree file from all runs. Raises ValueError where no child was ever accepted."""
    found = shapes.best(runs, nodes, width, depth)
    places = sum(len(run) for run in runs)
    if not found[0][1]:
        raise ValueError(f"the drafter had nothing accepted at {places} places: more or longer samples are needed (--max-tokens, --samples)")
    paths = [path for path, _ in found]
    sizes = sorted({n for n in (1, 2, 4, 8, 16, 32, 64) if n < len(found)} | {len(found)})
    gains = {str(n): round(expected(runs, paths[:n], width, depth), 3) for n in sizes}
    passes = sum(1 for run in runs for _ in shapes.rounds(run, set(paths), width, depth))
    return shapes.record(found, passes, {**made, "places": places, "tokens_per_pass": gains})
