"""Fixed trees: their nodes, how they are found in accepted paths, and their file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from draftwise.methods import shapes


def test_levels_follow_one_another() -> None:
    found = shapes.shape([(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 1, 0)])
    assert found.children == ((1, 2), (3, 2), (5, 1), (6, 0), (6, 1), (7, 0), (7, 0))
    assert (found.nodes, found.is_chain) == (6, False)
    assert shapes.chain(3) == shapes.Shape(((1, 1), (2, 1), (3, 1), (4, 0)))
    assert shapes.chain(3).is_chain


@pytest.mark.parametrize("paths", [[(0, 0)], [(1,)], [(0,), (0, 1)], [()], [(-1,)]])
def test_a_node_without_its_parent_or_elders_is_no_tree(paths: list[tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="parent and its elder siblings"):
        shapes.shape(paths)


def test_a_tree_by_levels_has_those_levels_and_any_beginning_is_a_tree() -> None:
    paths = shapes.by_levels((8, 21, 25, 15, 8, 3), 8)
    assert [sum(len(path) == depth for path in paths) for depth in range(1, 7)] == [8, 21, 25, 15, 8, 3]
    assert all(shapes.shape(paths[:n]).nodes == n for n in range(1, 81))


def test_the_nodes_that_paths_go_through_most() -> None:
    """Rounds of 0 0 1 | 0: without an end of the tree two, 0 0 1 and 0."""
    assert list(shapes.rounds([0, 0, 1, -1, 0], None, 3, 3)) == [(0, 0, 1), (0,)]
    assert list(shapes.rounds([0, 0, 1, -1, 0], {(0,)}, 3, 3)) == [(0, 0, 1), (1,), (), (0,)]
    assert shapes.best([[0, 0, 1, -1, 0]] * 3, 2, 3, 3) == [((0,), 6), ((0, 0), 3)]


def test_a_long_run_counts_once_a_round_and_not_once_a_place() -> None:
    """Two trees of 4 nodes: the chain saves more places, but places of a long run share their rounds."""
    found = [path for path, _ in shapes.best([[0] * 40 + [-1] + [1, -1] * 12], 4, 2, 4)]
    assert (1,) in found


def test_elders_come_along() -> None:
    """Only rank 2 was ever accepted: its elders have to be drawn before it."""
    found = [path for path, _ in shapes.best([[2] * 9], 8, 3, 2)]
    assert all(shapes.shape(found[:n]) for n in range(1, 9))
    assert (2,) in found


def test_width_and_depth_bound_it() -> None:
    found = [path for path, _ in shapes.best([[0] * 50, [3] * 5], 99, 2, 3)]
    assert len(found) == 2 + 4 + 8
    assert max(map(len, found)) == 3
    assert max(map(max, found)) == 1


def test_a_file_and_its_beginning(tmp_path: Path) -> None:
    file = tmp_path / "tree.json"
    record = shapes.record([((0,), 30), ((1,), 10), ((0, 0), 20)], 40, {"command": "x"})
    file.write_text(json.dumps(record))
    assert record["shares"] == [0.75, 0.25, 0.5]
    assert shapes.read(file, 0) == [(0,), (1,), (0, 0)]
    assert shapes.read(file, 2) == [(0,), (1,)]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"paths": []}', '{"format": "draftwise tree 1", "paths": 3}', '{"format": "9", "paths": []}'])
def test_a_file_that_is_none(tmp_path: Path, content: str) -> None:
    file = tmp_path / "tree.json"
    file.write_text(content)
    with pytest.raises(ValueError, match="tree file"):
        shapes.read(file, 0)


def test_the_built_in_tree_is_one_that_calibration_made() -> None:
    from importlib import resources

    file = resources.files("draftwise") / "data" / "stand-tree.json"
    record = json.loads(file.read_text("utf-8"))
    paths = [tuple(path) for path in record["paths"]]
    assert len(paths) == 80
    assert all(shapes.shape(paths[:n]).nodes == n for n in (1, 8, 20, 80))
    assert "calibrate-tree" in record["made"]["command"]
