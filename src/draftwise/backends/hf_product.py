"""What stands in the place of linear layers, in whatever precision, and what happens to the rows on their way in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

GATED: Literal["gated"] = "gated"


class Norm(NamedTuple):
    """Rows are divided by their root mean square, `eps` added to the mean, and multiplied by `weight` [in]."""

    weight: Tensor
    eps: float


Before: TypeAlias = Norm | Literal["gated"] | None
"""A norm; or a gated layer, whose rows are gates and values side by side: silu(gate) * value is multiplied; or nothing."""

Product: TypeAlias = Callable[..., Tensor]
"""(x [T, in], or [T, 2 in] if gated; add [T, out] or None) -> W before(x) + bias + add, [T, out]."""

Make: TypeAlias = Callable[[str, Tensor, Tensor | None, Before], Product]
"""Of a role (head, qkv, out, gated, down), a weight [out, in], a bias [out] and what comes before."""


def prepared(x: Tensor, before: Before) -> Tensor:
    """The rows that are multiplied."""
    if isinstance(before, Norm):
        return rms_norm(x, (x.shape[-1],), before.weight, before.eps)
    if before == GATED:
        gate, value = x.chunk(2, -1)
        return silu(gate).mul_(value)
    return x


def inputs(before: Before, width: int) -> int:
    """How wide the rows are that a product of `width` inputs is given."""
    return 2 * width if before == GATED else width


class InPlace(nn.Module):
    """A product in the place of a `torch.nn.Linear`: any leading dimensions, and the dtype of its input."""

    def __init__(self, linear: nn.Linear, make: Make) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.product = make("", linear.weight, linear.bias, None)
        self.weight = linear.weight.new_empty(0)  # some models ask for its dtype and device

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        out = self.product(x.reshape(-1, self.in_features))
        return out.to(x.dtype).reshape(*x.shape[:-1], self.out_features)


def put(model: Any, fits: Callable[[Tensor], bool], make: Callable[[nn.Linear], nn.Module]) -> int:
    """Replaces the linear layers whose weight fits in a model that is ours to change; returns how many."""
    children = ((parent, name, child) for parent in model.modules() for name, child in parent.named_children())
    found = [(parent, name) for parent, name, child in children if type(child) is nn.Linear and fits(child.weight)]
    with torch.no_grad():
        for parent, name in found:  # one at a time, so that the memory of each is given back before the next
            setattr(parent, name, make(getattr(parent, name)))
    return len(found)
