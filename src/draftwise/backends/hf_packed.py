"""Linear layers whose weights lie in oneDNN's own blocked order, put there once and not at every call.

torch hands a bfloat16 or float32 product on a CPU to oneDNN with the weight as it lies, which is not the order it reads fastest. Packed, products
of few rows are faster; ``benchmarks/overhead.py --pieces`` prints by how much (1.1 to 1.7 times in one run on two cores). The numbers are the
same up to the order of sums.

In bfloat16 oneDNN takes longer for one to four rows than for five, so rows of zeros are put beside them. They are then computed by the same kernel:
a row does not depend on how many of up to five there are.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from draftwise.backends.hf_product import Before, Product, prepared, put

_LEAST = 5  # rows of a product in bfloat16
_SMALL = 1 << 16  # weights with fewer entries stay in the caches anyway
_DTYPES = (torch.bfloat16, torch.float32)


class PackedLinear(nn.Module):
    """What `torch.nn.Linear` computes: [..., in] -> [..., out], without gradients. `weight` is opaque: it has a shape and a dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 1)
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if x.dtype == torch.bfloat16 and (rows := x[..., 0].numel()) < _LEAST:
            wide = nn.functional.pad(x.reshape(rows, self.in_features), (0, 0, 0, _LEAST - rows))
            return self._multiply(wide)[:rows].view(*x.shape[:-1], self.out_features)
        return self._multiply(x)

    def _multiply(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


def pack(model: Any) -> int:
    """Replaces the large linear layers of a model that is ours to change; returns how many. Other devices, dtypes and processors (it was
    measured on x86 alone), and a torch without oneDNN, are left as they are. The model can then neither be trained nor saved."""
    return put(model, _fits, lambda own: PackedLinear(own.weight, own.bias))


def product(role: str, weight: Tensor, bias: Tensor | None, before: Before) -> Product:
    """A product for `draftwise.backends.hf_lean` in the weight's own dtype, packed where that is possible."""
    if _fits(weight):
        multiply: Callable[[Tensor], Tensor] = PackedLinear(weight, bias)
    else:
        multiply = partial(linear, weight=weight.detach().clone(), bias=None if bias is None else bias.detach())

    def made(x: Tensor, add: Tensor | None = None) -> Tensor:
        out = multiply(prepared(x, before))
        return out if add is None else out.add_(add)

    return made


def _fits(weight: Tensor) -> bool:
    good = _possible() and weight.device.type == "cpu" and weight.dtype in _DTYPES and weight.numel() >= _SMALL
    return good and (weight.dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def _possible() -> bool:
    return (
        platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )
