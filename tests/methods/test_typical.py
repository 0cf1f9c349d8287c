"""Typical acceptance at the reference thresholds."""

import pytest
import torch
from torch import Tensor

from draftwise.methods.typical import Typical
from draftwise.types import Draft, Target, Uniforms, Verdict


def judge(rule: Typical, p: Tensor, tokens: list[int], accept: float = 0.999, raw: Tensor | None = None, **options: object) -> Verdict:
    """`p` [N+1, V]; the draft has no law; `raw`: probabilities behind a one-hot p."""
    n = len(tokens)
    allowed = options.pop("allowed", torch.ones(n, dtype=torch.bool))
    u = Uniforms(torch.full((n,), accept, dtype=torch.float64), torch.zeros(n + 1, dtype=torch.float64))
    target = Target(p, (p if raw is None else raw).log(), allowed)
    return rule.judge(target, Draft(torch.tensor(tokens, dtype=torch.int64)), u, 0, **options)[0]


@pytest.mark.parametrize(
    ("row", "threshold", "passing"),
    [((0.5, 0.3, 0.2), 0.032143, [0, 1, 2]), ((0.9, 0.06, 0.04), 0.060792, [0]), ((0.25, 0.25, 0.25, 0.25), 0.022501, [0, 1, 2, 3])],
)
def test_the_reference_thresholds(row: tuple[float, ...], threshold: float, passing: list[int]) -> None:
    p = torch.tensor([row, row])
    entropy = float(torch.special.entr(p[0]).sum())
    assert Typical().least(entropy) == pytest.approx(threshold, abs=2e-6)  # the constants were computed with 1e-5 in the log
    assert [x for x in range(len(row)) if judge(Typical(), p, [x]).path] == passing


def test_the_first_refused_token_is_drawn_from_p_again() -> None:
    p = torch.tensor([[0.9, 0.06, 0.04], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    verdict = judge(Typical(), p, [1, 0])
    assert (verdict.path, verdict.weights.tolist()) == ([], p[0].tolist())
    verdict = judge(Typical(), p, [0, 1])
    assert (verdict.path, verdict.weights.tolist()) == ([0, 1], p[2].tolist())


def test_relaxed_are_those_that_the_rejection_test_refuses() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2]] * 3)
    assert judge(Typical(), p, [0, 1], accept=0.4).relaxed == (1,)  # one-point law: u = .4 lets .5 pass and not .3
    assert judge(Typical(), p, [0, 1], accept=0.6).relaxed == (0, 1)
    asked: list[int] = []
    verdict = judge(Typical(), p, [0, 1], accept=0.4, relax=lambda i: bool(asked.append(i)))
    assert (verdict.path, asked) == ([0], [1])


def test_greedy_rows_are_tested_on_the_raw_law() -> None:
    raw = torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.06, 0.04], [0.2, 0.2, 0.6]])
    p = torch.nn.functional.one_hot(raw.argmax(-1), 3).float()
    verdict = judge(Typical(), p, [1, 0], raw=raw)
    assert (verdict.path, verdict.relaxed, verdict.weights.tolist()) == ([0, 1], (0,), p[2].tolist())
    assert judge(Typical(), p, [0, 1], raw=raw).path == [0]
    assert judge(Typical(), p, [1, 0], raw=raw, allowed=torch.tensor([False, True])).path == []


def test_the_choice_of_the_target_passes_though_its_raw_law_does_not_like_it() -> None:
    """A processor may force a token that the model finds unlikely."""
    raw, forced = torch.tensor([[0.9, 0.06, 0.04]] * 2), torch.tensor([[0.0, 0.0, 1.0]] * 2)
    verdict = judge(Typical(), forced, [2], raw=raw)
    assert (verdict.path, verdict.relaxed) == ([0], ())


def test_rows_of_both_kinds_in_one_draft() -> None:
    raw = torch.tensor([[0.9, 0.06, 0.04], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    p = raw.clone()
    p[0] = torch.tensor([1.0, 0.0, 0.0])  # a truncation left one token
    assert judge(Typical(), p, [0, 2], raw=raw).path == [0, 1]
    assert judge(Typical(), p, [1, 2], raw=raw, allowed=torch.tensor([False, True])).path == []


def test_with_the_bounds_at_0_every_possible_token_passes() -> None:
    p = torch.tensor([[0.5, 0.499, 0.001, 0.0]] * 2)
    assert [x for x in range(4) if judge(Typical(eps=0.0, delta=0.0), p, [x]).path] == [0, 1, 2]


@pytest.mark.parametrize("options", [{"eps": -0.1}, {"delta": 1.0}, {"eps": float("nan")}])
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        Typical(**options)
