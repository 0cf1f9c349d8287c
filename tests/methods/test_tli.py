"""TLI: the reference values, the laws it hands up, and a draft seen through the target's vocabulary."""

from __future__ import annotations

import math
import random

import pytest
import torch

from draftwise import catalog, probs
from draftwise.backends.table import Table
from draftwise.context import Context
from draftwise.engine import Engine
from draftwise.methods.draft_model import DraftModel
from draftwise.methods.speculative import Speculative
from draftwise.methods.tli import TLI, Translated
from draftwise.noise import Noise
from draftwise.protocols import Ask, Backend
from draftwise.types import Draft, Feed, Sampling, Target, Text, Uniforms
from draftwise.vocabularies import Pair, Vocabulary
from tables import pair, run
from test_engine_lossless import statistic
from toy_tokenizers import byte_level, crossed, letters, unigram

WARM = Sampling(temperature=1.0)
P, DRAFTED = (0.4, 0.3, 0.2, 0.1), {"a": 0.5, "b": 0.2, "c": 0.1, "x": 0.2}


def reference() -> Context:
    """The notes' example: the target writes a, b, c, d, the draft c, x, b, a."""
    target, draft = letters("abcd"), letters("cxba")
    rows = {(): [DRAFTED[name] for name in draft.convert_ids_to_tokens(range(4))]}
    view = Translated(Table(4, order=0, rows=rows), Pair(Vocabulary(target), Vocabulary(draft)), 4)
    return Context(Table(4, order=0, rows={(): P}), view, 4)


def text(tokens: list[int], sampling: Sampling = WARM, seed: int = 0) -> Text:
    return Text(0, 0, tokens, sampling, Noise(seed))


def emitted(q: torch.Tensor, p: torch.Tensor, drawn: torch.Tensor) -> list[float]:
    """The exact law of one token: drafts drawn from `drawn`, judged as if from `q`."""
    found = torch.zeros(4, dtype=torch.float64)
    for x in range(4):
        if not drawn[x]:
            continue
        chance = min(1.0, float(p[x] / q[x]))
        found[x] += drawn[x] * chance
        target = Target(torch.stack([p, p]), torch.stack([p, p]).log(), torch.ones(1, dtype=torch.bool))
        draft = Draft(torch.tensor([x]), q[None])
        if chance < 1:
            u = Uniforms(torch.tensor([1 - 1e-9], dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
            verdict, _ = Speculative().judge(target, draft, u, 0)
            assert verdict.path == []
            found += drawn[x] * (1 - chance) * verdict.weights.double() / verdict.weights.double().sum()
    return found.tolist()


def test_the_reference_values() -> None:
    context = reference()
    (draft,) = TLI.from_context(context).propose([Ask(text([0, 3]), 2)])
    q, p = draft.probs[0], torch.tensor(P)
    assert q.tolist() == pytest.approx([0.625, 0.25, 0.125, 0])
    assert float(torch.minimum(p, q).sum()) == pytest.approx(0.775)
    residual = probs.residual(p, q)
    assert (residual / residual.sum()).tolist() == pytest.approx([0, 2 / 9, 3 / 9, 4 / 9])
    assert emitted(q, p, q) == pytest.approx(P)


def test_a_law_that_is_not_renormalised_would_show() -> None:
    """The negative control of the notes."""
    q = torch.tensor([0.5, 0.2, 0.1, 0.0])
    found = emitted(q, torch.tensor(P), q.double() / 0.8)
    assert found == pytest.approx([0.5, 0.291667, 0.166667, 0.041667], abs=1e-6)
    assert found != pytest.approx(P, abs=0.01)


LETTERS = letters("abcd"), letters("cxba")
MERGES = letters("ab", ["a b", "b a"]), letters("bxa", ["a b"])


@pytest.mark.parametrize(
    ("drafter", "tokenizers", "options"),
    [("tli", LETTERS, {"temperature": 1.4, "top_k": 2}), ("tli", MERGES, {}), ("slem", MERGES, {}), ("uag", MERGES, {})],
    ids=["tli-letters-top-k", "tli-merges", "slem-merges", "uag-merges"],
)
def test_the_engine_writes_the_targets_law(drafter: str, tokenizers: tuple, options: dict[str, float]) -> None:
    """Chi-square against exact enumeration: fixed seeds, a false alarm in a million for fresh ones."""
    context = crossed(*tokenizers, drafter, order=1, sharpness=1.0)
    method = catalog.method("fixed:n=2", context)
    assert isinstance(method.drafter, catalog.load(catalog.entry("drafter", drafter)))
    engine = Engine(context.target)
    sequence = engine.add([0, 1], Sampling(max_tokens=60, temperature=1.0), method)
    list(engine.stream())
    assert 0 < sum(r.accepted for r in sequence.rounds) < sum(r.drafted for r in sequence.rounds)  # both happen
    value, limit = statistic(context, "fixed:n=2", options, runs=1500)
    assert value < limit


def test_the_statistic_sees_a_wrong_law(monkeypatch: pytest.MonkeyPatch) -> None:
    context = crossed(letters("abcd"), letters("cxba"), order=1, sharpness=1.0)
    propose = TLI.propose
    monkeypatch.setattr(TLI, "propose", lambda self, asks: [d._replace(probs=d.probs * 0.7) for d in propose(self, asks)])
    value, limit = statistic(context, "fixed:n=2", {}, runs=2000)
    assert value > 2 * limit


@pytest.mark.parametrize("sampling", [Sampling(), WARM, Sampling(temperature=0.8, top_p=0.9)], ids=["greedy", "T1", "top-p"])
def test_of_equal_vocabularies_it_is_the_draft_model_bit_for_bit(sampling: Sampling) -> None:
    same, draft = Pair(Vocabulary(letters("abcdefgh")), Vocabulary(letters("abcdefgh"))), pair().draft
    view, plain = TLI(Translated(draft, same, 8), 8), DraftModel(pair().draft, 8)
    draw = random.Random(0)
    for i in range(20):
        tokens = [draw.randrange(8) for _ in range(12)]
        one, other = (d.propose([Ask(text(tokens, sampling, i), 5, logits=True)])[0] for d in (view, plain))
        assert torch.equal(one.tokens, other.tokens) and torch.equal(one.logits, other.logits) and one.steps == other.steps
        laws = [[law] if isinstance(law, torch.Tensor) else list(law or ()) for law in (one.probs, other.probs)]
        assert all(map(torch.equal, *laws)) and len(laws[0]) == len(laws[1])


@pytest.mark.parametrize(
    ("method", "temperature"),
    [(m, 0.0) for m in ("fixed:n=4", "adasd-stop", "coupled", "cascade", "gammatune", "confidence")] + [("coupled", 1.0)],
)
def test_methods_work_with_it(method: str, temperature: float) -> None:
    """Also those that verify with the draft: a prompt-lookup draft holds tokens that it does not share."""
    context = crossed(letters("abcde", ["a b"]), letters("edcba", ["b c"]), order=1)
    plain = run(context, "plain", max_tokens=60, temperature=temperature)
    assert run(context, method, max_tokens=60, temperature=temperature) == plain


def test_adasd_gets_rows_and_figures_over_the_targets_vocabulary() -> None:
    context = reference()
    method = catalog.method("adasd", context)
    engine = Engine(context.target)
    sequence = engine.add([0, 1], Sampling(max_tokens=40, temperature=1.0), method)
    list(engine.stream())
    step = next(r.steps[0] for r in sequence.rounds if r.steps)
    assert step.entropy == pytest.approx(-sum(q * math.log(q) for q in (0.625, 0.25, 0.125)))
    assert step.top1 == pytest.approx(0.625) and step.top2 == pytest.approx(0.25)
    (draft,) = method.drafter.propose([Ask(text([0, 1]), 1, logits=True)])
    assert draft.logits[0, 3] == -math.inf and draft.logits.shape == (1, 4)
    assert float(probs.js_distance(torch.tensor([P]).log(), draft.logits)[0]) < 1


@pytest.mark.parametrize(("mine", "theirs"), [(letters("abc", ["a b"]), letters("cab")), (letters("abc"), letters("bca", ["c a", "a b"]))])
def test_the_view_is_a_backend(mine: object, theirs: object) -> None:
    """Whatever was fed, kept and fed again, a row is what the same text gives when it is read at once."""
    both, width = Pair(Vocabulary(mine), Vocabulary(theirs)), len(mine)
    inner = Table(len(theirs), order=3)
    view = Translated(inner, both, width)
    assert isinstance(view, Backend)
    draw, tokens = random.Random(1), [0]
    view.forward([Feed(0, torch.tensor(tokens), 0)])
    for _ in range(60):
        new = [draw.randrange(width) for _ in range(draw.randrange(1, 5))]
        want = draw.randrange(len(new) + 1)
        (rows,) = view.forward([Feed(0, torch.tensor(new), want)])
        tokens += new
        assert rows.logits.shape == (want, width) and view.length(0) == len(tokens)
        fresh = Translated(Table(len(theirs), order=3), both, width)
        (again,) = fresh.forward([Feed(5, torch.tensor(tokens), want)])
        assert torch.equal(rows.logits, again.logits)
        tokens = tokens[: draw.randrange(1, len(tokens) + 1)]
        assert view.keep(0, len(tokens)) == len(tokens) == view.length(0)
    view.free(0)
    assert view.length(0) == inner.length(0) == 0


def test_it_reads_what_is_new_only() -> None:
    context = crossed(letters("abcd"), letters("dcba"))
    inner = context.draft.backend
    view = context.draft
    view.forward([Feed(0, torch.tensor([0, 1, 2, 3] * 20), 1)])
    before = inner.fed
    view.keep(0, 79)
    view.forward([Feed(0, torch.tensor([1]), 1)])
    assert inner.fed - before == 1


def test_a_text_longer_than_the_drafts_context() -> None:
    target, draft = letters("abcd"), letters("dcba")
    view = Translated(Table(4, max_length=16), Pair(Vocabulary(target), Vocabulary(draft)), 4)
    context = Context(Table(4), view, 4)
    for drafter in ("tli", "slem", "uag"):
        method = catalog.method("fixed:n=3", context, drafter=drafter)
        engine = Engine(context.target)
        sequence = engine.add([0, 1, 2, 3] * 10, Sampling(max_tokens=50), method)
        list(engine.stream())
        assert sequence.tokens[40:] == run(context, "plain", [0, 1, 2, 3] * 10, max_tokens=50)
        assert sum(r.drafted for r in sequence.rounds) > 0


def test_ends_are_each_others() -> None:
    target, draft = byte_level(["a b"]), unigram(["a", "b", "\u2581"])
    end = Vocabulary(draft).end
    always = Table(len(draft), order=0, rows={(): [float(i == end) for i in range(len(draft))]})
    view = Translated(always, Pair(Vocabulary(target), Vocabulary(draft)), len(target))
    sampling = Sampling(stop_ids=(target.eos_token_id,))
    for drafter in ("tli", "slem", "uag"):
        made = catalog.create("drafter", drafter, Context(Table(len(target)), view, len(target)))
        (found,) = made.propose([Ask(text([1, 2], sampling), 5, lambda _: True)])
        assert found.tokens.tolist() == [target.eos_token_id]
        made.free(text([1, 2]))


def test_what_it_cannot_do_it_says() -> None:
    with pytest.raises(ValueError, match="'tli' needs a draft of another vocabulary .*: take 'draft-model'"):
        catalog.create("drafter", "tli", pair())
    with pytest.raises(ValueError, match="'slem' needs a draft of another vocabulary .* there is none"):
        catalog.create("drafter", "slem", pair()._replace(draft=None))
    with pytest.raises(ValueError, match="share no token, and 'tli' drafts only those: take 'slem'"):
        catalog.create("drafter", "tli", crossed(letters("abc"), letters("xyz")))
    view = crossed(letters("abc"), letters("cba")).draft
    with pytest.raises(ValueError, match="reads chains, not trees"):
        view.forward([Feed(0, torch.tensor([0, 1, 2]), 1, torch.tensor([-1, 0, 0]))])
