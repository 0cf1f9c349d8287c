"""OpenVINO GenAI on exported models: plain, with a draft model, and with prompt lookup. One spec for each precision that is to be measured."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from draftwise.bench.peers import Setup
from draftwise.bench.peers.places import lacking, script

MODEL = "openvino_model.xml"
_TAIL = 1 << 16  # bytes at the end of the model's description, where the export says what it did to the weights
_WAYS = ("", "-draft", "-lookup")


@dataclass(frozen=True)
class OpenVino:
    """`python`: the interpreter of the environment that has openvino-genai. `target`, `draft`: folders that `optimum-cli export openvino` wrote.
    `label`: what the variants are called by, as in 'openvino-int4-draft'; by default the precision of the target's weights. `draft_tokens`: a
    round's drafts, of a draft model or of a lookup of up to `ngram` tokens. `hint`: what the engine computes in ('f32', 'bf16'), by default its
    own choice for the processor. `cache_gib`: memory for keys and values."""

    python: str = sys.executable
    target: str | None = None
    draft: str | None = None
    label: str | None = None
    draft_tokens: int = 5
    ngram: int = 3
    hint: str | None = None
    cache_gib: int = 1

    name: ClassVar[str] = "openvino"
    install: ClassVar[str] = (
        "python3 -m venv openvino-env && openvino-env/bin/pip install openvino-genai==2026.4.1.0 optimum-intel nncf "
        "&& openvino-env/bin/optimum-cli export openvino -m MODEL --task text-generation-with-past --weight-format int4 FOLDER"
    )

    @property
    def stem(self) -> str:
        """'openvino-int4'; 'openvino' where neither a label nor an export says more."""
        return "-".join(filter(None, ("openvino", self.label or weights(self.target))))

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(self.stem + way for way in _WAYS)

    def missing(self, setup: Setup) -> str | None:
        if why := lacking(self.python, "openvino_genai"):
            return f"{why}; the interpreter of its environment is named by openvino:python=PATH"
        if self.target is None:
            return "it runs exported models only; one is named by openvino:target=FOLDER"
        absent = next((folder for folder in (self.target, self.draft) if folder and not (Path(folder) / MODEL).is_file()), None)
        return f"there is no {MODEL} in {absent!r}" if absent else None

    def command(self, setup: Setup, variant: str) -> list[str]:
        way = variant[len(self.stem) :]
        if way not in _WAYS:
            raise ValueError(f"there is no variant {variant!r} here: {', '.join(self.variants)}")
        if way == "-draft" and self.draft is None:
            raise ValueError(f"{variant} needs the draft model as an export: name it with openvino:draft=FOLDER")
        argv = [self.python, script("openvino"), "--model", str(self.target), "--weights", weights(self.target) or "unquantised"]
        argv += ["--threads", str(setup.threads), "--context", str(setup.max_context), "--cache-gib", str(self.cache_gib)]
        argv += ["--hint", self.hint] if self.hint else []
        argv += ["--draft", str(self.draft)] if way == "-draft" else ["--lookup", str(self.ngram)] if way == "-lookup" else []
        return argv + (["--draft-tokens", str(self.draft_tokens)] if way else [])


def weights(folder: str | None) -> str | None:
    """In what an export keeps its weights ('int4', 'int8'), as its model file says; None where it is not compressed or not there."""
    path = Path(folder or "") / MODEL
    if folder is None or not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        said = re.search(r'<weight_compression>.*?<mode value="(\w+?)(_\w+)?"', file.read().decode("utf-8", "replace"), re.DOTALL)
    return said[1] if said else None
