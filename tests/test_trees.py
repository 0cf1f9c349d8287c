"""Trees on literal examples.

      0        3
     / \\       |
    1   2      4
        |
        5
"""

from __future__ import annotations

import pytest
import torch

from draftwise.trees import ancestors, attach, depths, is_chain, path_to

FOREST = torch.tensor([-1, 0, 0, -1, 3, 2])


def test_depths():
    assert depths(FOREST).tolist() == [0, 1, 1, 0, 1, 2]
    assert depths(FOREST).dtype == torch.int64
    assert depths(torch.tensor([], dtype=torch.int64)).tolist() == []


def test_ancestors():
    assert ancestors(FOREST).int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [1, 0, 1, 0, 0, 1],
    ]
    assert ancestors(FOREST).dtype == torch.bool


def test_paths():
    assert [path_to(FOREST, i) for i in range(6)] == [[0], [0, 1], [0, 2], [3], [3, 4], [0, 2, 5]]
    for i in range(6):
        assert ancestors(FOREST)[i].nonzero()[:, 0].tolist() == path_to(FOREST, i)


def test_attach_hangs_the_roots_on_the_last_pending_token():
    assert attach(2, FOREST, 6).tolist() == [-1, 0, 1, 2, 2, 1, 5, 4]
    assert attach(0, FOREST, 6).tolist() == FOREST.tolist()


def test_a_chain_is_none():
    assert attach(3, None, 4) is None
    assert attach(3, torch.tensor([-1, 0, 1])) is None
    assert is_chain(None)
    assert is_chain(torch.tensor([-1, 0, 1]))
    assert is_chain(torch.tensor([], dtype=torch.int64))
    assert not is_chain(torch.tensor([-1, -1]))


@pytest.mark.parametrize("parents", [[0], [-1, 1], [-1, 2, 0], [-2]])
@pytest.mark.parametrize("function", [depths, ancestors, lambda p: path_to(p, 0)])
def test_parents_come_first(function, parents):
    with pytest.raises(ValueError, match="parent"):
        function(torch.tensor(parents))


def test_bad_arguments():
    with pytest.raises(ValueError, match="6 tokens"):
        path_to(FOREST, 6)
    with pytest.raises(ValueError, match="6 parents"):
        attach(1, FOREST, 5)
