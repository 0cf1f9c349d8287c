"""Whether a draft's tokens mean to the target what they mean to the draft, and what is done where they do not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from draftwise import text
from draftwise.loading import Loaded
from draftwise.methods.tli import Translated
from draftwise.protocols import Backend, Encodes
from draftwise.vocabularies import Pair, Vocabulary

_ENOUGH = 0.5  # of a sample text in shared tokens, from which on a draft does better in them (with their laws) than by writing text


def fit(target: Loaded, draft: Loaded, backend: Backend, vocab_size: int) -> Backend:
    """The draft's `backend` as it is where every id means the same to both models and it can read all of the target's, else seen through the
    target's vocabulary. Raises ValueError where the two have nothing in common, and for a draft with an encoder and a vocabulary of its own."""
    problem = text.difference(target.tokenizer, draft.tokenizer)
    highest = max(target.tokenizer.get_vocab().values(), default=0)
    if problem is None and highest >= backend.vocab_size:
        problem = f"the target's ids go up to {highest}, the draft reads {backend.vocab_size}"
    if problem is None:
        return backend
    pair = Pair(Vocabulary(target.tokenizer), Vocabulary(draft.tokenizer or target.tokenizer))
    if isinstance(backend, Encodes) or not pair.shares_text:
        why = "their vocabularies differ" if isinstance(backend, Encodes) else "no token of one vocabulary is text of the other"
        way = "take a draft with the target's own tokenizer, such as a smaller model of its family, or none: 'lookup' needs no draft"
        raise ValueError(f"{draft.name!r} cannot draft for {target.name!r}, since {why} ({problem}): {way}")
    drafter = "tli" if pair.cover >= _ENOUGH else "slem"
    way = "the tokens that both have" if drafter == "tli" else "writing text, which is tokenised anew"
    who, whom = short(draft), short(target)
    note = f"{who} has another vocabulary than {whom} and drafts by {way} ({drafter}; shared: {pair.cover:.0%} of a sample text)"
    return Translated(backend, pair, vocab_size, drafter, note)


def notes(drafts: Iterable[Any]) -> list[str]:
    """How drafts of another vocabulary draft, a line for each."""
    return [draft.note for draft in drafts if isinstance(draft, Translated)]


def short(loaded: Loaded) -> str:
    """A model's name without folders or owner."""
    return loaded.name.rstrip("/").rsplit("/", 1)[-1]
