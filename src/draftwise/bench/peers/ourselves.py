"""Our own engine once more, with other models or on another backend, so that one run can hold several side by side.

``draftwise:name=gguf,backend=llamacpp,target=model.gguf,draft=small.gguf,[plain],[breakeven]`` adds the variants gguf/plain and gguf/breakeven.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from draftwise import catalog
from draftwise.bench.peers import Setup
from draftwise.spec import Spec, parse

_PATHS = ("target", "draft")


@dataclass(frozen=True)
class Ourselves:
    """`name`: what its variants begin with. `backend`, `quantize`, `vocabulary` (of the draft), `target`, `draft`, `dtype`: instead of the run's.
    `methods`: specs, in order."""

    name: str = "other"
    backend: str | Spec = ""
    quantize: str = ""
    vocabulary: str | int = ""
    target: str = ""
    draft: str = ""
    dtype: str = ""
    methods: tuple[str, ...] = field(default=("plain",))

    install: ClassVar[str] = "pip install 'draftwise[llamacpp]'"

    @classmethod
    def of(cls, parts: tuple[Spec, ...], **options: Any) -> Ourselves:
        """With methods as they stand in a spec. Raises ValueError for one that there is not."""
        for part in parts:
            catalog.method(str(part), None, drafter=object())
        return cls(methods=tuple(dict.fromkeys(map(str, parts))), **options)

    @property
    def variants(self) -> tuple[str, ...]:
        """As `Peer.variants`."""
        return tuple(f"{self.name}/{method}" for method in self.methods)

    def missing(self, setup: Setup) -> str | None:
        """As `Peer.missing`."""
        from draftwise.unpacking import has_llamacpp

        if parse(str(self.backend) or "auto").name == "llamacpp" and not has_llamacpp():
            return "llama-cpp-python is not installed"
        return next((f"there is no {getattr(self, key)!r}" for key in _PATHS if getattr(self, key) and not Path(getattr(self, key)).exists()), None)

    def command(self, setup: Setup, variant: str) -> list[str]:
        """As `Peer.command`: all variants share one process."""
        draft = self.draft or setup.draft
        own = setup._replace(target=self.target or setup.target, draft=draft, dtype=self.dtype or setup.dtype)
        own = own._replace(backend=str(self.backend) or None, quantize=self.quantize or None, vocabulary=str(self.vocabulary) or None)
        return [*worker(own), "--prefix", f"{self.name}/"]


def worker(setup: Setup) -> list[str]:
    """The argv of our own worker, in this interpreter."""
    argv = [sys.executable, "-m", "draftwise.bench.workers.draftwise_worker", "--target", setup.target, "--dtype", setup.dtype]
    argv += ["--device", setup.device, "--threads", str(setup.threads)]
    argv += [word for key in ("backend", "quantize", "vocabulary") if (value := getattr(setup, key)) for word in (f"--{key}", value)]
    return argv + [word for draft in filter(None, (setup.draft, *setup.further)) for word in ("--draft", draft)]
