"""First hit: who is asked, with which length, and that the text is the target's."""

from __future__ import annotations

import pytest
import torch

import test_engine_lossless
from draftwise import catalog
from draftwise.bench.tape import Tape, finish, record
from draftwise.commands import show
from draftwise.context import Context
from draftwise.engine import Engine
from draftwise.methods.cascade import Cascade
from draftwise.methods.draft_model import DraftModel
from draftwise.methods.first_hit import FirstHit
from draftwise.methods.fixed import Fixed
from draftwise.methods.gammatune import GammaTune, GammaTunePlus
from draftwise.methods.prompt_lookup import PromptLookup
from draftwise.noise import Noise
from draftwise.protocols import Ask
from draftwise.rounds import NOTHING
from draftwise.stats import summarize
from draftwise.types import Outcome, Rows, Sampling, Text
from tables import pair


def text(tokens: list[int], id: int = 0) -> Text:
    return Text(id, id, tokens, Sampling(), Noise(id))


def outcome(accepted: int, last: int = 0) -> Outcome:
    return Outcome(list(range(accepted)), last, (), 0, Rows(torch.zeros(1, 6), {}))


def test_the_first_that_has_something_drafts() -> None:
    context = pair(6)
    drafter = catalog.create("drafter", "first-hit:length=[fixed:n=3]", context)
    hit, miss = text([1, 2, 3, 1, 2]), text([1, 2, 3], 1)
    drafts = drafter.propose([Ask(hit, 9), Ask(miss, 9), Ask(text([4, 4], 2), 0)])
    assert [draft.origin for draft in drafts] == ["prompt-lookup", "draft-model", "none"]
    assert drafts[0].tokens.tolist() == [3, 1, 2]
    alone = DraftModel(pair(6).draft, 6).propose([Ask(text([1, 2, 3], 1), 3)])[0]
    assert drafts[1].tokens.tolist() == alone.tokens.tolist()


def test_every_part_has_a_length_state_of_its_own() -> None:
    """GammaTune for the lookup: 4, then 6 after a whole one; a round of the model does not move it, nor does a round the text ended in."""
    drafter = FirstHit([PromptLookup(max_tokens=40), DraftModel(pair(6).draft, 6)])
    assert drafter._own.lengths == (GammaTune(), GammaTunePlus())
    tokens = [1, 2, 3, 4, 5, 0] * 6 + [1, 2]
    one, lengths = text(tokens), []
    for accepted in (4, 6, 2):
        (draft,) = drafter.propose([Ask(one, 20)])
        lengths.append(len(draft.tokens))
        tokens += [*draft.tokens[:accepted].tolist(), 0 if accepted == 2 else (tokens[-6 + accepted % 6])]
        drafter.observe(one, draft, outcome(accepted))
    assert lengths == [4, 6, 8]
    assert drafter._own.states[0][0].n == 4  # 0.8 * 4 + 0.2 * 2, rounded up
    assert drafter._own.states[0][1] == GammaTunePlus().init(None)
    other = one._replace(sampling=Sampling(stop_ids=(tokens[-1],)))
    (draft,) = drafter.propose([Ask(other, 20)])
    before = [*drafter._own.states[0]]
    drafter.observe(other, draft, outcome(0, tokens[-1]))
    assert drafter._own.states[0] == before
    drafter.free(one)
    assert not drafter._own.states
    assert not drafter._made


def test_a_model_that_rested_reads_what_it_missed() -> None:
    context = pair(6)
    drafter = FirstHit([PromptLookup(), DraftModel(context.draft, 6)], Fixed(2))
    tokens = [1, 2, 3]
    one = text(tokens)
    drafter.propose([Ask(one, 5)])
    drafter.observe(one, NOTHING, outcome(0))
    tokens += [1, 2, 3, 1, 2]
    for _ in range(3):
        (draft,) = drafter.propose([Ask(one, 5)])
        assert draft.origin == "prompt-lookup"
        tokens += [*draft.tokens.tolist(), tokens[-6]]
        drafter.observe(one, draft, outcome(2))
    rested = drafter.parts[1].lag(one)
    assert rested > 10
    tokens += [4, 0, 5]
    assert drafter.propose([Ask(one, 5)])[0].origin == "draft-model"
    fresh = DraftModel(pair(6).draft, 6).propose([Ask(text([*tokens], 7), 2)])[0]
    drafter.observe(one, NOTHING, outcome(0))
    assert drafter.propose([Ask(one, 5)])[0].tokens.tolist() == fresh.tokens.tolist()


STORES = [
    "first-hit:[suffix],[draft-model]",
    "best-of:[prompt-lookup],[stand],[draft-model],measure=false,explore=0.3",
    "first-hit:[stand],[draft-tree]",
]


@pytest.mark.parametrize("spec", STORES)
def test_stores_and_trees_compose(spec: str) -> None:
    context = pair(6)
    sampling = Sampling(max_tokens=60)
    method, plain = (catalog.method("fixed:n=8", context, drafter=spec), catalog.method("plain", context))
    prompts = [[1, 2, 3, 1], [0, 1, 0, 1, 0]]
    assert Engine(context.target).generate(prompts, sampling, method) == Engine(context.target).generate(prompts, sampling, plain)
    assert method.drafter.learns_rows == ("stand" in spec)
    if "stand" in spec:
        with pytest.raises(ValueError, match="proposes trees"):
            Engine(context.target).add([1], sampling, catalog.method("fixed", context, accept="fly", drafter=spec))


@pytest.mark.parametrize("spec", ["first-hit", "best-of:measure=false,explore=0.3", "best-of", f"fixed:n=3 {STORES[1]}", f"fixed:n=3 {STORES[2]}"])
def test_the_engine_writes_the_targets_law(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chi-square as in `test_engine_lossless`, after a prompt that lookup can copy from; a false alarm in a million."""
    torch.set_num_threads(1)
    monkeypatch.setattr(test_engine_lossless, "PROMPT", [0, 1, 2, 0, 1])
    context, (length, _, drafter) = pair(3, 0.6, order=1, sharpness=1.0), spec.partition(" ")
    method = catalog.method(length, context, drafter=drafter or None)
    monkeypatch.setattr(test_engine_lossless.catalog, "method", lambda spec, context: method)
    value, limit = test_engine_lossless.statistic(context, spec, {})
    assert value < limit


@pytest.mark.parametrize("spec", ["first-hit", "best-of", "best-of:explore=0.5,measure=false"])
@pytest.mark.parametrize("sampling", [Sampling(max_tokens=80), Sampling(temperature=1.0, seed=4, max_tokens=80)], ids=["greedy", "coupled"])
def test_the_text_is_that_of_plain_decoding(spec: str, sampling: Sampling) -> None:
    context = pair(6)
    method, plain = catalog.method(spec, context, accept="coupled"), catalog.method("plain", context)
    prompts = [[1, 2, 3, 1], [5, 5, 5], [0, 1, 0, 1, 0]]
    assert Engine(context.target).generate(prompts, sampling, method) == Engine(context.target).generate(prompts, sampling, plain)


def test_the_figures_say_who_drafted() -> None:
    context, tape = pair(6), Tape()
    method = catalog.method("first-hit", context)
    engine = Engine(context.target)
    sequence = engine.add([1, 2, 3, 1], Sampling(max_tokens=60), record(method, tape))
    list(engine.stream())
    stats = summarize(sequence.rounds, 1.0)
    assert {name for name, _ in stats.drafters} == {"prompt-lookup", "draft-model"}
    assert sum(n for _, n in stats.drafters) == sum(r.drafted > 0 for r in sequence.rounds)
    assert "drafted by" in {name for name, _ in show._rows(stats)}
    assert finish(tape, sequence).header["origin"] == "several drafters"


def test_below_a_cascade() -> None:
    """A composite proposes to a middle model, hears of drafts that are not its own, and of texts that got shorter."""
    target, middle = pair(6).target, pair(6, 0.3).draft
    for spec in ("first-hit", "best-of:measure=false,explore=0.3"):
        context = pair(6, 0.7)
        stacked = Cascade(middle, 6, catalog.create("drafter", spec, context), Fixed(3), catalog.create("accept", "speculative"))
        method = catalog.method("fixed:n=5", context, drafter=stacked)
        plain = catalog.method("plain", context)
        sampling = Sampling(max_tokens=60)
        assert Engine(target).generate([[1, 2, 3, 1]], sampling, method) == Engine(target).generate([[1, 2, 3, 1]], sampling, plain)
        assert not stacked.inner._own.states
        assert stacked.level == 1


def test_what_cannot_be_composed_is_refused() -> None:
    context = pair(6)
    for spec, message in {
        "first-hit:[draft-model],[prompt-lookup]": "DraftModel always has something to propose",
        "first-hit:[prompt-lookup],[draft-modl]": "did you mean 'draft-model'",
        "first-hit:length=adasd": r"length=\[adasd\]",
        "cascade:length=adasd": r"length=\[adasd\]",
        "best-of:explore=1.0": "explore must be a share",
        "best-of:decay=1.0": "decay must lie between",
        "best-of:horizon=0": "horizon must be at least 1",
        "best-of:step=-1.0": "step must be a share",
        "cascade:[first-hit:[prompt-lookup],[draft-model]]": "cannot verify its own drafts",
    }.items():
        with pytest.raises(ValueError, match=message):
            catalog.create("drafter", spec, context)
    with pytest.raises(ValueError, match="needs at least one drafter"):
        FirstHit([])
    with pytest.raises(ValueError, match="compares the draft's laws"):
        Engine(context.target).add([1], Sampling(), catalog.method("first-hit", context, accept="adasd"))
    with pytest.raises(ValueError, match="stops on the draft's confidence"):
        Engine(context.target).add([1], Sampling(), catalog.method("first-hit", context, length="adasd"))


def test_without_a_draft_model_there_is_the_lookup() -> None:
    context = Context(pair(6).target, None, 6)
    for name in ("first-hit", "best-of"):
        method = catalog.method(name, context)
        assert [type(part) for part in method.drafter.parts] == [PromptLookup]
        plain = catalog.method("plain", context)
        found = [Engine(context.target).generate([[1, 2, 1, 2]], Sampling(max_tokens=30), some) for some in (method, plain)]
        assert found[0] == found[1]
