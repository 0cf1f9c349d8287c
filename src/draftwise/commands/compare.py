"""Two texts of one model: where they part, and whether rounding can be the reason. What `draftwise verify` is built on."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from draftwise.noise import Noise
from draftwise.protocols import Backend
from draftwise.types import Feed

TOLERANCE = {"float64": 1e-6, "float32": 1e-3, "float16": 0.0625, "bfloat16": 0.5}
"""How far the logits of one text may lie apart between forwards of different width. For the short types it is 64 units in the last place
of 1, since errors of one unit add up over layers and logits are larger than 1."""


def tolerance(target: Backend) -> float:
    """That of the dtype a backend computes in; of float32 where it does not say or the table does not know."""
    return TOLERANCE.get(str(getattr(target, "dtype", "")).removeprefix("torch."), TOLERANCE["float32"])


class Difference(NamedTuple):
    """`position` counts new tokens from 0. A token is None where that text had ended. `top_gap`: between the two best logits of the target
    there, the text before it fed alone. `gap`: how far the worse of the two tokens lies under the best; inf for an end that only one has."""

    position: int
    plain: int | None
    found: int | None
    top_gap: float
    gap: float


def first_difference(plain: Sequence[int], found: Sequence[int]) -> int | None:
    """The first position at which two token lists are not the same, or None."""
    same = next((i for i, (a, b) in enumerate(zip(plain, found, strict=False)) if a != b), min(len(plain), len(found)))
    return same if same < max(len(plain), len(found)) else None


def likeness(plain: Sequence[int], found: Sequence[int]) -> float:
    """The share of tokens that two lists have in common, in order: 1 for equal ones."""
    return difflib.SequenceMatcher(None, list(plain), list(found), autojunk=False).ratio()


def compare(
    target: Backend,
    prompt: Sequence[int],
    plain: Sequence[int],
    found: Sequence[int],
    temperature: float = 0.0,
    seed: int = 0,
    source: Tensor | None = None,
) -> Difference | None:
    """Where the new tokens `found` leave `plain`, with the target's word on it: one forward over the text so far. `target` must be idle. `source`
    is what its encoder reads, if it has one, and `prompt` then what its decoder starts with."""
    position = first_difference(plain, found)
    if position is None:
        return None
    row = scores(target, [*prompt, *plain[:position]], temperature, seed, source)
    top = row.topk(2).values.tolist() if len(row) > 1 else [0.0, -math.inf]
    tokens = [tokens[position] if position < len(tokens) else None for tokens in (plain, found)]
    gap = max(math.inf if token is None else top[0] - float(row[token]) for token in tokens)
    return Difference(position, tokens[0], tokens[1], top[0] - top[1], gap)


def scores(target: Backend, tokens: Sequence[int], temperature: float = 0.0, seed: int = 0, source: Tensor | None = None) -> Tensor:
    """What the target takes the largest of after `tokens`, fed alone: float64 [V] logits, and at a temperature above 0 the shared Gumbel noise
    of that position times the temperature on top (which is what `coupled` draws by, in units of logits)."""
    slot = 0
    target.free(slot)
    row = target.forward([Feed(slot, torch.tensor(list(tokens)), 1, source=source)])[0].logits[0].double().cpu()
    target.free(slot)
    if temperature == 0:
        return row
    return row + temperature * Noise(seed, coupled=True).race(0, len(tokens), 1, len(row))[0].double()
