"""Cascades of two to four levels: exact at the top whatever stands below, their caches and streams in order."""

from __future__ import annotations

import pytest
import torch

import test_engine_lossless
from draftwise import catalog
from draftwise.backends.table import Table
from draftwise.context import Context
from draftwise.engine import Engine
from draftwise.methods.adasd import AdaSDAccept, AdaSDStop
from draftwise.methods.cascade import Cascade
from draftwise.methods.coupled import Coupled
from draftwise.methods.draft_model import DraftModel
from draftwise.methods.fixed import Fixed
from draftwise.methods.prompt_lookup import PromptLookup
from draftwise.methods.speculative import Speculative
from draftwise.methods.typical import Typical
from draftwise.noise import Noise
from draftwise.protocols import Accept, Ask, Drafter, Length
from draftwise.sequence import Method
from draftwise.types import Sampling, Text
from tables import pair


def table(vocab: int, twist: float, **options: float) -> Table:
    return Table(vocab, seed=0, twist=twist, **options)


def stack(vocab: int, levels: int, length: Length | None = None, accept: Accept | None = None, **options: float) -> Drafter:
    """A draft model below `levels` verifying models, each nearer to the target."""
    drafter: Drafter = DraftModel(table(vocab, 0.9, **options), vocab)
    for i in range(levels):
        drafter = Cascade(table(vocab, 0.7 - 0.2 * i, **options), vocab, drafter, length or Fixed(2), accept or Speculative())
    return drafter


def decode(drafter: Drafter, accept: Accept, sampling: Sampling, n: int = 4, prompts: int = 1, vocab: int = 6) -> list[list[int]]:
    engine = Engine(table(vocab, 0.0))
    return engine.generate([[1, 2, 3, 1 + i] for i in range(prompts)], sampling, Method(Fixed(n), accept, drafter))


def plain(sampling: Sampling, prompts: int = 1, vocab: int = 6) -> list[list[int]]:
    context = pair(vocab)
    return Engine(context.target).generate([[1, 2, 3, 1 + i] for i in range(prompts)], sampling, catalog.method("plain", context))


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("prompts", [1, 3])
def test_greedy_text_is_the_targets(levels: int, prompts: int) -> None:
    sampling = Sampling(max_tokens=50)
    assert decode(stack(6, levels), Speculative(), sampling, prompts=prompts) == plain(sampling, prompts)


@pytest.mark.parametrize("levels", [1, 2])
def test_coupled_tokens_are_those_of_plain_decoding(levels: int) -> None:
    sampling = Sampling(temperature=1.0, max_tokens=50, seed=5)
    assert decode(stack(6, levels), Coupled(), sampling, prompts=2) == plain(sampling, prompts=2)


@pytest.mark.parametrize(
    ("levels", "length", "accept"),
    [(1, None, None), (2, None, None), (1, AdaSDStop(cap=3), None), (1, None, Typical()), (1, None, AdaSDAccept())],
    ids=["two", "three", "adaptive", "lossy below", "lossy adasd below"],
)
def test_the_engine_writes_the_targets_law(levels: int, length: Length | None, accept: Accept | None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    options = {"order": 1, "sharpness": 1.0}
    context = Context(table(4, 0.0, **options), table(4, 0.5, **options), 4)
    method = Method(Fixed(2), Speculative(), stack(4, levels, length, accept, **options))
    monkeypatch.setattr(test_engine_lossless.catalog, "method", lambda spec, context: method)
    value, limit = test_engine_lossless.statistic(context, "", {})
    assert value < limit


def test_what_it_hands_up_are_samples_of_its_own_model() -> None:
    """The first two tokens of 4,000 drafts against the middle model's exact laws."""
    torch.set_num_threads(1)
    middle = table(3, 0.5, order=1, sharpness=1.0)
    drafter = Cascade(middle, 3, DraftModel(table(3, 0.9, order=1, sharpness=1.0), 3), Fixed(2), Speculative())
    sampling, counts = Sampling(temperature=1.0), torch.zeros(3, 3)
    for seed in range(4000):
        text = Text(seed, 0, [0, 1], sampling, Noise(seed))
        draft = drafter.propose([Ask(text, 2, most=9)])[0]
        assert draft.probs is not None
        first, second = draft.tokens[:2].tolist()
        assert torch.allclose(draft.probs[0], middle.row([0, 1]).softmax(-1), atol=1e-6)
        assert torch.allclose(draft.probs[1], middle.row([0, 1, first]).softmax(-1), atol=1e-6)
        counts[first, second] += 1
        drafter.free(text)
    law = middle.row([0, 1]).softmax(-1)[:, None] * torch.stack([middle.row([0, 1, x]).softmax(-1) for x in range(3)])
    assert float(((counts - 4000 * law) ** 2 / (4000 * law)).sum()) < 42.7  # the 1 - 1e-6 quantile at 8 degrees of freedom


def test_tokens_beyond_the_ask_are_kept_as_far_as_there_is_room() -> None:
    drafter, one = stack(6, 1, Fixed(4)), Text(1, 1, [1, 2, 3], Sampling(), Noise(1))
    found = {most: len(drafter.propose([Ask(one, 2, most=most)])[0].tokens) for most in (0, 3, 9)}
    assert found[0] == 2
    assert 2 <= found[3] <= 3
    assert 2 <= found[9] <= 6


def test_a_cascade_below_the_catalog() -> None:
    context = pair(6)
    method = catalog.method("fixed:n=4", context, drafter="cascade:[prompt-lookup:max_ngram=3],length=[fixed:n=6],accept=[speculative]")
    assert isinstance(method.drafter, Cascade)
    assert (method.drafter.length, method.drafter.level) == (Fixed(6), 1)
    assert isinstance(method.drafter.inner, PromptLookup)
    sampling = Sampling(max_tokens=40)
    assert Engine(context.target).generate([[1, 2, 3, 1]], sampling, method) == plain(sampling)


def test_flys_second_level_drafts_what_the_draft_model_would() -> None:
    context = pair(6)
    second = catalog.method("fly-cascade", context)
    assert (second.length, second.drafter.length, second.drafter.inner.max_ngram) == (Fixed(15), Fixed(6), 4)
    for i in range(5):
        one = Text(i, i, [1, 2, 3, i], Sampling(), Noise(i))
        ours, theirs = (drafter.propose([Ask(one, 15)])[0] for drafter in (second.drafter, DraftModel(table(6, 0.6), 6)))
        assert ours.tokens.tolist() == theirs.tokens.tolist()
        assert len(ours.tokens) == 15
        second.drafter.free(one)
    strict = catalog.method("fly-cascade:theta=9", context)  # nothing is relaxed
    assert Engine(context.target).generate([[1, 2, 3, 1]], Sampling(max_tokens=50), strict) == plain(Sampling(max_tokens=50))


def test_parts_that_form_no_hierarchy_are_refused() -> None:
    with pytest.raises(ValueError, match="share one vocabulary"):
        Cascade(table(5, 0.5), 6, PromptLookup(), Fixed(2), Speculative())
    with pytest.raises(ValueError, match="stops on a draft's confidence"):
        Cascade(table(6, 0.5), 6, PromptLookup(), AdaSDStop(), Speculative())
    with pytest.raises(ValueError, match="compares laws"):
        Cascade(table(6, 0.5), 6, PromptLookup(), Fixed(2), AdaSDAccept())
    with pytest.raises(ValueError, match="cannot verify its own"):
        catalog.create("drafter", "cascade:[draft-model]", pair(6))
    with pytest.raises(ValueError, match="needs a draft that verifies"):
        catalog.create("drafter", "cascade", pair(6)._replace(draft=None))
