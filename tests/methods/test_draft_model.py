"""The window of a draft model: what it reads of a text, when it begins anew, and that the text stays the target's."""

from __future__ import annotations

import pytest
import torch

from draftwise import catalog
from draftwise.engine import Engine
from draftwise.methods.draft_model import DraftModel
from draftwise.noise import Noise
from draftwise.protocols import Ask
from draftwise.types import Outcome, Rows, Sampling, Text
from tables import PROMPT, pair, run

TOKENS = [(3 * i + i // 4) % 6 for i in range(30)]


def text(tokens: list[int], id: int = 0) -> Text:
    return Text(id, id, tokens, Sampling(), Noise(id))


def drafted(drafter: DraftModel, one: Text, n: int = 4) -> list[int]:
    return drafter.propose([Ask(one, n)])[0].tokens.tolist()


def model(window: int = 0) -> DraftModel:
    return DraftModel(pair(6, order=3).draft, 6, window=window)


def test_a_long_text_begins_at_the_window() -> None:
    """It drafts what a draft would that was given the end of the text as a text, and reads no more than that."""
    drafter, one = model(6), text([*TOKENS])
    assert drafter.lag(one) == 6 and model().lag(one) == 30
    assert drafted(drafter, one) == drafted(model(), text(TOKENS[-6:]))
    assert drafter.backend.length(0) == 6 + 3
    assert drafted(model(40), text([*TOKENS])) == drafted(model(), text([*TOKENS]))


def test_it_goes_on_from_where_it_began_and_begins_anew_after_a_rest() -> None:
    drafter, tokens = model(6), [*TOKENS]
    one = text(tokens)
    (draft,) = drafter.propose([Ask(one, 3)])
    tokens += [*draft.tokens[:2].tolist(), 1]
    drafter.observe(one, draft, Outcome([0, 1], 1, (), 0, Rows(torch.zeros(1, 6), {})))
    assert drafter.lag(one) == 1
    assert drafted(drafter, one) == drafted(model(), text(tokens[24:]))
    tokens += [2] * 9
    assert drafter.lag(one) == 6
    assert drafted(drafter, one) == drafted(model(), text(tokens[-6:]))
    drafter.backend.keep(0, 0)  # as after a failed step
    assert drafted(drafter, one) == drafted(model(), text(tokens[-6:]))
    drafter.free(one)
    assert drafter.lag(text([1, 2])) == 2 and not drafter._skipped


def test_a_text_longer_than_the_drafts_context() -> None:
    drafter = model(6)
    drafter.backend.max_length = 16
    assert len(drafted(drafter, text([*TOKENS]))) == 4
    whole = model()
    whole.backend.max_length = 16
    assert drafted(whole, text([*TOKENS])) == []


@pytest.mark.parametrize("accept", ["speculative", "coupled"])
def test_the_text_is_plain_decodings(accept: str) -> None:
    """With a window that is shorter than a round, and two requests that do not disturb each other."""
    spec = f"fixed:n=3,accept=[{accept}],drafter=[draft-model:window=2]"
    want = run(pair(), "plain", max_tokens=40)
    assert run(pair(), spec, max_tokens=40) == want
    context = pair()
    engine = Engine(context.target)
    assert engine.generate([PROMPT, PROMPT[::-1]], Sampling(max_tokens=40), catalog.method(spec, context))[0] == want


def test_a_window_below_0() -> None:
    with pytest.raises(ValueError, match="window must be a number of tokens, or 0 for all of them, got -1"):
        catalog.create("drafter", "draft-model:window=-1", pair())
