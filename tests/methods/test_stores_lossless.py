"""Drafters that learn while they are used leave sampling exact: chi-square of the engine over requests that share one store.

Seeds are fixed; the threshold is the 1 - 1e-6 quantile. The first requests meet an empty store, the last one that thousands have filled."""

from __future__ import annotations

import pytest
import torch

from draftwise import catalog
from draftwise.engine import Engine
from draftwise.methods.fixed import Fixed
from draftwise.methods.shapes import shape
from draftwise.methods.speculative import Speculative
from draftwise.methods.stand import Stand
from draftwise.sequence import Method
from draftwise.types import Sampling
from tables import pair, run
from test_engine_lossless import chi

SPECS = ["suffix", "stand:nodes=20", "recycling:nodes=20", "stand:tree=chain", "stand:share=all,order=1,top=3,nodes=9", "recycling:tree=chain"]
WORLD = {"vocab": 4, "twist": 0.8, "order": 1, "sharpness": 1.0}




@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("drafter", SPECS)
def test_the_law_is_the_targets(drafter: str) -> None:
    context = pair(**WORLD)  # type: ignore[arg-type]
    value, limit = chi(context, catalog.method("fixed:n=3", context, drafter=drafter), {}, 1600)
    assert value < limit


@pytest.mark.parametrize("options", [{"top_p": 0.8, "temperature": 1.3}, {"repetition_penalty": 1.4}, {"temperature": 0.4}])
def test_the_law_is_the_targets_under_a_warp(options: dict[str, float]) -> None:
    context = pair(**WORLD)  # type: ignore[arg-type]
    value, limit = chi(context, catalog.method("fixed:n=3", context, drafter="stand:nodes=9"), options, 800)
    assert value < limit


def test_a_law_that_was_not_sampled_from_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test can fail: children that are said to come from a flat law."""
    context = pair(**WORLD)  # type: ignore[arg-type]
    drafter = Stand(order=1, top=4, tree=shape([(0,), (1,), (2,)]), share="all", vocab_size=4)
    honest = drafter.propose

    def lying(asks):  # type: ignore[no-untyped-def]
        return [d if d.probs is None else d._replace(probs=d.probs._replace(p=d.probs.p.clone().fill_(0.25))) for d in honest(asks)]

    monkeypatch.setattr(drafter, "propose", lying)
    value, limit = chi(context, Method(Fixed(2), Speculative(), drafter), {}, 1600)
    assert value > limit


@pytest.mark.parametrize("drafter", SPECS)
def test_greedy_and_coupled_text_is_the_plain_text(drafter: str) -> None:
    context = pair(12, order=2)
    for options in ({}, {"temperature": 0.8}):
        method = catalog.method("fixed:n=6", context, accept="coupled", drafter=drafter)
        greedy = catalog.method("fixed:n=6", context, drafter=drafter)
        for seed in range(6):
            sampling = {"max_tokens": 40, "seed": seed, **options}
            plain = run(context, "plain", **sampling)
            for some in (method, greedy) if not options else (method,):
                engine = Engine(context.target)
                assert engine.generate([[1, 2, 3, 1]], Sampling(**sampling), some)[0] == plain  # type: ignore[arg-type]


@pytest.mark.parametrize("drafter", ["suffix", "stand", "recycling"])
def test_a_store_that_knows_the_text_drafts_it(drafter: str) -> None:
    """The second request of a problem takes fewer passes than the first."""
    context = pair(12, order=2, sharpness=6.0)
    method = catalog.method(drafter, context)
    passes = []
    for _ in range(2):
        engine = Engine(context.target)
        sequence = engine.add([1, 2, 3, 1], Sampling(max_tokens=60), method)
        list(engine.stream())
        passes.append(len(sequence.rounds))
    assert passes[1] < 0.6 * 60
    assert passes[1] <= passes[0]
