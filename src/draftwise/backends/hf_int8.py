"""Linear layers with weights of 8 bits whose inputs are rounded to 8 bits too, row by row, for oneDNN's integer products on a CPU.

Weights are rounded to the nearest of 255 steps of each output's largest weight; a row of inputs x to steps of s = max|x| / 127. So a row's product
y = s * (W q) does not depend on its neighbours, and a pass over k rows costs little more than one over a single row, since it is bound by reading
weights. Inputs are held as unsigned numbers around 128: with signed ones, oneDNN falls into a slow path for a single row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_SMALL = 1 << 16  # weights with fewer entries gain nothing
_MIDDLE, _STEPS = 128, 127
_LEAST = 1e-12  # a row of zeros has a step too


class Int8Linear(nn.Module):
    """What a linear layer with `weight` [out, in] (8 bits), steps `scale` float32 [out] and `bias` [out] computes: [T, in] -> float32 [T, out]."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.packed = torch.ops.onednn.qlinear_prepack(weight, None)
        self.scale, self.zeros = scale, torch.zeros(len(scale), dtype=torch.int64)
        self.bias = None if bias is None else bias.detach().float()

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> Int8Linear:
        """From the weights [out, in] of any float dtype."""
        return cls(*rounded(weight), bias)

    def forward(self, x: Tensor, add: Tensor | None = None, gain: Tensor | None = None) -> Tensor:
        """Of x float32 [T, in], times `gain` [T, 1], plus `add` float32 [T, out]. The step of a row takes up a gain for nothing."""
        step = x.abs().amax(-1, keepdim=True).mul_(1 / _STEPS).clamp_min_(_LEAST)
        levels = (x / step).add_(_MIDDLE + 0.5).to(torch.uint8)  # cut off, which rounds
        out = torch.ops.onednn.qlinear_pointwise(
            levels, 1.0, _MIDDLE, self.packed, self.scale, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        step = step if gain is None else step.mul_(gain)
        if add is not None and self.bias is not None:
            add = add + self.bias
        add = self.bias if add is None else add
        return out.mul_(step) if add is None else torch.addcmul(add, out, step)


class Int8Module(nn.Module):
    """`Int8Linear` in the place of a `torch.nn.Linear`: any leading dimensions, and the dtype of its input."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.inner = Int8Linear.of(linear.weight, linear.bias)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight.new_empty(0)  # some models ask for its dtype and device

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        out: Tensor = self.inner(x.reshape(-1, self.in_features).float())
        return out.to(x.dtype).reshape(*x.shape[:-1], self.out_features)


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight [out, in] as int8 and its steps float32 [out]: weight = steps * numbers, up to half a step."""
    weight = weight.detach().float()
    scale = weight.abs().amax(1).div_(_STEPS).clamp_min_(_LEAST)
    return torch.round(weight / scale[:, None]).to(torch.int8), scale


def possible(device: torch.device) -> str:
    """Why this machine cannot compute so; '' if it can."""
    if device.type != "cpu":
        return f"8-bit products are for the CPU, and the device is {device}"
    if not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return "this torch has no oneDNN products of 8 bits"
    return ""


def quantize(model: Any) -> int:
    """Replaces the large linear layers of a model that is ours to change, one at a time; returns how many."""
    found = [(parent, name) for parent in model.modules() for name, child in parent.named_children() if _fits(child)]
    with torch.no_grad():
        for parent, name in found:
            setattr(parent, name, Int8Module(getattr(parent, name)))
    return len(found)


def _fits(module: nn.Module) -> bool:
    return type(module) is nn.Linear and module.weight.numel() >= _SMALL
