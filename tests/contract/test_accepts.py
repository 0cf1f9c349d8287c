"""Every acceptance rule of the catalog through one battery."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import pickle
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from draftwise import catalog, probs
from draftwise.noise import Noise
from draftwise.protocols import Accept
from draftwise.types import Draft, DraftStep, Sampling, Sparse, Target, Uniforms

NAMES = catalog.names("accept")
SPECS = [*NAMES, "adasd:base=ratio", "adasd:version=2", "adasd:base=ratio,version=2", "adasd:tv=false,persist=true", "typical:eps=0.05"]
SPECS += ["ears:beta=1.0", "fly:window=1", "fly:window=2,gate=normalized", "consultant:reset=true", "consultant:beta=0.0,eps=1.0"]
SPECS += ["budget:tv=1.0,over=[ears]", "budget:tv=0.5,kl=1.0,over=[typical]"]
DEEPEST = 4  # tokens of the longest draft here
SAMPLINGS = {"greedy": Sampling(), "T0.8": Sampling(temperature=0.8), "top-p": Sampling(temperature=1.2, top_p=0.7)}


class Case(NamedTuple):
    target: Target
    draft: Draft
    u: Uniforms


def case(n: int, vocab: int, sampling: Sampling, seed: int, law: str = "dense", coupled: bool = False) -> Case:
    """One judgement over related random rows. `law`: of the draft, dense, sparse or none."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n + 1, vocab, generator=generator)
    raw = logits[:n] + 0.5 * torch.randn(n, vocab, generator=generator)
    q = probs.warp(raw, sampling, lambda _: []) if n else torch.zeros(0, vocab)
    tokens = probs.sample(q, torch.rand(n, generator=generator, dtype=torch.float64))
    steps = tuple(DraftStep(i, int(t), *row) for i, (t, row) in enumerate(zip(tokens, probs.confidence(raw, tokens).tolist(), strict=True)))
    given: Tensor | Sparse | None = None if sampling.temperature == 0 or law == "none" else q
    if law == "sparse" and given is not None:
        kept = q.topk(vocab, -1)
        given = Sparse(kept.indices, kept.values)
    race = Noise(seed).race(0, seed, n + 1, vocab) if coupled else None
    u = Uniforms(*(torch.rand(k, generator=generator, dtype=torch.float64) for k in (n, n + 1)), race)
    return Case(probs.judged(logits, sampling, lambda _: [], tokens), Draft(tokens, given, raw, None, steps, "test"), u)


@functools.cache
def all_cases(vocab: int, coupled: bool) -> list[Case]:
    grid = itertools.product(SAMPLINGS.values(), range(DEEPEST + 1), range(4), ("dense", "sparse", "none"))
    return [case(n, vocab, sampling, seed, law, coupled) for sampling, n, seed, law in grid if sampling.temperature or law == "none"]


def cases(rule: Accept, vocab: int = 5) -> list[Case]:
    return all_cases(vocab, rule.coupled)


def play(rule: Accept, vocab: int = 5, **options: Any) -> Iterator[tuple[Case, Any, Any, Any]]:
    """Verdicts along many rounds of one request: case, state before, verdict, state after."""
    state = rule.init(None)
    for one in cases(rule, vocab):
        before = state
        verdict, state = rule.judge(*one, before, **options)
        yield one, before, verdict, state


def bush(rule: Accept, sampling: Sampling, seed: int, vocab: int = 5) -> Case:
    """One judgement of a random tree whose siblings differ; they have no law."""
    generator = torch.Generator().manual_seed(seed)
    parents, tokens = [-1], [int(torch.randint(vocab, (1,), generator=generator))]
    for i in range(1, 9):
        parent = int(torch.randint(-1, i, (1,), generator=generator))
        free = [t for t in range(vocab) if (parent, t) not in zip(parents, tokens, strict=True)]
        if free:
            parents, tokens = [*parents, parent], [*tokens, free[int(torch.randint(len(free), (1,), generator=generator))]]
    n = len(tokens)
    u = [torch.rand(k, generator=generator, dtype=torch.float64) for k in (n, n + 1)]
    race = Noise(seed).race(0, seed, n + 1, vocab) if rule.coupled else None
    target = probs.judged(2 * torch.randn(n + 1, vocab, generator=generator), sampling, lambda _: [], torch.tensor(tokens), torch.tensor(parents))
    return Case(target, Draft(torch.tensor(tokens), None, None, torch.tensor(parents), (), "test"), Uniforms(u[0], u[1], race))


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for part in value for t in tensors(part)] if isinstance(value, (tuple, list)) else []


def leaves(value: Any) -> int:
    return sum(map(leaves, value)) if isinstance(value, tuple) else 1


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=SPECS)
def rule(request: pytest.FixtureRequest) -> Accept:
    made: Accept = catalog.create("accept", request.param)
    return made


def test_it_is_an_acceptance_rule(rule: Accept) -> None:
    assert isinstance(rule, Accept)
    assert all(isinstance(flag, bool) for flag in (rule.lossless, rule.trees, rule.wants_logits, rule.coupled))


def test_it_is_frozen(rule: Accept) -> None:
    for field in fields(rule):  # type: ignore[arg-type]
        with pytest.raises(FrozenInstanceError):
            setattr(rule, field.name, 1)


def test_verdicts_are_well_formed(rule: Accept) -> None:
    for one, _, verdict, _ in play(rule):
        n = len(one.draft.tokens)
        assert verdict.path == list(range(len(verdict.path)))  # a chain: connected, root first
        assert len(verdict.path) <= n
        assert verdict.weights.shape == one.target.p.shape[1:]
        assert verdict.weights.dtype == torch.float32
        assert bool(torch.isfinite(verdict.weights).all())
        assert bool((verdict.weights >= 0).all())
        assert bool((verdict.weights > 0).any())
        assert set(verdict.relaxed) <= set(range(len(verdict.path)))
        assert list(verdict.relaxed) == sorted(set(verdict.relaxed))


def test_no_emitted_token_is_one_the_request_forbids(rule: Accept) -> None:
    for one, _, verdict, _ in play(rule):
        p, n = one.target.p, len(verdict.path)
        assert all(bool(one.target.allowed[i]) for i in verdict.path)
        assert bool((verdict.weights[p[n] == 0] == 0).all())
        if rule.lossless:
            assert verdict.relaxed == ()
            assert all(p[i, one.draft.tokens[i]] > 0 for i in verdict.path)


def test_an_empty_draft_is_a_plain_step(rule: Accept) -> None:
    for sampling in SAMPLINGS.values():
        one = case(0, 5, sampling, 1, coupled=rule.coupled)
        state = rule.init(None)
        verdict, after = rule.judge(*one, state)
        assert (verdict.path, verdict.relaxed) == ([], ())
        assert after == state or hasattr(rule, "report")  # an account counts the token that is written all the same
        if rule.coupled:
            assert int(verdict.weights.argmax()) == int((one.target.p[0].log() + one.u.race[0]).argmax())  # type: ignore[index]
        else:
            assert torch.equal(verdict.weights, one.target.p[0])


def test_greedy_keeps_to_the_argmax_but_for_what_is_relaxed(rule: Accept) -> None:
    state = rule.init(None)
    for n in range(5):
        for seed in range(20):
            one = case(n, 5, SAMPLINGS["greedy"], seed)  # no race at temperature 0
            verdict, state = rule.judge(*one, state)
            best = one.target.p.argmax(-1)
            assert int(verdict.weights.argmax()) == int(best[len(verdict.path)])
            assert [i for i in verdict.path if one.draft.tokens[i] != best[i]] == list(verdict.relaxed)


def test_nothing_is_relaxed_where_relaxing_is_forbidden(rule: Accept) -> None:
    asked: list[int] = []
    for _, _, verdict, _ in play(rule, relax=lambda i: bool(asked.append(i))):
        assert verdict.relaxed == ()
    assert not (rule.lossless and asked)


def test_relaxing_is_asked_for_exactly_what_is_relaxed(rule: Accept) -> None:
    asked: list[int] = []
    for _, _, verdict, _ in play(rule, relax=lambda i: not asked.append(i)):  # type: ignore[func-returns-value]
        assert tuple(asked) == verdict.relaxed
        asked.clear()


def test_a_lossy_rule_does_relax(rule: Accept) -> None:
    relaxed = sum(len(verdict.relaxed) for _, _, verdict, _ in play(rule))
    switched_off = not getattr(rule, "tv", True) or getattr(rule, "window", 0) >= DEEPEST  # FLy relaxes nothing in drafts as short as its window
    assert (relaxed > 0) is (not rule.lossless and not switched_off)


def test_trees_are_judged_along_a_path(rule: Accept) -> None:
    state, asked = rule.init(None), []
    for sampling, seed in itertools.product(SAMPLINGS.values(), range(30)) if rule.trees else ():
        one = bush(rule, sampling, seed)
        copies = [t.clone() for t in tensors(one)]
        verdict, state = rule.judge(*one, state, relax=lambda i: not asked.append(i))  # type: ignore[func-returns-value]
        parents = one.draft.parents
        assert parents is not None
        assert [int(parents[i]) for i in verdict.path] == [-1, *verdict.path][: len(verdict.path)]
        assert bool(torch.isfinite(verdict.weights).all() and (verdict.weights >= 0).all() and (verdict.weights > 0).any())
        here = verdict.path[-1] + 1 if verdict.path else 0
        assert bool((verdict.weights[one.target.p[here] == 0] == 0).all())
        assert all(bool(one.target.allowed[i]) for i in verdict.path)
        assert [verdict.path[at] for at in verdict.relaxed] == [i for i in asked if i in verdict.path]
        assert not (rule.lossless and asked)
        if sampling.temperature == 0:
            best = one.target.p.argmax(-1)
            assert [at for at, i in enumerate(verdict.path) if one.draft.tokens[i] != best[int(parents[i]) + 1]] == list(verdict.relaxed)
            missed = [i for i in range(len(parents)) if int(parents[i]) == here - 1 and one.draft.tokens[i] == best[here]]
            assert not (rule.lossless and missed)
        assert all(torch.equal(t, c) for t, c in zip(tensors(one), copies, strict=True))
        asked.clear()


def test_same_input_same_output(rule: Accept) -> None:
    for (_, _, one, state), (_, _, other, again) in zip(play(rule), play(rule), strict=True):
        assert (one.path, one.relaxed, state) == (other.path, other.relaxed, again)
        assert torch.equal(one.weights, other.weights)


def test_arguments_and_states_are_not_written(rule: Accept) -> None:
    state = rule.init(None)
    for one in cases(rule):
        copies, before = [t.clone() for t in tensors(one)], copy.deepcopy(state)
        _, after = rule.judge(*one, state)
        assert state == before
        assert all(torch.equal(t, c) for t, c in zip(tensors(one), copies, strict=True))
        state = after


def rebuilt(like: Any, data: Any) -> Any:
    """`data` as it came from JSON, in the types of `like`."""
    if isinstance(like, tuple):
        parts = [rebuilt(a, b) for a, b in zip(like, data, strict=True)]
        return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)
    return data


def test_states_survive_json_and_pickle_and_stay_small(rule: Accept) -> None:
    sizes = []
    for _, _, _, state in play(rule):
        assert rebuilt(state, json.loads(json.dumps(state, allow_nan=False))) == state
        assert pickle.loads(pickle.dumps(state)) == state
        sizes.append(leaves(state))
    assert len(set(sizes)) == 1
    assert sizes[0] < 1000


def test_a_new_request_takes_the_last_state(rule: Accept) -> None:
    *_, (_, _, _, last) = play(rule)
    state = rule.init(last)
    assert state in (last, rule.init(None))
    assert rule.judge(*case(3, 5, SAMPLINGS["T0.8"], 1, coupled=rule.coupled), state)


def test_a_vocabulary_of_one_token(rule: Accept) -> None:
    for one, _, verdict, _ in play(rule, vocab=1):
        assert verdict.path == list(range(len(one.draft.tokens)))
        assert verdict.weights[0] > 0


def test_rows_in_half_precision_and_with_forbidden_tokens(rule: Accept) -> None:
    one = case(3, 6, SAMPLINGS["T0.8"], 4, coupled=rule.coupled)
    logits = one.target.logits.clone()
    logits[:, 5] = -torch.inf
    raw = one.draft.logits.clone()  # type: ignore[union-attr]
    raw[:, 4] = -torch.inf
    tokens = torch.tensor([4, 5, 0])
    target = probs.judged(logits.bfloat16(), SAMPLINGS["T0.8"], lambda _: [], tokens)
    verdict, state = rule.judge(target, one.draft._replace(tokens=tokens, logits=raw.bfloat16()), one.u, rule.init(None))
    assert len(verdict.path) <= 1  # token 5 has no mass
    assert bool(torch.isfinite(verdict.weights).all())
    json.dumps(state, allow_nan=False)


def test_it_pickles(rule: Accept) -> None:
    assert pickle.loads(pickle.dumps(rule)) == rule


@pytest.mark.parametrize("name", NAMES)
def test_every_option_parses_from_the_command_line(name: str) -> None:
    rule = catalog.create("accept", name)
    for field in fields(rule):
        value = getattr(rule, field.name)
        if isinstance(value, Accept):  # a rule inside a rule: a spec in brackets
            assert catalog.create("accept", f"{name}:{field.name}=[adasd]") == rule
            continue
        assert catalog.create("accept", f"{name}:{field.name}={str(value).lower()}") == rule
        assert type(value) in (int, float, bool, str)
    with pytest.raises(ValueError, match="has no option 'colour'"):
        catalog.create("accept", f"{name}:colour=1")


@pytest.mark.parametrize("name", NAMES)
def test_the_catalog_tells_the_flag(name: str) -> None:
    assert catalog.entry("accept", name).lossless is catalog.create("accept", name).lossless
