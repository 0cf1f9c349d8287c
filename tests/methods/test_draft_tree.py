"""Draft trees: their shape on a literal table, their laws, and the text of plain decoding whatever they hold."""

from __future__ import annotations

import pytest
import torch

import tiny
from draftwise import catalog, probs
from draftwise.backends.hf import HF
from draftwise.backends.hf_replay import HFReplay
from draftwise.backends.table import Table
from draftwise.context import Context
from draftwise.engine import Engine
from draftwise.methods.coupled import Coupled
from draftwise.methods.draft_tree import DraftTree, without
from draftwise.methods.fixed import Fixed
from draftwise.methods.speculative import Speculative
from draftwise.noise import Noise
from draftwise.protocols import Ask
from draftwise.sequence import Method
from draftwise.trees import children, depths, path_to
from draftwise.types import Draft, Sampling, Sparse, Text
from tables import PROMPT, pair, run
from test_engine_lossless import chi

ROWS = {(0,): (0.5, 0.3, 0.2), (1,): (0.1, 0.7, 0.2), (2,): (0.4, 0.4, 0.2)}
LITERAL = Table(3, order=1, rows=ROWS)


def text(sampling: Sampling, tokens: list[int] | None = None, coupled: bool = False) -> Text:
    return Text(0, 0, [0] if tokens is None else tokens, sampling, Noise(sampling.seed, coupled))


def draft(table: Table, n: int, sampling: Sampling, coupled: bool = False, **options: object) -> Draft:
    table.slots.clear()
    return DraftTree(table, table.vocab_size, **options).propose([Ask(text(sampling, coupled=coupled), n)])[0]  # type: ignore[arg-type]


def paths(found: Draft) -> list[tuple[int, ...]]:
    """The tokens from the root down to each token."""
    assert found.parents is not None
    return [tuple(found.tokens[path_to(found.parents, i)].tolist()) for i in range(len(found.tokens))]


def test_a_static_shape() -> None:
    found = draft(LITERAL, 5, Sampling(), shape="2-1-2")
    assert paths(found) == [(0,), (1,), (0, 0), (1, 1), (0, 0, 0), (0, 0, 1), (1, 1, 1), (1, 1, 2)]
    assert len(draft(LITERAL, 2, Sampling(), shape="2-1-2").tokens) == 4  # two levels were asked for


def test_the_best_by_score() -> None:
    """Scores: 0 .5, 1 .3 | 00 .25, 01 .15, 11 .21, 12 .06 | of 00 and 11: 000 .125, 001 .075, 111 .147, 112 .042."""
    found = draft(LITERAL, 3, Sampling(), nodes=6, width=2)
    assert paths(found) == [(0,), (1,), (0, 0), (0, 1), (1, 1), (1, 1, 1)]
    assert [step.prob for step in found.steps] == pytest.approx([0.5, 0.3, 0.5, 0.3, 0.7, 0.7])
    assert [step.index for step in found.steps] == list(range(6))
    assert found.steps[2].top1 == pytest.approx(0.5)
    assert found.steps[2].top2 == pytest.approx(0.3)
    assert found.probs is None


def test_it_ends_where_no_child_can_be_among_the_best() -> None:
    table = Table(3, order=1, rows={(0,): (0.4, 0.3, 0.3), (1,): (0.4, 0.3, 0.3), (2,): (0.4, 0.3, 0.3)})
    assert paths(draft(table, 9, Sampling(), nodes=3, width=3)) == [(0,), (1,), (2,)]
    assert table.forwards == 2  # the text, and 0, whose child could still have beaten .3


def test_more_is_asked_once_a_level_with_the_best_of_each() -> None:
    asked: list[list[tuple[int, int]]] = []
    ask = Ask(text(Sampling()), 4, lambda steps: not asked.append([(s.index, s.token) for s in steps]) and len(steps) < 3)
    (found,) = DraftTree(Table(3, order=1, rows=ROWS), 3, nodes=20, width=2).propose([ask])
    assert asked == [[(0, 0)], [(0, 0), (1, 0)], [(0, 0), (1, 0), (2, 1)]]  # 111 with .147
    assert found.parents is not None
    assert int(depths(found.parents).max()) == 2


SAMPLINGS: list[dict[str, float]] = [
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 4},
    {"temperature": 1.2, "top_p": 0.8, "repetition_penalty": 1.3},
]


@pytest.mark.parametrize("chances", SAMPLINGS)
@pytest.mark.parametrize("options", [{"shape": "3-2-2"}, {"nodes": 9, "width": 3}])
def test_laws_are_those_of_what_is_left_after_the_earlier_siblings(chances: dict[str, float], options: dict[str, object]) -> None:
    for seed in range(20):
        table = Table(6)
        sampling = Sampling(**chances, seed=seed)  # type: ignore[arg-type]
        (found,) = DraftTree(table, 6, **options).propose([Ask(text(sampling, [1, 2]), 3)])  # type: ignore[arg-type]
        assert found.parents is not None
        assert found.probs is not None
        for siblings, above in zip(children(found.parents, len(found.tokens)), [*paths(found), ()], strict=True):
            context = [1, 2, *above]
            law = probs.warp(table.row(context)[None], sampling, lambda _, context=context: context)[0]  # type: ignore[misc]
            for i in siblings:
                assert torch.allclose(probs.row(found.probs, i, 6), law, atol=1e-6)
                assert law[found.tokens[i]] > 0
                law = law.clone()
                law[found.tokens[i]] = 0
                law = law / law.sum()


def test_how_many_are_drawn_is_settled_by_the_laws() -> None:
    sizes = {len(draft(Table(6), 3, Sampling(temperature=1.0, seed=seed), nodes=9, width=3).tokens) for seed in range(20)}
    assert sizes == {9}


def test_a_law_without_a_token() -> None:
    dense = torch.tensor([[0.5, 0.25, 0.25]])
    assert without(dense, torch.tensor([1])).tolist() == [[pytest.approx(2 / 3), 0, pytest.approx(1 / 3)]]  # type: ignore[union-attr]
    assert dense.tolist() == [[0.5, 0.25, 0.25]]
    sparse = without(Sparse(torch.tensor([[2, 0, 1]]), torch.tensor([[0.5, 0.25, 0.25]])), torch.tensor([2]))
    assert isinstance(sparse, Sparse)
    assert sparse.p.tolist() == [[0, 0.5, 0.5]]


def test_a_coupled_request_gets_the_winners_of_the_shared_race() -> None:
    sampling = Sampling(temperature=1.0, seed=3)
    found = draft(LITERAL, 1, sampling, coupled=True, shape="2")
    race = torch.tensor(ROWS[(0,)]).double().log() + Noise(3).race(0, 1, 1, 3)[0]
    assert found.tokens.tolist() == race.topk(2).indices.tolist()
    assert found.probs is None


TREES = [{"shape": "3-2-1"}, {"shape": "1-1-1"}, {"nodes": 8, "width": 3}, {"nodes": 30, "width": 5}, {"nodes": 1, "width": 1}]


@pytest.mark.parametrize("options", TREES)
def test_greedy_text_is_that_of_plain_decoding(options: dict[str, object]) -> None:
    context = pair()
    for rule in (Speculative(), Coupled()):
        drafter = DraftTree(context.draft, 8, **options)  # type: ignore[arg-type]
        written = Engine(context.target, chunk=3).generate([PROMPT, [5, 5]], Sampling(max_tokens=40), Method(Fixed(4), rule, drafter))
        assert written == [run(context, "plain", prompt, max_tokens=40) for prompt in (PROMPT, [5, 5])]


@pytest.mark.parametrize("options", TREES[::2])
def test_coupled_tokens_are_those_of_plain_decoding(options: dict[str, object]) -> None:
    context = pair()
    sampling = {"temperature": 0.9, "seed": 7, "max_tokens": 40}
    drafter = DraftTree(context.draft, 8, **options)  # type: ignore[arg-type]
    engine = Engine(context.target)
    sequence = engine.add(PROMPT, Sampling(**sampling), Method(Fixed(4), Coupled(), drafter))  # type: ignore[arg-type]
    list(engine.stream())
    assert sequence.tokens[len(PROMPT) :] == run(context, "plain", **sampling)
    assert sum(r.accepted for r in sequence.rounds) > 10


@pytest.mark.parametrize(
    ("drafter", "options"),
    [("draft-tree:nodes=6,width=2", {}), ("draft-tree:shape=3-2", {}), ("draft-tree:nodes=7,width=3", {"top_p": 0.9, "temperature": 1.3})],
)
def test_the_engine_writes_the_targets_law(drafter: str, options: dict[str, float]) -> None:
    """Chi-square; one false alarm in a million for fresh seeds."""
    torch.set_num_threads(1)
    context = pair(vocab=4, twist=0.8, order=1, sharpness=1.0)
    value, limit = chi(context, catalog.method("fixed:n=3", context, drafter=drafter), options, 2000)
    assert value < limit


class CutBack(DraftTree):
    """What must not be done: of the drawn tree, the tokens without children that the draft finds unlikely are left out."""

    def _draft(self, g: object) -> Draft:
        found = super()._draft(g)  # type: ignore[arg-type]
        kept = [i for i, step in enumerate(found.steps) if step.prob >= 0.25 or i in found.parents]  # type: ignore[operator]
        new = {old: i for i, old in enumerate(kept)} | {-1: -1}
        self._drafted.clear()
        laws = found.probs[kept] if isinstance(found.probs, torch.Tensor) else None
        return Draft(found.tokens[kept], laws, None, torch.tensor([new[int(found.parents[i])] for i in kept], dtype=torch.int64), (), "cut")  # type: ignore[index]

    def observe(self, text: Text, draft: Draft, outcome: object) -> None:
        self.backend.keep(text.slot, 0)


def test_leaving_out_drawn_tokens_is_seen_to_change_the_law() -> None:
    torch.set_num_threads(1)
    context = pair(vocab=4, twist=0.8, order=1, sharpness=1.0)
    value, limit = chi(context, Method(Fixed(2), Speculative(), CutBack(context.draft, 4, "2-2")), {}, 3000)
    assert value > 2 * limit


def near(name: str) -> tuple[object, object]:
    """A tiny model and a draft that is nearly it."""
    own, other = tiny.model(name), tiny.model(name)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.03 * torch.randn_like(weight)
    return own, other


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen2-window", "gemma2", "gemma3", "mistral", "phi3", "gpt-oss"])
def test_greedy_text_of_transformers_models(name: str) -> None:
    """Target and draft read trees; sliding windows are shorter than the texts."""
    torch.set_num_threads(1)
    own, other = near(name)
    prompts = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [7, 7], [2] * 6]
    sampling = Sampling(max_tokens=40)
    context = Context(HF(own), HF(other), tiny.VOCAB)
    plain = Engine(context.target).generate(prompts, sampling, catalog.method("plain", context))
    for options in ({"shape": "3-2-1-1"}, {"nodes": 12, "width": 4}):
        engine = Engine(context.target, chunk=4)
        method = Method(Fixed(5), Speculative(), DraftTree(context.draft, tiny.VOCAB, **options))  # type: ignore[arg-type]
        sequences = [engine.add(prompt, sampling, method) for prompt in prompts]
        list(engine.stream())
        assert [s.tokens[s.prompt :] for s in sequences] == plain
        assert sum(r.accepted for s in sequences for r in s.rounds) > 20


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_coupled_tokens_of_transformers_models(name: str) -> None:
    own, other = near(name)
    sampling = Sampling(temperature=1.0, max_tokens=30, seed=11)
    context = Context(HF(own), HF(other), tiny.VOCAB)
    prompts = [[3, 1, 4, 1, 5, 9, 2, 6], [7, 7]]
    plain = Engine(context.target).generate(prompts, sampling, catalog.method("plain", context))
    method = Method(Fixed(4), Coupled(), DraftTree(context.draft, tiny.VOCAB, nodes=10, width=3))
    assert Engine(context.target).generate(prompts, sampling, method) == plain


def test_the_draft_keeps_what_was_accepted_of_what_it_read() -> None:
    """It lacks the token that the target wrote, and the one before it where that was a leaf it did not read."""
    own, _ = near("llama")
    backend = HF(tiny.model("llama"))
    drafter = DraftTree(backend, tiny.VOCAB, nodes=12, width=3)
    engine = Engine(HF(own))
    sequence = engine.add([1, 2, 3, 4], Sampling(max_tokens=50), Method(Fixed(4), Speculative(), drafter))
    lags = []
    for _ in range(10):
        engine.step()
        lags.append(drafter.lag(sequence.text))
    assert set(lags) == {1, 2}
    assert sum(r.accepted for r in sequence.rounds) > 15
    assert drafter.lag(sequence.text) == len(sequence.tokens) - backend.length(sequence.text.slot)


def test_near_the_end_of_the_context() -> None:
    context = Context(Table(8, max_length=20), Table(8, max_length=16), 8)
    drafter = DraftTree(context.draft, 8, shape="3-3-2")
    (written,) = Engine(context.target).generate([PROMPT], Sampling(max_tokens=100), Method(Fixed(6), Speculative(), drafter))
    assert written == run(context, "plain", max_tokens=100)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="needs a draft"):
        catalog.create("drafter", "draft-tree", Context(Table(8), None, 8))
    for shape in ("4-0", "a", "4--2"):
        with pytest.raises(ValueError, match="children per level, such as 4-2-1"):
            DraftTree(Table(8), 8, shape)
    with pytest.raises(ValueError, match="nodes and width must be at least 1, got 0 and 4"):
        DraftTree(Table(8), 8, nodes=0)
    with pytest.raises(ValueError, match="reads chains only"):
        DraftTree(HFReplay(tiny.model("llama")), 8)
    engine = Engine(HFReplay(tiny.model("llama")))
    with pytest.raises(ValueError, match="DraftTree proposes trees, and this target"):
        engine.add([1], Sampling(), Method(Fixed(3), Speculative(), DraftTree(Table(tiny.VOCAB), tiny.VOCAB)))
    assert catalog.create("drafter", "draft-tree:shape=3", pair()).shape == (3,)
