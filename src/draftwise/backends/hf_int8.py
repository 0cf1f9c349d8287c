"""Linear layers with weights of 8 bits whose inputs are rounded to 8 bits too, row by row, for oneDNN's integer products on a CPU.

Weights are rounded to the nearest of 255 steps of each output's largest weight; a row of inputs x to steps of s = max|x| / 127. So a row's product
y = s * (W q) does not depend on its neighbours, and a pass over k rows costs little more than one over a single row, since it is bound by reading
weights. Inputs are held as unsigned numbers around 128: with signed ones, oneDNN falls into a slow path for a single row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from draftwise.backends.hf_product import Before, Norm, prepared

CARRIED = torch.float32
_MIDDLE, _STEPS = 128, 127
_LEAST = 1e-12  # a row of zeros has a step too


class Int8Linear:
    """The layer [T, in] -> float32 [T, out] of a weight's `parts` (see `rounded`), its `shape` and a `bias` [out], with what comes `before` it."""

    def __init__(self, parts: dict[str, Tensor], shape: torch.Size, bias: Tensor | None = None, before: Before = None) -> None:
        self.out_features, self.in_features = shape
        self.packed = torch.ops.onednn.qlinear_prepack(parts["weight"], None)
        self.scale, self.zeros = parts["scale"], torch.zeros(len(parts["scale"]), dtype=torch.int64)
        self.bias = None if bias is None else bias.detach().float()
        self.before = Norm(before.weight.float(), before.eps) if isinstance(before, Norm) else before

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """Plus `add` float32 [T, out]. What a norm divides a row by goes into the row's step, for nothing."""
        x, gain = x.float(), None
        if isinstance(self.before, Norm):
            size = torch.linalg.vector_norm(x, 2, -1, True)
            gain = size.square_().mul_(1 / x.shape[-1]).add_(self.before.eps).rsqrt_()
            x = x * self.before.weight
        else:
            x = prepared(x, self.before)
        step = x.abs().amax(-1, keepdim=True).mul_(1 / _STEPS).clamp_min_(_LEAST)
        levels = (x / step).add_(_MIDDLE + 0.5).to(torch.uint8)  # cut off, which rounds
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            levels, 1.0, _MIDDLE, self.packed, self.scale, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        step = step if gain is None else step.mul_(gain)
        if add is not None and self.bias is not None:
            add = add + self.bias
        add = self.bias if add is None else add
        return out.mul_(step) if add is None else torch.addcmul(add, out, step)


def rounded(weight: Tensor, role: str = "") -> dict[str, Tensor]:
    """A weight [out, in] as int8 and its steps ('scale') float32 [out]: weight = steps * numbers, up to half a step; whatever its `role`."""
    weight = weight.detach().float()
    scale = weight.abs().amax(1).div_(_STEPS).clamp_min_(_LEAST)
    return {"weight": torch.round(weight / scale[:, None]).to(torch.int8), "scale": scale}


def possible(device: torch.device) -> str:
    """Why this machine cannot compute so; '' if it can."""
    if device.type != "cpu":
        return f"8-bit products are for the CPU, and the device is {device}"
    if not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return "this torch has no oneDNN products of 8 bits"
    return ""
