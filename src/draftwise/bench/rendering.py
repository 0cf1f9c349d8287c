"""Prompts as ids and answers as text, by the target's tokenizer: every engine of a run gets the same ids."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from draftwise import loading, text


class Renderer(Protocol):
    """Between words and ids."""

    def ids(self, turns: Sequence[str], answers: Sequence[str]) -> list[int]:
        """What a model is given for the last of `turns`, after `answers` to those before."""
        ...

    def text(self, tokens: Sequence[int]) -> str:
        """The words of an answer, without special tokens."""
        ...


class ByTokenizer(NamedTuple):
    """With the chat template where there is one; else the turns as plain text."""

    tokenizer: Any

    def ids(self, turns: Sequence[str], answers: Sequence[str]) -> list[int]:
        """As `Renderer.ids`. Raises ValueError for what the template refuses."""
        said = [part for pair in zip(turns, [*answers, None], strict=True) for part in pair if part is not None]
        if not getattr(self.tokenizer, "chat_template", None):
            return text.encode(self.tokenizer, "\n\n".join(said), 1 << 62)
        roles = ("user", "assistant")
        return text.encode(self.tokenizer, [{"role": roles[i % 2], "content": part} for i, part in enumerate(said)], 1 << 62)

    def text(self, tokens: Sequence[int]) -> str:
        """As `Renderer.text`."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))


def load(target: str) -> ByTokenizer:
    """The renderer of a target named as for `draftwise.load`, without its weights. Raises ValueError where there is none."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    path = loading.embedded_file() if target.lower() == loading.EMBEDDED else Path(target).expanduser()
    options: dict[str, Any] = {"gguf_file": path.name} if path.suffix.lower() == ".gguf" else {}
    name = path.parent if options else path if path.is_dir() else target
    logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ByTokenizer(AutoTokenizer.from_pretrained(name, **options))
        except Exception as error:  # a dozen kinds
            raise ValueError(f"the tokenizer of {target!r} could not be had: {str(error).splitlines()[0] if str(error) else error!r}") from error
