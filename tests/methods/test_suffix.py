"""Suffix decoding: the reference values, the hash chains against brute force, and what is remembered of finished answers."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from draftwise.methods.history import NONE, History
from draftwise.methods.suffix import Suffix, likeliest
from draftwise.noise import Noise
from draftwise.protocols import Ask
from draftwise.types import Draft, Outcome, Rows, Sampling, Text


def text(tokens: list[int], id: int = 0, **sampling: object) -> Text:
    return Text(id, id, tokens, Sampling(**sampling), Noise(0))


def draft(tokens: list[int], n: int, drafter: Suffix | None = None, id: int = 0, **sampling: object) -> list[int]:
    found: list[int] = (drafter or Suffix(memory=64)).propose([Ask(text(tokens, id, **sampling), n)])[0].tokens.tolist()
    return found


def finish(drafter: Suffix, prompt: list[int], answer: list[int], id: int = 9) -> None:
    tokens = list(prompt)
    drafter.propose([Ask(text(tokens, id), 4)])
    tokens += answer
    drafter.free(text(tokens, id))


def brute(texts: list[list[int]], tail: list[int], n: int, depth: int = 64, min_prob: float = 0.1) -> tuple[list[int], float]:
    """The rule over all occurrences in `texts`, with alpha 1 and offset 0; latest occurrence first where two are as frequent."""
    whole = [token for one in texts for token in (*one, NONE)]
    best: tuple[list[int], float] = ([], 0.0)
    for m in range(1, min(depth, len(tail)) + 1):
        places = [i for i in range(len(whole) - 1, m - 1, -1) if whole[i - m : i] == tail[-m:]]
        tokens: list[int] = []
        prob, score = 1.0, 0.0
        while len(tokens) < min(m, n):
            nexts = [whole[i + len(tokens)] for i in places if NONE not in whole[i : i + len(tokens) + 1] and whole[i : i + len(tokens)] == tokens]
            if not nexts:
                break
            token, count = Counter(nexts).most_common(1)[0]
            prob *= count / len(nexts)
            if prob < min_prob:
                break
            tokens.append(token)
            score += prob
        if places and score >= best[1]:
            best = tokens, score
    return best


def test_a_match_of_m_tokens_drafts_at_most_m() -> None:
    assert draft([7, 8, 1, 2, 3, 4, 5, 7, 8], 10) == [1, 2]
    assert draft([8, 1, 2, 3, 7, 8], 10) == [1]
    assert draft([7, 8, 1, 2, 3, 4, 5, 7, 8], 10, Suffix(memory=0, alpha=2.0)) == [1, 2, 3, 4]
    assert draft([7, 8, 1, 2, 3, 4, 5, 7, 8], 10, Suffix(memory=0, offset=1.0)) == [1, 2, 3]
    assert draft([7, 8, 1, 2, 3, 4, 5, 7, 8], 1) == [1]


def test_the_likeliest_path_and_its_score() -> None:
    after = [[1, 2, 3], [1, 2, 4], [1, 5, 6], [9, 9, 9]]
    assert likeliest(after, 3, 0.1) == ([1, 2, 3], 0.75 + 0.5 + 0.25, [3 / 4, 2 / 3, 1 / 2], 0)
    assert likeliest(after, 3, 0.3) == ([1, 2], 0.75 + 0.5, [3 / 4, 2 / 3], 0)
    assert likeliest(after, 1, 0.1) == ([1], 0.75, [3 / 4], 0)
    assert likeliest([[4, 5, NONE]], 3, 0.1) == ([4, 5], 2.0, [1.0, 1.0], 0)
    assert likeliest([[NONE], [3]], 1, 0.6) == ([3], 1.0, [1.0], 0)
    assert likeliest([], 3, 0.1) == ([], 0.0, [], 0)


def test_a_copy_says_how_sure_it_is_and_stops_where_it_is_told() -> None:
    """After 7, 8 came 1, 2 twice and 1, 3 once; the match is two tokens long, and three where the first token stays."""
    tokens = [7, 8, 1, 2, 4, 7, 8, 1, 3, 5, 7, 8, 1, 2, 6, 7, 8]
    asked: list[int] = []
    ask = Ask(text(tokens), 9, lambda steps: asked.append(len(steps)) is None and len(steps) < 2)
    found = Suffix(memory=64, alpha=2.0).propose([ask])[0]
    assert found.tokens.tolist() == [1, 2] and asked == [1, 2]
    assert [(step.token, step.prob) for step in found.steps] == [(1, pytest.approx(3 / 4)), (2, pytest.approx(2 / 3 * 4 / 5))]
    assert [step.top1 + step.top2 for step in found.steps] == [pytest.approx(1)] * 2
    first = found.steps[0]
    assert first.entropy == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert Suffix(memory=64, alpha=2.0).propose([Ask(text(tokens), 9)])[0].steps == ()  # nobody asks


def test_nothing_matches() -> None:
    assert draft([1, 2, 3], 4) == []
    assert draft([1], 4) == []
    assert draft([1, 1], 0) == []


@pytest.mark.parametrize("seed", range(6))
def test_it_drafts_what_the_rule_over_all_occurrences_drafts(seed: int) -> None:
    """Scores are compared, and tokens where no other path scores the same: with fewer occurrences than it looks at, the rule is kept exactly."""
    draw = random.Random(seed)
    drafter = Suffix(memory=4096, recent=4096)
    past: list[list[int]] = []
    for id in range(4):
        tokens = [draw.randrange(3) for _ in range(draw.randint(1, 6))]
        begin = len(tokens)
        for _ in range(30):
            found = draft(tokens, 6, drafter, id)
            own, others = brute([tokens], tokens, 6), brute(past, tokens, 6)
            wanted = others if others[1] > own[1] + 1e-9 else own
            assert len(found) == len(wanted[0])
            assert found == wanted[0]
            tokens += found[: draw.randint(0, len(found))] + [draw.randrange(3)]
        drafter.free(text(tokens, id))
        past.append(tokens[begin:])


def test_a_past_answer_is_drafted_again_and_its_prompt_is_not() -> None:
    drafter = Suffix(memory=64)
    finish(drafter, [10, 11, 12, 13], [20, 21, 22, 23])
    assert draft([1, 2, 20, 21], 5, drafter) == [22, 23]
    assert draft([1, 2, 11, 12], 5, drafter, id=1) == []
    assert draft([20, 9, 20], 5, drafter, id=2) == [9], "this text before the others"


def test_what_a_cancelled_request_wrote_counts_once() -> None:
    drafter, tokens = Suffix(memory=64), [1, 2, 3]
    drafter.propose([Ask(text(tokens), 2)])
    tokens += [4, 5]
    drafter.free(text(tokens))  # a failed step empties everything; the request goes on afterwards
    drafter.propose([Ask(text(tokens), 2)])
    tokens += [6]
    drafter.free(text(tokens))
    assert drafter.past
    assert drafter.past.tokens[: drafter.past.total].tolist() == [4, 5, NONE, 6, NONE]


def test_where_an_answer_begins_is_known_without_a_proposal() -> None:
    drafter = Suffix(memory=64)
    rows = Rows(None, {})  # type: ignore[arg-type]
    drafter.observe(text([1, 2, 3]), Draft(None), Outcome([], None, (), 0, rows))  # type: ignore[arg-type]
    drafter.free(text([1, 2, 3, 4]))
    drafter.observe(text([1, 2, 3, 5]), Draft(None), Outcome([], 5, (), 0, rows))  # type: ignore[arg-type]
    drafter.free(text([1, 2, 3, 5, 6]))
    assert drafter.past
    assert drafter.past.tokens[: drafter.past.total].tolist() == [4, NONE, 5, 6, NONE]


def test_a_ring_forgets_the_oldest_and_holds_the_rest() -> None:
    draw, history = random.Random(1), History(64)
    whole: list[int] = []
    for _ in range(40):
        one = [draw.randrange(3) for _ in range(draw.randint(1, 20))]
        history.extend(one)
        history.end()
        whole += [*one, NONE]
        tail = [draw.randrange(3) for _ in range(4)]
        for level, size in enumerate((1, 2, 4)):
            found = history.find(tail, level, 100, 4, 2)
            held = range(len(whole) - 1, max(0, len(whole) - 64) + size - 1, -1)
            places = [i for i in held if whole[i - size : i] == tail[-size:] and whole[i] != NONE]
            assert [row[0] for row in found.after] == [whole[i] for i in places]
    assert history.nbytes == 64 * 48


def test_cutting_undoes_reading() -> None:
    draw = random.Random(2)
    tokens = [draw.randrange(3) for _ in range(200)]
    whole, short = History(64, grows=True), History(64, grows=True)
    whole.extend(tokens)
    whole.cut(120)
    short.extend(tokens[:120])
    for level in range(4):
        assert whole.find(tokens[80:100], level, 50, 20, 5) == short.find(tokens[80:100], level, 50, 20, 5)
    assert whole.total == 120


def test_the_copy_ends_with_the_end_of_text() -> None:
    assert draft([1, 2, 3, 9, 4, 1, 2, 3], 5, stop_ids=(9,)) == [9]


def test_lag_and_free() -> None:
    drafter, tokens = Suffix(memory=64), [1, 2, 1]
    assert drafter.lag(text(tokens)) == 3
    draft(tokens, 2, drafter)
    tokens += [5, 6]
    assert drafter.lag(text(tokens)) == 2
    drafter.free(text(tokens))
    drafter.free(text(tokens))
    assert drafter.lag(text(tokens)) == 5


@pytest.mark.parametrize("options", [{"memory": -1}, {"depth": 0}, {"recent": 0}, {"alpha": -1.0}, {"offset": float("nan")}, {"min_prob": 2.0}])
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got"):
        Suffix(**options)  # type: ignore[arg-type]
