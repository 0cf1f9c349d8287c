"""llama.cpp's server: plain, with a draft model, and with n-grams of the text so far."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from draftwise.bench.peers import Setup
from draftwise.bench.peers.places import script

SPECULATION = {"llamacpp": "none", "llamacpp-draft": "draft-simple", "llamacpp-ngram": "ngram-simple"}
ROOM = 64  # beyond the longest job: llama.cpp ends an answer one token before its context is full


@dataclass(frozen=True)
class LlamaCpp:
    """`server`: the program `llama-server`; `target`, `draft`: GGUF files, by default those of the run where they are such files.
    `draft_tokens`: at most this many a round by the draft model; llama.cpp's own default (3) where not given."""

    server: str = "llama-server"
    target: str | None = None
    draft: str | None = None
    draft_tokens: int | None = None

    name: ClassVar[str] = "llamacpp"
    variants: ClassVar[tuple[str, ...]] = tuple(SPECULATION)
    install: ClassVar[str] = (
        "git clone https://github.com/ggml-org/llama.cpp && cmake -S llama.cpp -B llama.cpp/build -DCMAKE_BUILD_TYPE=Release "
        "&& cmake --build llama.cpp/build --target llama-server -j"
    )

    def missing(self, setup: Setup) -> str | None:
        if shutil.which(self.server) is None:
            return f"there is no program {self.server!r}; one is named by llamacpp:server=PATH"
        target = self.target or gguf(setup.target)
        if target is None:
            return f"it needs a GGUF file and the target is {setup.target!r}; one is named by llamacpp:target=FILE.gguf"
        absent = next((file for file in (target, self.draft) if file and not Path(file).is_file()), None)
        return f"there is no file {absent!r}" if absent else None

    def command(self, setup: Setup, variant: str) -> list[str]:
        kind = SPECULATION[variant]
        draft = self.draft or gguf(setup.draft)
        if kind == "draft-simple" and draft is None:
            raise ValueError(f"{variant} needs the draft model as a GGUF file: name it with llamacpp:draft=FILE.gguf")
        model = self.target or gguf(setup.target) or ""
        argv = [sys.executable, script("llamacpp"), "--server", self.server, "--model", model, "--speculate", kind]
        argv += ["--threads", str(setup.threads), "--context", str(setup.max_context + ROOM)]
        if kind == "draft-simple" and draft is not None:
            argv += ["--draft", draft]
            argv += ["--draft-tokens", str(self.draft_tokens)] if self.draft_tokens else []
        return argv


def gguf(name: str | None) -> str | None:
    """The name, if it is that of a GGUF file."""
    return name if name and name.endswith(".gguf") else None
