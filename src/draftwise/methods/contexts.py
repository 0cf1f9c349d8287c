"""Which tokens come before each row of a verified draft: for drafters that learn from the target's rows."""

from __future__ import annotations

from collections.abc import Sequence

from draftwise.types import Draft, Outcome, Text


def held(text: Text, draft: Draft, outcome: Outcome) -> int:
    """How many tokens of the outcome stand at the end of `text`, where a stop or a limit may have cut them."""
    emitted = [] if outcome.last is None else [*draft.tokens[outcome.path].tolist(), outcome.last]
    tail = list(text.tokens[len(text.tokens) - len(emitted) :])
    return next(k for k in range(len(emitted), -1, -1) if tail[len(tail) - k :] == emitted[:k])


def tails(draft: Draft, base: Sequence[int], n: int) -> list[list[int]]:
    """The last `n` tokens before each of the N + 1 rows: `base` before row 0, the path to draft token i and itself before row i + 1."""
    found = [list(base[-n:])]
    tokens: list[int] = draft.tokens.tolist()
    parents = range(-1, len(tokens) - 1) if draft.parents is None else draft.parents.tolist()
    for token, parent in zip(tokens, parents, strict=True):
        found.append([*found[parent + 1], token][-n:])
    return found
