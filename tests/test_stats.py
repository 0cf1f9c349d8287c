"""Figures from literal rounds."""

from __future__ import annotations

import json
import math

import pytest

from draftwise.stats import Costs, by_position, summarize
from draftwise.types import Round


def round_(drafted: int, accepted: int, relaxed: int = 0, emitted: int | None = None) -> Round:
    return Round(drafted, drafted, accepted, relaxed, accepted + 1 if emitted is None else emitted, 1, drafted + 1, 0.1, 0.2)


def test_a_summary_of_three_rounds_and_a_prefill_chunk() -> None:
    summary = summarize([round_(0, 0, emitted=0), round_(3, 3), round_(3, 1, relaxed=1), round_(0, 0)], 2.0)
    assert summary.tokens == 4 + 2 + 1
    assert summary.rounds == 3
    assert summary.tau == pytest.approx(7 / 3)
    assert summary.acceptance_rate == pytest.approx(4 / 6)
    assert summary.by_position == (1.0, 0.5, 0.5)
    assert summary.drafted_per_round == 2
    assert summary.relaxed_share == pytest.approx(1 / 7)
    assert summary.tokens_per_second == 3.5
    assert (summary.draft_share, summary.verify_share, summary.other_share) == pytest.approx((0.2, 0.4, 0.4))
    assert json.loads(json.dumps(summary._asdict()))["tokens"] == 7


def test_nothing_gives_zeros() -> None:
    summary = summarize([], 0.0)
    assert summary.tokens == summary.tau == summary.tokens_per_second == summary.other_share == 0
    assert summary.by_position == ()


def test_positions_count_only_rounds_that_drafted_so_deep() -> None:
    assert by_position([round_(1, 1), round_(2, 0), round_(2, 2)]) == (2 / 3, 0.5)


def test_costs_follow_what_is_measured() -> None:
    costs = Costs()
    assert math.isnan(costs.draft_s)
    costs.drafted(0, 5.0)
    assert math.isnan(costs.draft_s)
    costs.drafted(4, 2.0)
    assert costs.draft_s == 0.5
    for seconds in (1.0, 1.0, 9.0):
        costs.drafted(1, seconds)
    assert costs.draft_s == 1.0
    costs.verified(5, 1.0)
    costs.verified(5, 2.0)
    assert costs.verify_s == ((5, 1.0),)
    assert (costs.drafting(3), costs.drafting(0), costs.verifying(5)) == (3.0, 0.0, 1.0)
    assert math.isnan(Costs().drafting(1)) and math.isnan(costs.verifying(6))
