"""Exact laws of one round by enumeration in rational numbers: no tolerance, no chance.

A world gives laws p and q after every prefix, in eighths, with every positive q a power of two. Then every bound of the rejection test,
p / q, is a multiple of 1/8, and the eight midpoints of [0, 1) stand for all uniforms: each verdict of `judge` weighs exactly 1/8. A round
is enumerated over all drafts and all uniforms, completed with p to a fixed number of tokens, and compared with plain decoding.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from draftwise import catalog, probs
from draftwise.methods.adasd import AdaSDAccept, Judged
from draftwise.methods.adasd_kde import Distances, seen
from draftwise.methods.speculative import Speculative
from draftwise.protocols import Accept, Length
from draftwise.types import Draft, DraftStep, Now, Target, Uniforms

Row = tuple[Fraction, ...]
Law = dict[tuple[int, ...], Fraction]
PARTS = {2: [(4, 4), (8, 0)], 3: [(4, 2, 2), (4, 4, 0)], 4: [(2, 2, 2, 2), (4, 2, 1, 1)]}
NOW = Now(batch=1, context=1, room=100, lag=0)


class World(NamedTuple):
    """Laws after a prefix, and how many midpoints stand for a uniform."""

    p: Callable[[tuple[int, ...]], Row]
    q: Callable[[tuple[int, ...]], Row]
    vocab: int
    grid: int = 8


def world(vocab: int, seed: int) -> World:
    @functools.cache
    def p(prefix: tuple[int, ...]) -> Row:
        draw = random.Random(f"p{seed}{prefix}")
        cuts = sorted(draw.randint(0, 8) for _ in range(vocab - 1))
        return tuple(Fraction(b - a, 8) for a, b in itertools.pairwise([0, *cuts, 8]))

    @functools.cache
    def q(prefix: tuple[int, ...]) -> Row:
        draw = random.Random(f"q{seed}{prefix}")
        eighths = list(draw.choice(PARTS[vocab]))
        draw.shuffle(eighths)
        return tuple(Fraction(e, 8) for e in eighths)

    return World(p, q, vocab)


def plain(w: World, depth: int, prefix: tuple[int, ...] = ()) -> Law:
    """The law of the next `depth` tokens when the target writes alone."""
    if not depth:
        return {prefix: Fraction(1)}
    found: Law = {}
    for token, chance in enumerate(w.p(prefix)):
        if chance:
            merge(found, plain(w, depth - 1, (*prefix, token)), chance)
    return found


def merge(law: Law, more: Law, weight: Fraction) -> None:
    for tokens, chance in more.items():
        law[tokens] = law.get(tokens, Fraction(0)) + weight * chance


def chains(w: World, n: int, length: Length | None = None) -> Iterator[tuple[tuple[int, ...], Fraction]]:
    """All drafts of at most `n` tokens with their chance. A length policy is asked after each kept token."""

    def grow(tokens: tuple[int, ...], chance: Fraction) -> Iterator[tuple[tuple[int, ...], Fraction]]:
        stopped = length and tokens and length.per_token and not length.more(length.init(None), NOW, steps(w, tokens))
        if len(tokens) == n or stopped:
            yield tokens, chance
            return
        for token, q in enumerate(w.q(tokens)):
            if q:
                yield from grow((*tokens, token), chance * q)

    return grow((), Fraction(1))


def steps(w: World, tokens: tuple[int, ...]) -> tuple[DraftStep, ...]:
    found = []
    for i, token in enumerate(tokens):
        row = [float(q) for q in w.q(tokens[:i])]
        top = sorted(row)[::-1]
        found.append(DraftStep(i, token, row[token], top[0], top[1], -sum(x * math.log(x) for x in row if x)))
    return tuple(found)


def rows(law: Callable[[tuple[int, ...]], Row], tokens: tuple[int, ...], n: int) -> Tensor:
    return torch.tensor([[float(x) for x in law(tokens[:i])] for i in range(n)])


def case(w: World, tokens: tuple[int, ...], point: bool) -> tuple[Target, Draft]:
    n = len(tokens)
    p = rows(w.p, tokens, n + 1)
    q = rows(w.q, tokens, n) if n else torch.zeros(0, w.vocab)
    ids = torch.tensor(tokens, dtype=torch.int64)
    return Target(p, p.log(), p[torch.arange(n), ids] > 0), Draft(ids, None if point else q, q.log())


def exact(weights: Tensor) -> list[Fraction]:
    """Weights as a law. Dyadic float32 numbers are exact, and so is their sum."""
    found = [Fraction(x) for x in weights.tolist()]
    return [x / sum(found) for x in found]


def midpoints(w: World, n: int) -> Iterator[Tensor]:
    for point in itertools.product(range(w.grid), repeat=n):
        yield (torch.tensor(point, dtype=torch.float64) + 0.5) / w.grid


def settled(w: World, tokens: tuple[int, ...], weights: Sequence[Fraction], depth: int) -> Law:
    """The law of `depth` tokens once a round gave `tokens` and then a draw from `weights`."""
    found: Law = {}
    for token, chance in enumerate(weights):
        if chance:
            merge(found, plain(w, depth - len(tokens) - 1, (*tokens, token)), chance)
    return found


def by_accept(rule: Accept, state: Any, w: World, tokens: tuple[int, ...], depth: int, point: bool = False) -> Law:
    """The law given one draft, over all `u.accept`; the token after the path is drawn from `weights` with a uniform of its own."""
    target, draft = case(w, tokens, point)
    found: Law = {}
    for accept in midpoints(w, len(tokens)):
        verdict, _ = rule.judge(target, draft, Uniforms(accept, torch.full((len(tokens) + 1,), 0.5, dtype=torch.float64)), state)
        path = tuple(tokens[i] for i in verdict.path)
        merge(found, settled(w, path, exact(verdict.weights), depth), Fraction(1, w.grid ** len(tokens)))
    return found


def by_sample(rule: Accept, state: Any, w: World, tokens: tuple[int, ...], depth: int, point: bool = False) -> Law:
    """The law given one draft, over all `u.sample`: the rule compares with what the target draws, and the engine draws the token in place of
    a refused one with the same number. The number after the last draft token is no business of the rule: integrated, not enumerated."""
    target, draft = case(w, tokens, point)
    found: Law = {}
    for sample in midpoints(w, len(tokens)):
        u = Uniforms(torch.zeros(len(tokens), dtype=torch.float64), torch.cat([sample, torch.full((1,), 0.5, dtype=torch.float64)]))
        verdict, _ = rule.judge(target, draft, u, state)
        n = len(verdict.path)
        weights = exact(verdict.weights)
        if n < len(tokens):
            last = int(probs.sample(verdict.weights[None], sample[n : n + 1])[0])
            weights = [Fraction(token == last) for token in range(w.vocab)]
        merge(found, settled(w, tokens[:n], weights, depth), Fraction(1, w.grid ** len(tokens)))
    return found


def by_race(rule: Accept, state: Any, w: World, tokens: tuple[int, ...], depth: int, point: bool = False) -> Law:
    """The law given one draft, over the winners of the races: Gumbel-max makes token y win row d with probability p_d(y)."""
    target, draft = case(w, tokens, point)
    found: Law = {}
    for winners in itertools.product(range(w.vocab), repeat=len(tokens) + 1):
        chance = math.prod((w.p(tokens[:d])[y] for d, y in enumerate(winners)), start=Fraction(1))
        if chance:
            race = torch.nn.functional.one_hot(torch.tensor(winners), w.vocab) * 100.0
            u = Uniforms(torch.zeros(len(tokens), dtype=torch.float64), torch.zeros(len(tokens) + 1, dtype=torch.float64), race.double())
            verdict, _ = rule.judge(target, draft, u, state)
            path = tuple(tokens[i] for i in verdict.path)
            merge(found, settled(w, path, exact(verdict.weights), depth), chance)
    return found


def round_law(rule: Accept, w: World, n: int, state: Any = None, length: Length | None = None, depth: int | None = None) -> Law:
    """The law of `depth` tokens whose first come from one round of at most `n` drafted tokens."""
    given = by_race if rule.coupled else by_sample if isinstance(rule, AdaSDAccept) and rule.base == "match" else by_accept
    found: Law = {}
    for tokens, chance in chains(w, n, length):
        merge(found, given(rule, rule.init(None) if state is None else state, w, tokens, depth or n + 1), chance)
    return found


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SIZES = [(2, 3), (3, 2), (4, 2)]  # (V, N)
LOSSLESS = [name for name in catalog.names("accept") if catalog.entry("accept", name).lossless]
LOSSY = [name for name in catalog.names("accept") if not catalog.entry("accept", name).lossless]


@pytest.mark.parametrize(("vocab", "n"), SIZES)
@pytest.mark.parametrize("name", LOSSLESS)
def test_a_lossless_rule_keeps_the_law(name: str, vocab: int, n: int) -> None:
    for seed in range(3):
        w = world(vocab, seed)
        assert round_law(catalog.create("accept", name), w, n) == plain(w, n + 1)


def test_three_tokens_of_three() -> None:
    w = world(3, 11)
    assert round_law(Speculative(), w, 3) == plain(w, 4)


@pytest.mark.parametrize(("vocab", "n"), SIZES)
@pytest.mark.parametrize("name", LOSSLESS)
def test_a_draft_without_a_law_keeps_the_law_whatever_it_is(name: str, vocab: int, n: int) -> None:
    rule = catalog.create("accept", name)
    given = by_race if rule.coupled else by_accept
    w = world(vocab, 5)
    for tokens in itertools.product(range(vocab), repeat=n):
        assert given(rule, rule.init(None), w, tokens, n + 1, True) == plain(w, n + 1)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("base", ["match", "ratio"])
def test_adasd_without_its_threshold_keeps_the_law(base: str, version: int) -> None:
    rule = AdaSDAccept(base=base, version=version, tv=False)
    for vocab, n in ((2, 2), (3, 2)):
        w = world(vocab, 7)
        assert round_law(rule, w, n, lenient(rule)) == plain(w, n + 1)


def lenient(rule: AdaSDAccept) -> Judged:
    """A history by which AdaSD accepts nearly every row."""
    nothing = rule.init(None).accepted
    return Judged(seen(nothing, [0.5, 0.9]), seen(nothing, [0.95, 1.0]))


LENIENT: dict[str, Callable[[Any], Any]] = {"adasd": lenient}


@pytest.mark.parametrize("name", LOSSY)
def test_a_lossy_rule_changes_the_law(name: str) -> None:
    rule = catalog.create("accept", name)
    state = LENIENT[name](rule) if name in LENIENT else None
    assert any(round_law(rule, world(3, seed), 2, state) != plain(world(3, seed), 3) for seed in range(5))


def test_the_history_of_a_first_round_is_no_licence() -> None:
    rule = AdaSDAccept()
    w = world(3, 2)
    assert rule.init(None) == Judged(Distances(), Distances())
    assert round_law(rule, w, 2) == plain(w, 3)


@pytest.mark.parametrize("name", catalog.names("length"))
def test_every_stop_rule_keeps_the_law(name: str) -> None:
    length = catalog.create("length", name)
    for seed in range(3):
        w = world(3, seed)
        assert round_law(Speculative(), w, 2, length=length) == plain(w, 3)


def test_some_stop_rule_did_stop() -> None:
    w = world(3, 0)
    assert any(len(tokens) < 2 for name in catalog.names("length") for tokens, _ in chains(w, 2, catalog.create("length", name)))


# The example of the notes: p = (.5, .5), q = (.9, .1); the only bound inside [0, 1) is 5/9, so nine midpoints do.
HALF, SKEW = (Fraction(1, 2), Fraction(1, 2)), (Fraction(9, 10), Fraction(1, 10))
SKEWED = World(lambda _: HALF, lambda _: SKEW, 2, 9)


def test_keeping_the_unlikely_token_and_stopping_after_it_is_lossless() -> None:
    length = catalog.create("length", "confidence:threshold=0.2")
    assert {tokens for tokens, _ in chains(SKEWED, 2, length)} == {(1,), (0, 0), (0, 1)}
    assert round_law(Speculative(), SKEWED, 2, length=length, depth=2 + 1) == plain(SKEWED, 3)
    law = round_law(Speculative(), SKEWED, 2, length=length, depth=3)
    pairs: Law = {}
    for tokens, chance in law.items():
        merge(pairs, {tokens[:2]: Fraction(1)}, chance)
    assert pairs == {(a, b): Fraction(1, 4) for a in (0, 1) for b in (0, 1)}


def test_dropping_the_unlikely_token_is_not() -> None:
    found: Law = {}
    for token, q in enumerate(SKEW):
        kept = (token,) if q >= Fraction(1, 5) else ()
        merge(found, by_accept(Speculative(), 0, SKEWED, kept, 2), q)
    first = sum(chance for tokens, chance in found.items() if tokens[0] == 0)
    assert first == Fraction(55, 100)
