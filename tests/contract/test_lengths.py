"""Every length policy of the catalog through one battery."""

from __future__ import annotations

import copy
import json
import pickle
import random
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from draftwise import catalog
from draftwise.protocols import Length
from draftwise.types import DraftStep, Now, Round

NAMES = catalog.names("length")
SPECS = [*NAMES, "heuristic:persist=true", "confidence:persist=true", "adasd:persist=true", "gammatune:eta=0.5,delta=1"]
NOW = Now(batch=2, context=17, room=50, lag=3)


def a_step(draw: random.Random, i: int) -> DraftStep:
    top = draw.random()
    return DraftStep(i, draw.randrange(9), top * draw.random(), top, (1 - top) * draw.random(), 3 * draw.random())


def history(policy: Length, rounds: int, seed: int, rows: bool = True) -> list[Any]:
    """The states along made-up rounds that obey the policy's own budgets and stops. `rows`: the drafter gives steps."""
    draw, states = random.Random(seed), [policy.init(None)]
    for _ in range(rounds):
        budget = min(policy.budget(states[-1], NOW), NOW.room)
        steps: list[DraftStep] = []
        while len(steps) < budget and (not steps or not policy.per_token or policy.more(states[-1], NOW, steps)):
            steps.append(a_step(draw, len(steps)))
        if n := len(steps):
            accepted = min(draw.randrange(n + 1) + draw.randrange(3), n)
            record = Round(n, n, accepted, 0, accepted + 1, 2, n + 1, 0.01, 0.1, steps=tuple(steps) if rows else ())
            states.append(policy.update(states[-1], record))
    return states


def rebuilt(like: Any, data: Any) -> Any:
    """`data` as it came from JSON, in the types of `like`."""
    if isinstance(like, tuple):
        parts = [rebuilt(a, b) for a, b in zip(like, data, strict=True)]
        return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)
    return data


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def policy(spec: str) -> Length:
    made: Length = catalog.create("length", spec)
    return made


def test_it_is_a_length_policy(policy: Length) -> None:
    assert isinstance(policy, Length)
    assert isinstance(policy.per_token, bool)


def test_it_is_frozen(policy: Length) -> None:
    for field in fields(policy):  # type: ignore[arg-type]
        with pytest.raises(FrozenInstanceError):
            setattr(policy, field.name, 1)


def test_budgets_are_counts(policy: Length) -> None:
    for seed in range(5):
        for state in history(policy, 60, seed):
            budget = policy.budget(state, NOW)
            assert isinstance(budget, int)
            assert 0 <= budget <= 1000


def test_more_is_a_truth_value_and_true_where_it_is_never_asked(policy: Length) -> None:
    draw = random.Random(0)
    for state in history(policy, 20, 1):
        steps = [a_step(draw, i) for i in range(4)]
        assert isinstance(policy.more(state, NOW, steps), bool)
        assert policy.per_token or policy.more(state, NOW, steps)


def test_same_input_same_output(policy: Length) -> None:
    assert history(policy, 40, 7) == history(policy, 40, 7)


def test_states_and_arguments_are_not_written(policy: Length) -> None:
    states = history(policy, 20, 3)
    before = copy.deepcopy(states)
    steps = [a_step(random.Random(1), i) for i in range(3)]
    kept = list(steps)
    for state in states:
        policy.more(state, NOW, steps)
        policy.budget(state, NOW)
        policy.update(state, Round(3, 3, 1, 0, 2, 1, 4, 0.0, 0.0, steps=tuple(steps)))
        policy.init(state)
    assert states == before
    assert steps == kept


def test_states_survive_json_and_pickle(policy: Length) -> None:
    for state in history(policy, 30, 5):
        assert rebuilt(state, json.loads(json.dumps(state, allow_nan=False))) == state
        assert pickle.loads(pickle.dumps(state)) == state


def test_a_new_request_takes_the_last_state(policy: Length) -> None:
    last = history(policy, 30, 5)[-1]
    state = policy.init(last)
    assert policy.budget(state, NOW) >= 0
    if getattr(policy, "rests", False):
        return  # breakeven takes a part of what was learnt: tests/methods/test_breakeven.py
    assert state in (last, policy.init(None))
    assert (state == last) is (getattr(policy, "persist", False) or last == policy.init(None))


def test_it_lives_with_a_drafter_that_has_no_rows(policy: Length) -> None:
    for state in history(policy, 30, 2, rows=False):
        assert policy.budget(state, NOW) >= 0


def test_it_pickles(policy: Length) -> None:
    assert pickle.loads(pickle.dumps(policy)) == policy


@pytest.mark.parametrize("name", NAMES)
def test_every_option_parses_from_the_command_line(name: str) -> None:
    policy = catalog.create("length", name)
    for field in fields(policy):
        value = getattr(policy, field.name)
        assert catalog.create("length", f"{name}:{field.name}={str(value).lower()}") == policy
        assert type(value) in (int, float, bool, str)
        with pytest.raises(ValueError, match=field.name):
            catalog.create("length", f"{name}:{field.name}=many")


@pytest.mark.parametrize("name", NAMES)
def test_nonsense_is_refused_in_a_sentence(name: str) -> None:
    with pytest.raises(ValueError, match="has no option 'colour'"):
        catalog.create("length", f"{name}:colour=1")
    for field in fields(catalog.create("length", name)):
        if field.type in ("int", "float"):
            with pytest.raises(ValueError, match=r"must be .*-1000000(\.0)?\b"):
                catalog.create("length", f"{name}:{field.name}=-1000000")
