"""Prompt lookup: the reference value, and an index that never rescans against a rescan."""

import random

import pytest

from draftwise.methods.prompt_lookup import PromptLookup
from draftwise.noise import Noise
from draftwise.protocols import Ask
from draftwise.types import Sampling, Text


def text(tokens: list[int], **sampling: object) -> Text:
    return Text(0, 0, tokens, Sampling(**sampling), Noise(0))


def draft(tokens: list[int], n: int, drafter: PromptLookup | None = None, **sampling: object) -> list[int]:
    found: list[int] = (drafter or PromptLookup()).propose([Ask(text(tokens, **sampling), n)])[0].tokens.tolist()
    return found


def rescan(tokens: list[int], n: int, longest: int, latest: bool) -> list[int]:
    """The rule by brute force."""
    for size in range(min(longest, len(tokens) - 1), 0, -1):
        starts = [i for i in range(len(tokens) - size) if tokens[i : i + size] == tokens[-size:]]
        if starts:
            start = starts[-1 if latest else 0] + size
            return tokens[start : start + n]
    return []


def test_the_reference_value() -> None:
    assert draft([1, 2, 3, 1, 2, 4, 1, 2], 3) == [3, 1, 2]
    assert draft([1, 2, 3, 1, 2, 4, 1, 2], 3, PromptLookup(match="latest")) == [4, 1, 2]


def test_the_longest_match_first_then_shorter_ones() -> None:
    assert draft([7, 5, 1, 9, 2, 5, 1], 2) == [9, 2]
    assert draft([5, 8, 9, 2, 5], 2) == [8, 9]
    assert draft([1, 2, 3], 4) == []
    assert draft([1], 4) == []


@pytest.mark.parametrize("match", ["leftmost", "latest"])
@pytest.mark.parametrize("seed", range(5))
def test_the_index_finds_what_a_rescan_finds(match: str, seed: int) -> None:
    draw = random.Random(seed)
    drafter = PromptLookup(max_ngram=3, match=match)
    tokens = [draw.randrange(4) for _ in range(5)]
    for _ in range(100):
        assert draft(tokens, 6, drafter) == rescan(tokens, 6, 3, match == "latest")
        tokens += [draw.randrange(4) for _ in range(draw.randint(1, 4))]


def test_each_token_is_read_once() -> None:
    class Counting(list):  # type: ignore[type-arg]
        read = 0

        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            Counting.read += len(range(*index.indices(len(self)))) if isinstance(index, slice) else 1
            return super().__getitem__(index)

    drafter, tokens = PromptLookup(), Counting(range(1000))
    draft(tokens, 5, drafter)
    Counting.read = 0
    tokens.append(1)
    draft(tokens, 5, drafter)
    assert 0 < Counting.read < 20


def test_the_copy_ends_with_the_end_of_text() -> None:
    assert draft([1, 2, 3, 9, 4, 1, 2], 5, stop_ids=(9,)) == [3, 9]


def test_bounds() -> None:
    tokens = [1, 2, 3, 4, 5, 6, 1, 2]
    assert draft(tokens, 2) == [3, 4]
    assert draft(tokens, 9, PromptLookup(max_tokens=3)) == [3, 4, 5]
    assert draft(tokens, 0) == []


def test_lag_and_free() -> None:
    drafter, tokens = PromptLookup(), [1, 2, 1]
    assert drafter.lag(text(tokens)) == 3
    draft(tokens, 2, drafter)
    tokens += [5, 6]
    assert drafter.lag(text(tokens)) == 2
    drafter.free(text(tokens))
    drafter.free(text(tokens))
    assert drafter.lag(text(tokens)) == 5


def test_no_law_no_steps() -> None:
    found = PromptLookup().propose([Ask(text([1, 2, 1]), 2)])[0]
    assert (found.probs, found.logits, found.steps, found.origin) == (None, None, (), "prompt-lookup")


@pytest.mark.parametrize("options", [{"max_ngram": 0}, {"max_tokens": 0}, {"match": "first"}])
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be .* got"):
        PromptLookup(**options)
