"""Adaptive speculative decoding. The names below are loaded when first used, so that importing the package costs nothing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from draftwise.api import Piece as Piece
    from draftwise.api import Result as Result
    from draftwise.api import Speculator as Speculator
    from draftwise.api import Stream as Stream
    from draftwise.api import load as load
    from draftwise.loading import Loaded as Loaded
    from draftwise.loading import ModelNotFound as ModelNotFound
    from draftwise.loading import load_model as load_model
    from draftwise.plugins.transformers import custom_generate as custom_generate
    from draftwise.sequence import Method as Method
    from draftwise.stats import Summary as Summary
    from draftwise.types import Sampling as Sampling

_HOME = {
    **dict.fromkeys(("Piece", "Result", "Speculator", "Stream", "load"), "draftwise.api"),
    **dict.fromkeys(("Loaded", "ModelNotFound", "load_model"), "draftwise.loading"),
    "custom_generate": "draftwise.plugins.transformers",
    "Method": "draftwise.sequence",
    "Summary": "draftwise.stats",
    "Sampling": "draftwise.types",
}
__version__ = "0.1.0"
__all__ = [
    "Loaded",
    "Method",
    "ModelNotFound",
    "Piece",
    "Result",
    "Sampling",
    "Speculator",
    "Stream",
    "Summary",
    "custom_generate",
    "load",
    "load_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'draftwise' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
