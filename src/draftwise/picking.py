"""What a model is loaded into: device, dtype, backend and bits, from what a user typed."""

from __future__ import annotations

import torch

from draftwise.spec import Spec, parse

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BACKENDS = ("auto", "hf", "llamacpp")
_BOTH = ("target", "draft")


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device of 'cpu', 'cuda', 'cuda:1', 'mps', or 'auto' (None is the same)."""
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    possible = [f"cuda:{i}" for i in range(torch.cuda.device_count())] + ["mps"] * torch.backends.mps.is_available() + ["cpu", "auto"]
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"unknown device {str(device)!r}: possible here are {', '.join(possible)}") from None
    if found.type not in {option.split(":")[0] for option in possible} or (found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"device {str(device)!r} is not there: possible here are {', '.join(possible)}")
    return found


def pick_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype of a name, or the one that suits the device for 'auto' (None is the same)."""
    if dtype is None or dtype == "auto":
        return torch.bfloat16 if _bfloat16_is_native(device) else torch.float32
    found = DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise ValueError(f"unknown dtype {str(dtype)!r}: possible are {', '.join(DTYPES)} and auto")
    return found


def pick_backend(backend: str | Spec | None) -> Spec:
    """The spec of a backend for `load_model`. Raises ValueError for one that there is not."""
    found = parse(backend or "auto")
    if found.name not in BACKENDS:
        raise ValueError(f"there is no backend {found.name!r} to load models into: possible are {', '.join(BACKENDS)}")
    if found.name == "hf" and (found.options.keys() - {"graphs"} or not isinstance(found.options.get("graphs", False), bool)):
        raise ValueError(f"the backend 'hf' takes graphs=true and nothing else, got {str(found)!r}: others are for 'llamacpp', also behind 'auto:'")
    return found


def graphs(backend: Spec, device: torch.device) -> bool:
    """Whether passes are to be CUDA graphs. Raises ValueError where there can be none."""
    if (asked := backend.name == "hf" and bool(backend.options.get("graphs"))) and device.type != "cuda":
        raise ValueError(f"graphs=true is for a CUDA device, and the model goes to {str(device)!r}: name one with device, or leave graphs out")
    return asked


def quantization(quantize: str | None) -> tuple[str | None, str | None]:
    """Of the target and of drafts: 'draft=int8' is of drafts alone, 'int8' and 'int4' are of all models, but drafts then have the least bits that can
    be computed, since all that hangs on them is how much is accepted: one of 4 bits has a head of 4 bits too. Raises ValueError for another."""
    if quantize is None:
        return None, None
    if "=" not in quantize:
        return quantize, "least"
    found = dict(part.partition("=")[::2] for part in quantize.split(","))
    if unknown := found.keys() - set(_BOTH):
        raise ValueError(f"{quantize!r} names {sorted(unknown)[0]!r}: write int8 or int4 for all models, or target=int8,draft=int4")
    draft = found.get("draft")
    return found.get("target"), "int4-all" if draft == "int4" else draft


def _bfloat16_is_native(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, flag, bool)() for flag in flags)
