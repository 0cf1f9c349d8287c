"""Odd inputs of the engine, found by hypothesis: whatever they are, greedy speculation writes what plain decoding writes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draftwise import catalog
from draftwise.backends.table import Table
from draftwise.context import Context
from draftwise.engine import Engine
from draftwise.methods.draft_model import DraftModel
from draftwise.methods.speculative import Speculative
from draftwise.sequence import Method
from draftwise.types import DraftStep, Now, Round, Sampling

QUICK = settings(max_examples=40, deadline=None)
LOSSLESS = [name for name in catalog.names("method") if catalog.entry("method", name).lossless]


@dataclass(frozen=True)
class Scripted:
    """Budgets from a list, 0 among them, and a stop after some token."""

    budgets: tuple[int, ...]
    stop_after: int

    per_token: ClassVar[bool] = True

    def init(self, last: int | None) -> int:
        return 0

    def budget(self, state: int, now: Now) -> int:
        assert now.room >= 0
        return self.budgets[now.context % len(self.budgets)]

    def more(self, state: int, now: Now, steps: Sequence[DraftStep]) -> bool:
        return len(steps) < self.stop_after

    def update(self, state: int, round: Round) -> int:
        assert round.drafted > 0
        assert round.accepted <= round.drafted
        return state + 1


@st.composite
def tables(draw: st.DrawFn) -> tuple[Table, Table]:
    """A target and a draft over 1 to 6 tokens; some rows are flat, some have -inf entries."""
    vocab = draw(st.integers(1, 6))
    seed = draw(st.integers(0, 50))
    target, draft = (Table(vocab, order=1, seed=seed, twist=twist, max_length=40) for twist in (0.0, draw(st.sampled_from([0.0, 0.7, 3.0]))))
    for table in (target, draft):
        for token in range(vocab):
            kind = draw(st.sampled_from(["random", "flat", "holes"]))
            row = table.row([token]).clone()
            if kind == "flat":
                row = torch.zeros(vocab)
            if kind == "holes":
                holes = torch.tensor([draw(st.booleans()) for _ in range(vocab)])
                holes[draw(st.integers(0, vocab - 1))] = False
                row = row.masked_fill(holes, -math.inf)
            table.rows[(token,)] = row
    return target, draft


prompts = st.lists(st.integers(0, 5), min_size=1, max_size=9)


@QUICK
@given(tables(), prompts, st.lists(st.integers(0, 7), min_size=1, max_size=5), st.integers(1, 8), st.integers(1, 12), st.integers(1, 5), st.data())
def test_any_budgets_write_the_plain_text(models, prompt, budgets, stop_after, max_tokens, chunk, data) -> None:  # type: ignore[no-untyped-def]
    target, draft = models
    vocab = target.vocab_size
    prompt = [token % vocab for token in prompt]
    context = Context(target, draft, vocab)
    stops = tuple(data.draw(st.sets(st.integers(0, vocab - 1), max_size=2)))
    sampling = Sampling(max_tokens=max_tokens, stop_ids=stops)
    plain = Engine(target, chunk).generate([prompt], sampling, catalog.method("plain", context))[0]
    method = Method(Scripted(tuple(budgets), stop_after), Speculative(), DraftModel(draft, vocab))
    assert Engine(target, chunk).generate([prompt], sampling, method)[0] == plain
    assert 1 <= len(plain) <= max_tokens
    assert not target.slots
    assert not draft.slots


@QUICK
@given(tables(), prompts, st.sampled_from(LOSSLESS), st.integers(1, 20), st.floats(0, 2), st.integers(0, 3), st.floats(0.05, 1), st.floats(0, 1))
def test_any_method_ends_and_stays_in_the_support(models, prompt, name, max_tokens, temperature, top_k, top_p, min_p) -> None:  # type: ignore[no-untyped-def]
    target, draft = models
    prompt = [token % target.vocab_size for token in prompt]
    context = Context(target, draft, target.vocab_size)
    sampling = Sampling(temperature, top_k, top_p, min_p, max_tokens=max_tokens)
    tokens = Engine(target).generate([prompt], sampling, catalog.method(name, context))[0]
    assert len(tokens) == min(max_tokens, 40 - len(prompt))
    for before, token in zip([prompt[-1], *tokens], tokens, strict=False):
        assert target.row([before])[token] > -math.inf


@QUICK
@given(tables(), prompts, st.integers(0, 2**64 - 1), st.floats(0.1, 2), st.integers(1, 15))
def test_coupled_is_plain_for_any_seed(models, prompt, seed, temperature, max_tokens) -> None:  # type: ignore[no-untyped-def]
    target, draft = models
    prompt = [token % target.vocab_size for token in prompt]
    context = Context(target, draft, target.vocab_size)
    sampling = Sampling(temperature, seed=seed, max_tokens=max_tokens)
    plain, coupled = (Engine(target).generate([prompt], sampling, catalog.method(name, context)) for name in ("plain", "coupled"))
    assert plain == coupled
