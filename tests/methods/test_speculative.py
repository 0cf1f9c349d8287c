"""The rejection test on literal rows."""

import pytest
import torch
from torch import Tensor

from draftwise.methods.speculative import Speculative
from draftwise.types import Draft, Sparse, Target, Uniforms, Verdict


def judge(p: list[list[float]], tokens: list[int], q: Tensor | Sparse | None, accept: list[float]) -> Verdict:
    rows, ids = torch.tensor(p), torch.tensor(tokens, dtype=torch.int64)
    target = Target(rows, rows.log(), torch.ones(len(ids), dtype=torch.bool))
    u = Uniforms(torch.tensor(accept, dtype=torch.float64), torch.zeros(len(p), dtype=torch.float64))
    return Speculative().judge(target, Draft(ids, q), u, 0)[0]


P = [[0.5, 0.25, 0.25], [0.25, 0.75, 0.0], [0.0, 0.5, 0.5]]
Q = torch.tensor([[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]])


def test_all_accepted_leaves_the_row_after_the_draft() -> None:
    verdict = judge(P, [1, 1], Q, [0.49, 0.99])
    assert (verdict.path, verdict.weights.tolist(), verdict.relaxed) == ([0, 1], P[2], ())


def test_a_refused_token_leaves_the_residual_of_its_row() -> None:
    assert judge(P, [1, 1], Q, [0.5, 0.0]).weights.tolist() == [0.25, 0.0, 0.0]  # u q = p: refused, the test is strict
    verdict = judge(P, [0, 0], Q, [0.9, 0.51])
    assert (verdict.path, verdict.weights.tolist()) == ([0], [0.0, 0.5, 0.0])


def test_a_token_without_mass_is_never_taken() -> None:
    verdict = judge(P, [0, 2], Q, [0.0, 0.0])
    assert verdict.path == [0]
    assert verdict.weights[2] == 0


def test_a_draft_without_a_law() -> None:
    """The notes' example: p = (.45, .05, .3, .2), candidate 0 is taken with .45, and p without it follows."""
    row = [0.45, 0.05, 0.3, 0.2]
    assert judge([row, row], [0], None, [0.4499]).path == [0]
    verdict = judge([row, row], [0], None, [0.4501])
    assert verdict.path == []
    assert (verdict.weights / verdict.weights.sum()).tolist() == pytest.approx([0, 0.090909, 0.545455, 0.363636], abs=1e-6)


def test_temperature_0_is_exact_match() -> None:
    one_hot = [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    assert judge(one_hot, [1, 0], None, [0.999999, 0.999999]).path == [0, 1]
    verdict = judge(one_hot, [1, 2], None, [0.999999, 0.0])
    assert (verdict.path, verdict.weights.tolist()) == ([0], one_hot[1])


def test_equal_laws_accept_everything() -> None:
    assert judge([*Q.tolist(), P[2]], [0, 2], Q, [0.999999999, 0.999999999]).path == [0, 1]


def test_a_sparse_law_judges_as_its_dense_form_does() -> None:
    sparse = Sparse(torch.tensor([[1, 0], [2, 1]]), torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
    dense = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.5, 0.5]])
    for accept in ([0.2, 0.4], [0.2, 0.99], [0.5, 0.5]):
        one, other = judge(P, [1, 1], sparse, accept), judge(P, [1, 1], dense, accept)
        assert one.path == other.path
        assert torch.equal(one.weights, other.weights)
