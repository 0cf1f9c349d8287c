"""Second choices beside a drafted chain: where break-even wants them, what is learnt of them, and that the text is plain decoding's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftwise import catalog, wide
from draftwise.backends.table import Table
from draftwise.context import Context
from draftwise.engine import Engine
from draftwise.methods.breakeven import Account, Breakeven
from draftwise.methods.breakeven_fit import chance, logit
from draftwise.methods.draft_model import DraftModel
from draftwise.methods.fixed import Fixed
from draftwise.methods.speculative import Speculative
from draftwise.protocols import Ask
from draftwise.sequence import Method
from draftwise.types import Draft, DraftStep, Now, Round, Sampling
from tables import pair

FLAT = ((1, 0.1), (16, 0.1))
STEPS = (DraftStep(0, 7, 0.5, 0.5, 0.4, 0.9), DraftStep(1, 8, 0.9, 0.9, 0.05, 0.3), DraftStep(2, 9, 0.4, 0.4, 0.3, 1.2))


@dataclass(frozen=True)
class Everywhere(Fixed):
    """As many tokens as asked for, each with its second choice."""

    def beside(self, state: Any, now: Now, steps: Sequence[DraftStep]) -> list[int]:
        return list(range(len(steps)))


class Watched(DraftModel):
    """Keeps what it proposed, with the text it followed."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen: list[tuple[list[int], Draft]] = []

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        drafts = super().propose(asks)
        self.seen += [([*ask.text.tokens], draft) for ask, draft in zip(asks, drafts, strict=True)]
        return drafts


def decoded(context: Context, length: Any, **sampling: Any) -> tuple[list[int], Watched]:
    drafter = Watched(context.draft, context.vocab_size)
    (tokens,) = Engine(context.target).generate([[0, 1]], Sampling(max_tokens=40, **sampling), Method(length, Speculative(), drafter))
    return tokens, drafter


def test_the_text_is_plain_decodings_and_the_drafts_are_those_of_the_text() -> None:
    """After an accepted second choice too, of which the draft had read another token in its place."""
    context = pair()
    want, _ = decoded(context, Fixed(0))
    chain, single = decoded(context, Fixed(3))
    tokens, drafter = decoded(context, Everywhere(3))
    assert tokens == want == chain
    assert len(drafter.seen) < len(single.seen)  # some were right
    for text, draft in drafter.seen:
        n = len(draft.tokens) // 2
        own, firsts = list(text), []
        for i in range(n):
            row = context.draft.row(own)
            first, second = row.topk(2).indices.tolist()
            assert (int(draft.tokens[i]), int(draft.tokens[n + i])) == (first, second)
            assert draft.steps[n + i] == draft.steps[i]._replace(token=second, prob=draft.steps[i].top2)
            own.append(first)
            firsts.append(first)
        assert draft.parents is not None and draft.parents.tolist() == [*range(-1, n - 1)] * 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_tokens_are_drawn_there_are_none(temperature: float) -> None:
    _, drafter = decoded(pair(), Everywhere(3), temperature=temperature)
    assert all((draft.parents is not None) == (temperature == 0) for _, draft in drafter.seen if len(draft.tokens))


def test_nor_where_the_vocabulary_has_one_token() -> None:
    drafter = Watched(Table(1), 1)
    (tokens,) = Engine(Table(1)).generate([[0]], Sampling(max_tokens=20), Method(Everywhere(3), Speculative(), drafter))
    assert tokens == [0] * 20 and drafter.seen and all(draft.parents is None for _, draft in drafter.seen)


def test_neither_for_targets_nor_for_rules_that_know_chains() -> None:
    context = pair()
    context.target.trees = False
    assert all(draft.parents is None for _, draft in decoded(context, Everywhere(2))[1].seen)
    context = pair()
    drafter = Watched(context.draft, context.vocab_size)
    method = Method(Everywhere(2), catalog.create("accept", "fly"), drafter)
    Engine(context.target).generate([[0, 1]], Sampling(max_tokens=20), method)
    assert drafter.seen and all(draft.parents is None for _, draft in drafter.seen)


def test_best_of_and_first_hit_pass_the_wish_on() -> None:
    for composed in ("best-of", "first-hit"):
        context = pair()
        watched = Watched(context.draft, context.vocab_size)
        own = catalog.create("drafter", composed, context)
        drafter = type(own)((watched,), Everywhere(2))
        want, _ = decoded(context, Fixed(0))
        (tokens,) = Engine(context.target).generate([[0, 1]], Sampling(max_tokens=40), Method(Fixed(2), Speculative(), drafter))
        assert tokens == want and any(draft.parents is not None for _, draft in watched.seen)


def test_a_second_choice_pays_where_its_chance_is_worth_the_row() -> None:
    """Untaught, h is the draft's own probability, so the chances are 0.4, 0.5 * 0.05 and 0.5 * 0.9 * 0.3 = 0.135 (0.5 of what 0.6 leaves)."""
    policy, state = Breakeven(), Account()
    h = [chance(state.drafted, (1.0, logit(step.prob), step.entropy, 0.0, 0.0)) for step in STEPS]
    assert h == pytest.approx([0.5, 0.9, 0.4])
    for share, want in ((0.02, [0, 2, 1]), (0.1, [0, 2]), (0.13, [0, 2]), (0.14, [0]), (0.41, [])):
        costs = tuple((1 + i, 0.1 * (1 + share * i)) for i in range(8))  # a row is worth such a share of a pass, which brings a token
        assert policy.beside(state, Now(1, 50, 100, 1, 0.02, costs), STEPS) == want
    assert policy.beside(state, Now(1, 50, 100, 1, 0.02, FLAT), STEPS) == [0, 2, 1]


def test_an_accepted_second_choice_teaches_that_the_first_was_refused() -> None:
    """The rate apart, as a chain does that is refused there."""
    policy = Breakeven()
    begun = Account(plain_s=0.1, plains=3, balance=0.4, started=True)
    chain = Round(3, 3, 1, 0, 2, 1, 4, 0.06, 0.1, steps=STEPS)
    second = STEPS[1]._replace(token=5, prob=STEPS[1].top2)
    tree = Round(4, 3, 2, 0, 3, 1, 5, 0.06, 0.1, steps=(STEPS[0], second))
    a, b = policy.update(begun, chain), policy.update(begun, tree)
    assert (a.drafted, a.ahead, a.told, a.depth) == (b.drafted, b.ahead, b.told, b.depth)
    assert (a.leaves, b.leaves) == (0, 1) and b.emitted == a.emitted + 1


@given(st.sampled_from([2, 3, 50, 8192, 8320]), st.integers(0, 10), st.booleans())
def test_the_second_of_a_row(size: int, seed: int, ties: bool) -> None:
    row = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    if ties:
        row = row.round()
    top = wide.first(row, wide.peaks(row))
    found = wide.second(row, wide.peaks(row))
    assert found != top and float(row[found]) == sorted(row.tolist())[-2]


def test_the_second_of_a_row_with_one_possible_token() -> None:
    row = torch.full((8192,), -torch.inf)
    row[4000] = 1.0
    assert wide.second(row, wide.peaks(row)) != 4000
