"""transformers' `generate`: plain, assisted by the draft model (with the defaults of its version), and prompt lookup."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from draftwise.bench.peers import Setup

WORKER = Path(__file__).parents[1] / "workers" / "transformers_worker.py"


@dataclass(frozen=True)
class Transformers:
    """`python`: an interpreter that has torch and transformers; '' = this one. `lookup`: tokens that prompt lookup proposes."""

    python: str = ""
    lookup: int = 10

    name: ClassVar[str] = "transformers"
    install: ClassVar[str] = "pip install torch transformers"
    variants: ClassVar[tuple[str, ...]] = ("transformers", "transformers-assisted", "transformers-lookup")

    def missing(self, setup: Setup) -> str | None:
        """As `Peer.missing`."""
        if self.python and shutil.which(self.python) is None:
            return f"there is no interpreter {self.python!r}"
        if not self.python and importlib.util.find_spec("transformers") is None:
            return "the package transformers is not installed"
        return None

    def command(self, setup: Setup, variant: str) -> list[str]:
        """As `Peer.command`: all variants share one process."""
        if variant == "transformers-assisted" and setup.draft is None:
            raise ValueError("transformers-assisted needs a draft model (--draft)")
        argv = [self.python or sys.executable, str(WORKER), "--target", setup.target, "--dtype", setup.dtype, "--device", setup.device]
        argv += ["--threads", str(setup.threads), "--lookup", str(self.lookup)]
        return argv + (["--draft", setup.draft] if setup.draft else [])
