"""Prompt lookup: copy what followed the same last words earlier in the text.

    for n = max_ngram .. 1:  an earlier occurrence of the last n tokens, and at least one token after it
        -> draft those that follow it, at most as many as asked for, up to and including an end-of-text token

No model, so no law: the draft is a one-point law (``probs=None``), has no steps, and no stop rule is asked. Good on text that repeats
itself: code edits, summaries, extraction.

Reference: Saxena 2023, "Prompt lookup decoding", as in huggingface/transformers, which copies the **leftmost** occurrence
(``match="leftmost"``, the default here); ``match="latest"`` copies the most recent one. Differs from it: an index of all n-grams grows
with the committed text, so that a round costs what it added and not a scan of the context; and the length is the length policy's affair,
`max_tokens` (there: 10 tokens, always) is only a bound. Where the target has an encoder, the text it reads (the source) is searched as what
came first, since summaries and corrections copy from it; no n-gram spans the two.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from draftwise.protocols import Ask
from draftwise.types import Draft, Outcome, Text


class PromptLookup:
    """Indexes the text of every request; `free` drops its index. Raises ValueError for a bound below 1 or an unknown `match`."""

    taps: tuple[int, ...] = ()
    has_logits: bool = False
    learns_rows: bool = False

    def __init__(self, max_ngram: int = 2, max_tokens: int = 20, match: str = "leftmost") -> None:
        if max_ngram < 1:
            raise ValueError(f"max_ngram must be at least 1 token, got {max_ngram}")
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1 draft token, got {max_tokens}")
        if match not in ("leftmost", "latest"):
            raise ValueError(f"match must be 'leftmost' or 'latest', got {match!r}")
        self.max_ngram, self.max_tokens, self.match = max_ngram, max_tokens, match
        self._indexes: dict[int, _Index] = {}

    def lag(self, text: Text) -> int:
        index = self._indexes.get(text.id)
        return len(text.tokens) - (index.read - index.source if index else 0)

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        return [self._draft(ask.text, min(ask.n, self.max_tokens)) for ask in asks]

    def observe(self, text: Text, draft: Draft, outcome: Outcome) -> None:
        """The next `propose` reads what was added. Below a cascade a text can also have lost what the level above refused."""
        if text.id in self._indexes:
            index = self._indexes[text.id]
            index.cut(index.source + len(text.tokens) - 1)

    def free(self, text: Text) -> None:
        self._indexes.pop(text.id, None)

    def _draft(self, text: Text, n: int) -> Draft:
        if text.id not in self._indexes:
            self._indexes[text.id] = _Index(self.max_ngram, self.match == "latest", _ids(text.copyable()))
        index = self._indexes[text.id]
        index.read_on(text.tokens)
        start = index.find()
        copied = [] if start is None else index.words[start : min(start + max(n, 0), index.source if start < index.source else index.read)]
        ends = [i for i, token in enumerate(copied) if token in text.sampling.stop_ids]
        return Draft(torch.tensor(copied[: ends[0] + 1] if ends else copied, dtype=torch.int64), origin="prompt-lookup")


def _ids(source: Tensor | None) -> list[int]:
    return [] if source is None else source.tolist()


class _Index:
    """Where each n-gram of one text is followed by a token: n-gram -> index of that token in `words`, which are the `source` ids and then the
    text as far as it is indexed. `undo[i]`: what word i changed, as pairs (n-gram, where it pointed before)."""

    def __init__(self, longest: int, latest: bool, source: Sequence[int] = ()) -> None:
        self.longest, self.latest, self.source = longest, latest, 0
        self.words: list[int] = []
        self.after: dict[tuple[int, ...], int] = {}
        self.undo: list[list[tuple[tuple[int, ...], int | None]]] = []
        self.read_on(source)
        self.source = len(source)

    @property
    def read(self) -> int:
        """Words that are indexed."""
        return len(self.words)

    def read_on(self, tokens: Sequence[int]) -> None:
        """Adds the n-grams before each new token of a text: those at the very end have no token after them yet and wait for the next call."""
        for here in range(self.read, self.source + len(tokens)):
            changed: list[tuple[tuple[int, ...], int | None]] = []
            for n in range(1, min(self.longest, here - self.source) + 1):
                gram = tuple(self.words[here - n :])
                if self.latest or gram not in self.after:
                    changed.append((gram, self.after.get(gram)))
                    self.after[gram] = here
            self.words.append(tokens[here - self.source])
            self.undo.append(changed)

    def cut(self, length: int) -> None:
        """Forgets all words but the first `length`."""
        while self.read > length:
            self.words.pop()
            for gram, before in reversed(self.undo.pop()):
                if before is None:
                    del self.after[gram]
                else:
                    self.after[gram] = before

    def find(self) -> int | None:
        """Where to copy from, by the longest n-gram at the end of the text that occurs before; None if none does."""
        for n in range(min(self.longest, self.read - self.source), 0, -1):
            start = self.after.get(tuple(self.words[self.read - n :]))
            if start is not None:
                return start
        return None
