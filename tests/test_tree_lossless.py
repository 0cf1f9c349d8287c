"""Trees keep the target's law: one round by enumeration in rational numbers, and the whole engine by chi-square.

The enumeration runs over all draws of a small tree. Along each, an exact reference says with which chance a sibling is accepted, and `judge` must
accept just below that number and refuse just above it, and leave the reference's law. So the law of the round is that of the reference, summed in
rational numbers and compared with plain decoding without a tolerance. Chi-square: fixed seeds, one false alarm in a million for fresh ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import pytest
import torch

from draftwise.backends.table import Table
from draftwise.context import Context
from draftwise.engine import Engine
from draftwise.methods.budget import Budget
from draftwise.methods.coupled import Coupled
from draftwise.methods.fixed import Fixed
from draftwise.methods.speculative import Speculative
from draftwise.methods.typical import Typical
from draftwise.noise import Noise
from draftwise.sequence import Method
from draftwise.trees import levels
from draftwise.types import Draft, Sampling, Sparse, Target, Uniforms
from forest import Forest
from tables import PROMPT, pair, run
from test_engine_lossless import chi
from test_lossless import Law, Row, World, merge, plain, settled, world

EDGE = 1e-5  # how near to its exact bound a uniform is put: the rows are float32
FORK, BUSH, RAGGED, DEEP = (-1, -1), (-1, -1, 0, 0, 1), (-1, 0, -1, 2, 2), (-1, -1, 0, 1, 2, 3)


class Drawn(NamedTuple):
    """One draw of a tree and its chance. `laws`: what each token was drawn from, as it is handed up."""

    tokens: tuple[int, ...]
    laws: tuple[Row, ...]
    chance: Fraction


def prefix(parents: tuple[int, ...], tokens: tuple[int, ...], i: int) -> tuple[int, ...]:
    return () if i < 0 else (*prefix(parents, tokens, parents[i]), tokens[i])


def without(law: Row, token: int) -> Row:
    rest = 1 - law[token]
    return tuple(Fraction(0) if x == token or not rest else q / rest for x, q in enumerate(law))


def draws(w: World, parents: tuple[int, ...], mode: str) -> Iterator[Drawn]:
    """All draws. `mode` 'wrong': without replacement, and handed up as if with it."""

    def grow(tokens: tuple[int, ...], laws: tuple[Row, ...], chance: Fraction) -> Iterator[Drawn]:
        i = len(tokens)
        if i == len(parents):
            yield Drawn(tokens, laws, chance)
            return
        law = own = w.q(prefix(parents, tokens, parents[i]))
        for j in range(i) if mode != "with" else ():
            own = without(own, tokens[j]) if parents[j] == parents[i] else own
        for token, q in enumerate(own):
            if q:
                yield from grow((*tokens, token), (*laws, law if mode == "wrong" else own), chance * q)

    yield from grow((), (), Fraction(1))


def points(w: World, parents: tuple[int, ...]) -> Iterator[Drawn]:
    """All trees of distinct siblings; each must keep the law alone."""
    for tokens in itertools.product(range(w.vocab), repeat=len(parents)):
        if len(set(zip(parents, tokens, strict=True))) == len(parents):
            yield Drawn(tokens, tuple(tuple(Fraction(x == token) for x in range(w.vocab)) for token in tokens), Fraction(1))


def numbers(row: Row) -> list[float]:
    return [float(x) for x in row]


def judged(w: World, parents: tuple[int, ...], drawn: Drawn, form: str, u: dict[int, float]) -> tuple[tuple[int, ...], list[float]]:
    """What `judge` makes of a draw: the path and the normalised law after it. `form` of the draft's laws."""
    n = len(parents)
    rows = [w.p(prefix(parents, drawn.tokens, i)) for i in range(-1, n)]
    p = torch.tensor([numbers(row) for row in rows])
    q: torch.Tensor | Sparse | None = torch.tensor([numbers(law) for law in drawn.laws])
    if form == "sparse":
        order = q.argsort(-1, descending=True)  # type: ignore[union-attr]
        q = Sparse(order, q.gather(-1, order))  # type: ignore[union-attr]
    tokens = torch.tensor(drawn.tokens)
    draft = Draft(tokens, None if form == "point" else q, None, torch.tensor(parents))
    accept = torch.tensor([u.get(i, 0.5) for i in range(n)], dtype=torch.float64)
    given = Uniforms(accept, torch.full((n + 1,), 0.5, dtype=torch.float64))
    verdict, _ = Speculative().judge(Target(p, p.log(), torch.ones(n, dtype=torch.bool)), draft, given, 0)
    return tuple(verdict.path), (verdict.weights / verdict.weights.sum()).tolist()


def round_law(w: World, parents: tuple[int, ...], drawn: Drawn, form: str, depth: int) -> Law:
    """The law of `depth` tokens given one draw, with `judge` held to it at every turn."""
    found: Law = {}

    def down(path: tuple[int, ...], refused: tuple[int, ...], left: Row, u: dict[int, float], chance: Fraction) -> None:
        here = path[-1] if path else -1
        child = next((i for i, parent in enumerate(parents) if parent == here and i not in refused), None)
        if child is None:
            assert judged(w, parents, drawn, form, u) == (path, pytest.approx(numbers(left), abs=1e-5))
            merge(found, settled(w, prefix(parents, drawn.tokens, here), left, depth), chance)
            return
        token, law = drawn.tokens[child], drawn.laws[child]
        bound = min(Fraction(1), left[token] / law[token])
        if bound:
            below = u | {child: float(bound) - EDGE}
            assert judged(w, parents, drawn, form, below)[0][: len(path) + 1] == (*path, child)
            down((*path, child), (), w.p(prefix(parents, drawn.tokens, child)), below, chance * bound)
        if bound < 1:
            above = u | {child: float(bound) + EDGE}
            assert judged(w, parents, drawn, form, above)[0][: len(path) + 1] != (*path, child)
            rest = [max(a - b, Fraction(0)) for a, b in zip(left, law, strict=True)]
            down(path, (*refused, child), tuple(x / sum(rest) for x in rest), above, chance * (1 - bound))

    down((), (), w.p(()), {}, Fraction(1))
    return found


def whole(w: World, parents: tuple[int, ...], mode: str, form: str = "dense", depth: int = 3) -> Law:
    found: Law = {}
    for drawn in draws(w, parents, mode):
        merge(found, round_law(w, parents, drawn, form, depth), drawn.chance)
    return found


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def full(vocab: int, seed: int) -> World:
    """A world whose q gives every token mass, so that two siblings can always be drawn."""
    w = world(vocab, seed)
    parts = {2: (2, 6), 3: (4, 1, 3), 4: (1, 2, 4, 1)}[vocab]
    return w._replace(q=lambda prefix: tuple(Fraction(parts[(i + sum(prefix) + seed) % vocab], 8) for i in range(vocab)))


@pytest.mark.parametrize("form", ["dense", "sparse"])
@pytest.mark.parametrize("mode", ["without", "with"])
@pytest.mark.parametrize(("vocab", "parents"), [(2, BUSH), (3, FORK), (4, FORK), (3, RAGGED), (2, DEEP)])
def test_siblings_that_were_drawn_keep_the_law(vocab: int, parents: tuple[int, ...], mode: str, form: str) -> None:
    w = full(vocab, vocab)
    depth = levels(torch.tensor(parents), len(parents)) + 1
    assert whole(w, parents, mode, form, depth) == plain(w, depth)


def test_three_siblings_of_four_tokens() -> None:
    w = full(4, 1)
    for mode in ("without", "with"):
        assert whole(w, (-1, -1, -1), mode, "dense", 2) == plain(w, 2)


@pytest.mark.parametrize(("vocab", "parents"), [(2, BUSH), (3, BUSH), (4, (-1, -1, -1)), (3, RAGGED), (2, DEEP)])
def test_siblings_chosen_without_chance_keep_the_law_whatever_they_are(vocab: int, parents: tuple[int, ...]) -> None:
    w = full(vocab, 9)
    depth = levels(torch.tensor(parents), len(parents)) + 1
    for drawn in points(w, parents):
        assert round_law(w, parents, drawn, "point", depth) == plain(w, depth)


def test_a_wrong_law_of_siblings_is_found_out() -> None:
    """Drawn without replacement, handed up as if with it."""
    assert any(whole(full(3, seed), FORK, "wrong", "dense", 2) != plain(full(3, seed), 2) for seed in range(3))


P, Q = (Fraction(45, 100), Fraction(5, 100), Fraction(3, 10), Fraction(2, 10)), (Fraction(1, 10), Fraction(4, 10), Fraction(2, 10), Fraction(3, 10))
NOTES = World(lambda _: P, lambda _: Q, 4)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_reference_example(k: int) -> None:
    """p = (.45, .05, .3, .2), q = (.1, .4, .2, .3): children without replacement, and the share accepted at each rank."""
    parents = (-1,) * k
    assert whole(NOTES, parents, "without", "dense", 2) == plain(NOTES, 2)
    shares = [Fraction(0)] * k
    for drawn in draws(NOTES, parents, "without"):
        left, chance = P, drawn.chance
        for rank, (token, law) in enumerate(zip(drawn.tokens, drawn.laws, strict=True)):
            bound = min(Fraction(1), left[token] / law[token])
            shares[rank] += chance * bound
            chance *= 1 - bound
            rest = [max(a - b, Fraction(0)) for a, b in zip(left, law, strict=True)]
            left = tuple(x / (sum(rest) or 1) for x in rest)  # type: ignore[assignment]
    assert [float(share) for share in shares] == pytest.approx([0.55, 0.172619, 0.088373][:k], abs=1e-6)


def test_the_reference_path() -> None:
    """Children 1, 3, 2: bounds .125 and 0, then 0 is all that is left."""
    laws = [Q, without(Q, 1), without(without(Q, 1), 3)]
    drawn = Drawn((1, 3, 2), tuple(laws), Fraction(1))
    parents = (-1, -1, -1)
    assert judged(NOTES, parents, drawn, "dense", {0: 0.1249})[0] == (0,)
    path, law = judged(NOTES, parents, drawn, "dense", {0: 0.1251, 1: 0.0, 2: 0.0})
    assert (path, law) == ((), pytest.approx([1, 0, 0, 0], abs=1e-6))
    assert judged(NOTES, (-1,), Drawn((1,), (Q,), Fraction(1)), "dense", {0: 0.1251})[1] == pytest.approx([0.777778, 0, 0.222222, 0], abs=1e-6)


def test_the_reference_example_without_chance() -> None:
    """Candidates 0 then 2: .45, then .545455 of what is left, then (0, .2, 0, .8)."""
    drawn = next(d for d in points(NOTES, FORK) if d.tokens == (0, 2))
    assert judged(NOTES, FORK, drawn, "point", {0: 0.449})[0] == (0,)
    assert judged(NOTES, FORK, drawn, "point", {0: 0.451, 1: 0.5454})[0] == (1,)
    assert judged(NOTES, FORK, drawn, "point", {0: 0.451, 1: 0.5455}) == ((), pytest.approx([0, 0.2, 0, 0.8], abs=1e-6))


def test_a_chain_written_as_a_tree_is_judged_as_the_chain() -> None:
    generator = torch.Generator().manual_seed(3)
    for n in range(1, 5):
        p, q = (torch.randn(k, 5, generator=generator).softmax(-1) for k in (n + 1, n))
        tokens = torch.randint(5, (n,), generator=generator)
        target = Target(p, p.log(), torch.ones(n, dtype=torch.bool))
        u = Uniforms(*(torch.rand(k, generator=generator, dtype=torch.float64) for k in (n, n + 1)), Noise(n).race(0, 0, n + 1, 5))
        chain = Draft(tokens, q)
        tree = chain._replace(parents=torch.arange(-1, n - 1))
        for rule in (Speculative(), Typical(), Coupled()):
            given = u if rule.coupled else u._replace(race=None)
            (one, _), (other, _) = rule.judge(target, chain, given, 0), rule.judge(target, tree, given, 0)
            assert (one.path, one.relaxed) == (other.path, other.relaxed)
            assert torch.allclose(one.weights, other.weights, atol=1e-7)


def engines(mode: str, shape: tuple[int, ...], wrong: bool = False) -> tuple[Context, Method]:
    context = pair(vocab=4, twist=0.8, order=1, sharpness=1.0)
    return context, Method(Fixed(5), Speculative(), Forest(context.draft, shape, mode, wrong))


CASES = [
    ("without", (2, 2), {}),
    ("with", (3, 2), {}),
    ("likeliest", (2, 2, 1), {}),
    ("without", (2, 2), {"top_p": 0.9, "temperature": 1.3}),
    ("likeliest", (3, 1), {"repetition_penalty": 1.4}),
]


@pytest.mark.parametrize(("mode", "shape", "options"), CASES)
def test_the_engine_writes_the_targets_law(mode: str, shape: tuple[int, ...], options: dict[str, float]) -> None:
    context, method = engines(mode, shape)
    value, limit = chi(context, method, options)
    assert value < limit


def test_the_engine_with_a_wrong_law_does_not() -> None:
    context, method = engines("without", (3, 2), wrong=True)
    value, limit = chi(context, method, {})
    assert value > 2 * limit


@pytest.mark.parametrize("shape", [(3, 2, 1), (1, 4), (2, 2, 2, 2)])
def test_greedy_trees_write_the_text_of_plain_decoding(shape: tuple[int, ...]) -> None:
    context = pair()
    for rule in (Speculative(), Coupled()):
        method = Method(Fixed(5), rule, Forest(context.draft, shape, "likeliest"))
        written = Engine(context.target, chunk=3).generate([PROMPT, [5, 5]], Sampling(max_tokens=40), method)
        assert written == [run(context, "plain", prompt, max_tokens=40) for prompt in (PROMPT, [5, 5])]


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_coupled_trees_write_the_tokens_of_plain_decoding_for_the_same_seed(seed: int) -> None:
    context = pair()
    method = Method(Fixed(5), Coupled(), Forest(context.draft, (3, 2, 2)))
    engine = Engine(context.target)
    sampling = Sampling(temperature=0.9, seed=seed, max_tokens=40, top_k=5)
    sequence = engine.add(PROMPT, sampling, method)
    list(engine.stream())
    options = {"temperature": 0.9, "seed": seed, "max_tokens": 40, "top_k": 5}
    assert sequence.tokens[len(PROMPT) :] == run(context, "plain", **options)
    assert sum(r.accepted for r in sequence.rounds) > 10


def test_a_tree_accepts_more_than_its_first_branch() -> None:
    context = pair()
    taus = []
    for shape in ((1, 1, 1), (3, 2, 2)):
        engine = Engine(context.target)
        sampling = Sampling(temperature=1.0, max_tokens=300, seed=5)
        sequence = engine.add(PROMPT, sampling, Method(Fixed(3), Speculative(), Forest(context.draft, shape)))
        list(engine.stream())
        taus.append(300 / sum(r.emitted > 0 for r in sequence.rounds))
    assert taus[1] > taus[0] + 0.3


def test_near_the_end_of_the_context_a_tree_counts_by_its_levels() -> None:
    context = Context(Table(8, max_length=20), Table(8), 8)
    method = Method(Fixed(6), Speculative(), Forest(context.draft, (3, 3, 2)))
    (written,) = Engine(context.target).generate([PROMPT], Sampling(max_tokens=100), method)
    assert len(written) == 20 - len(PROMPT)


def typical_case() -> tuple[Target, Draft]:
    """Roots 0 and 1; under root 1 a child. Tokens 0 | 1 | 2."""
    p = torch.tensor([[0.5, 0.4, 0.1], [0.9, 0.05, 0.05], [0.2, 0.2, 0.6], [0.3, 0.3, 0.4]])
    return Target(p, p.log(), torch.ones(3, dtype=torch.bool)), Draft(torch.tensor([0, 1, 2]), None, None, torch.tensor([-1, -1, 1]))


def u_of(*accept: float) -> Uniforms:
    return Uniforms(torch.tensor(accept, dtype=torch.float64), torch.full((4,), 0.5, dtype=torch.float64))


def test_typical_takes_the_longest_path_and_says_what_it_relaxed() -> None:
    target, draft = typical_case()
    verdict, _ = Typical().judge(target, draft, u_of(0.4, 0.5, 0.5), 0)  # the rejection test would have taken token 0
    assert (verdict.path, verdict.relaxed, verdict.weights.tolist()) == ([1, 2], (0,), target.p[3].tolist())
    verdict, _ = Typical().judge(target, draft, u_of(0.6, 0.5, 0.5), 0)  # token 0 refused; .5 * (1 - .5) < .4 passes
    assert (verdict.path, verdict.relaxed) == ([1, 2], ())
    asked: list[int] = []
    verdict, _ = Typical().judge(target, draft, u_of(0.4, 0.5, 0.7), 0, relax=lambda i: bool(asked.append(i)))
    assert (verdict.path, verdict.relaxed, asked) == ([], (), [1])


def test_a_budget_books_the_levels_of_a_tree() -> None:
    target, draft = typical_case()
    rule = Budget(tv=0.5, over=Typical())
    verdict, account = rule.judge(target, draft, u_of(0.4, 0.5, 0.7), rule.init(None))
    assert (verdict.path, account.tv, account.tokens) == ([], 0, 1)  # one relaxed of one token is more than half
    verdict, account = rule.judge(target, draft, u_of(0.4, 0.5, 0.7), account)
    assert (verdict.path, verdict.relaxed, account.tv, account.tokens) == ([1], (0,), 1, 3)  # the second would be the 2nd of 3
