"""Every drafter of the catalog through one battery, over table models."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch

from draftwise import catalog, probs
from draftwise.noise import Noise
from draftwise.protocols import Ask, Drafter
from draftwise.trees import children, levels, walk
from draftwise.types import Draft, Outcome, Rows, Sampling, Text
from tables import pair
from toy_tokenizers import crossed, letters

VOCAB = 6
NAMES = catalog.names("drafter")
# What requests share is switched off, and what a clock decides: neither is the same twice.
SPECS = {
    "best-of": "best-of:measure=false",
    "suffix": "suffix:memory=0",
    "stand": "stand:share=request",
    "recycling": "recycling:share=request",
}
COMPOSED = {name: {"prompt-lookup", "draft-model", "none"} for name in ("first-hit", "best-of")}  # whose drafts say which part made them
SAMPLINGS = {"greedy": Sampling(), "T1": Sampling(temperature=1.0), "top-k": Sampling(temperature=0.7, top_k=3)}
FOREIGN = ("tli", "slem", "uag")  # they need a draft of another vocabulary


def build(name: str) -> Drafter:
    context = crossed(letters("abcdef"), letters("fbadce", ["a b"])) if name in FOREIGN else pair(VOCAB)
    made: Drafter = catalog.create("drafter", SPECS.get(name, name), context)
    return made


def text(id: int, tokens: list[int], sampling: Sampling, coupled: bool = False) -> Text:
    return Text(id, id, tokens, sampling, Noise(100 + id, coupled))


def prompt(id: int) -> list[int]:
    draw = random.Random(id)
    return [draw.randrange(VOCAB) for _ in range(6)] * 2


def commit(drafter: Drafter, one: Text, draft: Draft, accepted: int, last: int) -> None:
    """The engine's part of a round: the text grows by the accepted tokens and one more, then the drafter hears of it."""
    tokens = one.tokens
    assert isinstance(tokens, list)
    path = walk(children(draft.parents, len(draft.tokens)), lambda i: True)[:accepted]
    tokens += [*draft.tokens[path].tolist(), last]
    rows = torch.arange((len(draft.tokens) + 1.0) * VOCAB).view(-1, VOCAB) * 7 % 5  # some law or other
    drafter.observe(one, draft, Outcome(path, last, (), 0, Rows(rows, {})))


def play(drafter: Drafter, one: Text, rounds: int = 25, logits: bool = False) -> list[Draft]:
    """The drafts of a whole request, of which a made-up target accepts now more, now fewer."""
    draw, found = random.Random(one.id), []
    for _ in range(rounds):
        (draft,) = drafter.propose([Ask(one, draw.randrange(6), logits=logits)])
        found.append(draft)
        commit(drafter, one, draft, draw.randrange(len(draft.tokens) + 1), draw.randrange(VOCAB))
    return found


def same(one: Draft, other: Draft) -> bool:
    laws = [[] if law is None else [law] if isinstance(law, torch.Tensor) else list(law) for law in (one.probs, other.probs)]
    equal = len(laws[0]) == len(laws[1]) and all(map(torch.equal, *laws))
    hung = [draft.parents.tolist() if draft.parents is not None else None for draft in (one, other)]
    return equal and torch.equal(one.tokens, other.tokens) and one.steps == other.steps and hung[0] == hung[1]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=SAMPLINGS)
def sampling(request: pytest.FixtureRequest) -> Sampling:
    return SAMPLINGS[request.param]


def test_it_is_a_drafter(name: str) -> None:
    drafter = build(name)
    assert isinstance(drafter, Drafter)
    assert all(isinstance(layer, int) for layer in drafter.taps)
    assert isinstance(drafter.has_logits, bool)
    assert isinstance(drafter.learns_rows, bool)


def test_drafts_are_well_formed(name: str, sampling: Sampling) -> None:
    drafter, one = build(name), text(1, prompt(1), sampling)
    draw = random.Random(0)
    for _ in range(30):
        n = draw.randrange(6)
        before = list(one.tokens)
        (draft,) = drafter.propose([Ask(one, n)])
        drafted = len(draft.tokens)
        assert levels(draft.parents, drafted) <= n
        assert list(one.tokens) == before
        assert draft.tokens.dtype == torch.int64
        assert draft.tokens.device.type == "cpu"
        assert all(0 <= token < VOCAB for token in draft.tokens.tolist())
        assert draft.parents is None or (getattr(drafter, "trees", False) and len(draft.parents) == drafted)
        assert all(len({int(draft.tokens[i]) for i in some}) == len(some) for some in children(draft.parents, drafted)), "siblings differ"
        assert draft.origin in COMPOSED.get(name, {name})
        assert len(draft.steps) in (0, drafted)
        assert [(step.index, step.token) for step in draft.steps] in ([], list(enumerate(draft.tokens.tolist())))
        commit(drafter, one, draft, draw.randrange(drafted + 1), draw.randrange(VOCAB))


def test_laws_are_those_the_tokens_came_from(name: str, sampling: Sampling) -> None:
    drafter, one = build(name), text(2, prompt(2), sampling)
    for draft in play(drafter, one):
        if sampling.temperature == 0:
            assert draft.probs is None
        if draft.probs is not None and len(draft.tokens):
            laws = torch.stack([probs.row(draft.probs, i, VOCAB) for i in range(len(draft.tokens))])
            assert laws.sum(-1).tolist() == pytest.approx([1.0] * len(draft.tokens), abs=1e-5)
            assert bool((laws >= 0).all())
            assert torch.equal(probs.picked(draft.probs, draft.tokens), probs.picked(laws, draft.tokens))
            assert bool((probs.picked(draft.probs, draft.tokens) > 0).all())


def test_a_coupled_request_has_no_law(name: str) -> None:
    one = text(3, prompt(3), SAMPLINGS["T1"], coupled=True)
    assert all(draft.probs is None for draft in play(build(name), one))


def test_steps_are_figures_of_a_law(name: str, sampling: Sampling) -> None:
    for draft in play(build(name), text(4, prompt(4), sampling)):
        for step in draft.steps:
            assert all(isinstance(x, float) for x in step[2:])
            assert 0 <= step.prob <= step.top1 + 1e-6 <= 1 + 2e-6
            assert 0 <= step.top2 <= step.top1
            assert step.entropy >= -1e-6


def test_logits_come_if_asked_for(name: str) -> None:
    drafter = build(name)
    for draft in play(drafter, text(5, prompt(5), SAMPLINGS["T1"]), logits=True) if drafter.has_logits else []:
        assert len(draft.tokens) == 0 or (draft.logits is not None and draft.logits.shape == (len(draft.tokens), VOCAB))


def test_two_of_a_kind_draft_the_same(name: str, sampling: Sampling) -> None:
    one, other = (play(build(name), text(6, prompt(6), sampling)) for _ in range(2))
    assert all(same(a, b) for a, b in zip(one, other, strict=True))


def test_a_neighbour_changes_nothing(name: str, sampling: Sampling) -> None:
    alone = build(name).propose([Ask(text(7, prompt(7), sampling), 4)])
    together = build(name).propose([Ask(text(id, prompt(id), sampling), n) for id, n in ((8, 2), (7, 4), (9, 0))])
    assert len(together) == 3
    assert len(together[2].tokens) == 0
    assert same(alone[0], together[1])


def test_nobody_asks(name: str) -> None:
    assert build(name).propose([]) == []


def test_a_stop_rule_is_asked_only_of_kept_tokens(name: str) -> None:
    seen: list[int] = []

    def more(steps: object) -> bool:
        seen.append(len(steps))  # type: ignore[arg-type]
        return len(steps) < 2  # type: ignore[arg-type]

    (draft,) = build(name).propose([Ask(text(1, prompt(1), SAMPLINGS["T1"]), 5, more)])
    assert seen == [] or (seen == [1, 2] and levels(draft.parents, len(draft.tokens)) == 2)
    assert len(draft.steps) == len(draft.tokens) or not seen


def test_a_draft_does_not_go_past_the_end_of_text(name: str) -> None:
    stops = tuple(range(0, VOCAB, 2))
    sampling = Sampling(temperature=1.0, stop_ids=stops)
    for id in range(10):
        (draft,) = build(name).propose([Ask(text(id, prompt(id), sampling), 8, lambda _: True)])
        below = children(draft.parents, len(draft.tokens))
        assert not any(some for some, token in zip(below, draft.tokens.tolist(), strict=False) if token in stops)


def test_what_it_lags_behind(name: str) -> None:
    drafter, one = build(name), text(2, prompt(2), SAMPLINGS["T1"])
    first = drafter.lag(one)
    assert 0 <= first <= len(one.tokens)
    play(drafter, one, 5)
    drafter.propose([Ask(one, 3)])
    assert drafter.lag(one) <= 1
    one.tokens.extend([1, 2, 3])  # type: ignore[attr-defined]
    rested = drafter.lag(one)
    assert rested <= len(one.tokens)
    drafter.propose([Ask(one, 3)])
    assert drafter.lag(one) <= rested
    assert drafter.lag(one) <= 1


def test_after_free_it_starts_afresh(name: str, sampling: Sampling) -> None:
    drafter = build(name)
    fresh = drafter.lag(text(3, prompt(3), sampling))
    first = play(drafter, text(3, prompt(3), sampling))
    drafter.free(text(3, prompt(3), sampling))
    drafter.free(text(3, prompt(3), sampling))
    assert drafter.lag(text(3, prompt(3), sampling)) == fresh
    again = play(drafter, text(3, prompt(3), sampling))
    assert all(same(a, b) for a, b in zip(first, again, strict=True))


def test_a_finished_text_leaves_nothing_behind(name: str) -> None:
    drafter = build(name)
    for id in range(20):
        one = text(id, prompt(id), SAMPLINGS["greedy"])
        play(drafter, one, 2)
        drafter.free(one)
    indexes = [value for value in vars(drafter).values() if isinstance(value, dict)]
    assert not any(indexes)
