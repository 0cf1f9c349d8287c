"""Token recycling: the matrix is replaced by the latest rows, refused tokens included, and the tree is filled level by level."""

from __future__ import annotations

import pytest
import torch

from draftwise.methods import shapes
from draftwise.methods.recycling import Recycling
from draftwise.noise import Noise
from draftwise.protocols import Ask
from draftwise.types import Draft, Outcome, Rows, Sampling, Text

NOTHING = Draft(torch.zeros(0, dtype=torch.long))


def text(tokens: list[int], id: int = 0, **sampling: object) -> Text:
    return Text(id, id, tokens, Sampling(**sampling), Noise(0))  # type: ignore[arg-type]


def row(*best: int) -> torch.Tensor:
    """Logits of 6 tokens that rank `best` first."""
    found = -torch.arange(6.0) - 10
    for rank, token in enumerate(best):
        found[token] = -float(rank)
    return found


def taught(drafter: Recycling, **after: tuple[int, ...]) -> Recycling:
    """A drafter that has seen one row after each of some tokens: t3=(1, 2) after token 3."""
    for name, best in after.items():
        token = int(name[1:])
        drafter.observe(text([token, 0]), NOTHING, Outcome([], 0, (), 0, Rows(row(*best)[None], {})))
    return drafter


def drafted(drafter: Recycling, tokens: list[int], n: int = 9, **sampling: object) -> tuple[list[int], list[int] | None]:
    (draft,) = drafter.propose([Ask(text(tokens, **sampling), n)])
    assert draft.probs is None
    return draft.tokens.tolist(), None if draft.parents is None else draft.parents.tolist()


TREE = shapes.shape([(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)])


def test_the_tree_is_filled_level_by_level() -> None:
    drafter = taught(Recycling(top=2, tree=TREE), t3=(1, 2), t1=(4, 5), t2=(0, 1), t4=(3, 0))
    assert drafted(drafter, [3]) == ([1, 2, 4, 5, 0, 3], [-1, -1, 0, 0, 1, 2])
    assert drafted(drafter, [3], 2) == ([1, 2, 4, 5, 0], [-1, -1, 0, 0, 1])
    assert drafted(drafter, [3], 0) == ([], None)


def test_what_was_never_seen_has_no_children() -> None:
    drafter = taught(Recycling(top=2, tree=TREE), t3=(1, 2))
    assert drafted(drafter, [3]) == ([1, 2], [-1, -1])
    assert drafted(drafter, [5]) == ([], None)
    assert drafted(Recycling(), [5]) == ([], None)


def test_the_latest_row_replaces_the_earlier() -> None:
    drafter = taught(taught(Recycling(top=2, tree="chain"), t3=(1, 2)), t3=(4, 0))
    assert drafted(drafter, [3], 1) == ([4], None)


def test_rows_after_refused_tokens_are_learned_and_of_two_the_later() -> None:
    drafter = Recycling(top=1, tree="chain")
    draft = Draft(torch.tensor([1, 2, 1]), parents=torch.tensor([-1, -1, 1]))
    rows = torch.stack([row(2), row(3), row(4), row(5)])
    drafter.observe(text([7 % 6, 3, 2, 0]), draft, Outcome([1], 0, (), 0, Rows(rows, {})))
    assert [drafted(drafter, [token], 1)[0] for token in (3, 1, 2, 0)] == [[2], [5], [4], []]


def test_nothing_is_drafted_after_the_end_of_a_text() -> None:
    drafter = taught(Recycling(top=2, tree=TREE), t3=(1, 2), t1=(4, 5), t2=(0, 1))
    assert drafted(drafter, [3], stop_ids=(1,)) == ([1, 2, 0], [-1, -1, 1])


def test_a_chunk_of_a_prompt_teaches_nothing() -> None:
    drafter = Recycling()
    drafter.observe(text([1, 2]), NOTHING, Outcome([], None, (), 0, Rows(torch.zeros(0, 6), {})))
    assert drafter.nbytes == 0


def test_shared_or_each_alone() -> None:
    for share, known in (("all", [1]), ("request", [])):
        drafter = taught(Recycling(top=1, tree="chain", share=share), t3=(1,))
        assert drafted(drafter, [3], 1)[0] == [1], "text 0"
        assert drafter.propose([Ask(text([3], id=5), 1)])[0].tokens.tolist() == known


def test_memory_is_the_matrix() -> None:
    assert taught(Recycling(top=8), t3=(1,)).nbytes == 6 * 8 * 4


@pytest.mark.parametrize("options", [{"top": 0}, {"nodes": -1}, {"share": "some"}, {"tree": "missing.json"}])
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be|no tree file"):
        Recycling(**options)  # type: ignore[arg-type]
