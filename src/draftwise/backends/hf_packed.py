"""Linear layers whose weights lie in oneDNN's own blocked order, put there once and not at every call.

torch hands a bfloat16 or float32 product on a CPU to oneDNN with the weight as it lies, which is not the order it reads fastest. Packed, products
of few rows are faster; ``benchmarks/overhead.py --pieces`` prints by how much (1.1 to 1.7 times in one run on two cores). The numbers are the
same up to the order of sums.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, nn

_SMALL = 1 << 16  # weights with fewer entries stay in the caches anyway
_DTYPES = (torch.bfloat16, torch.float32)


class PackedLinear(nn.Module):
    """What `torch.nn.Linear` computes: [..., in] -> [..., out], without gradients. `weight` is opaque: it has a shape and a dtype."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


def pack(model: Any) -> int:
    """Replaces the large linear layers of a model that is ours to change; returns how many. Other devices, dtypes and processors (it was
    measured on x86 alone), and a torch without oneDNN, are left as they are. The model can then neither be trained nor saved."""
    if platform.machine() not in ("x86_64", "AMD64") or not (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    ):
        return 0
    found = [(parent, name) for parent in model.modules() for name, child in parent.named_children() if _fits(child)]
    with torch.no_grad():
        for parent, name in found:  # one at a time, so that the memory of each is given back before the next
            setattr(parent, name, PackedLinear(getattr(parent, name)))
    return len(found)


def _fits(module: nn.Module) -> bool:
    if type(module) is not nn.Linear:
        return False
    weight = module.weight
    good = weight.device.type == "cpu" and weight.dtype in _DTYPES and weight.numel() >= _SMALL
    return good and (weight.dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))
