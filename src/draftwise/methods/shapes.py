"""Fixed draft trees: how many children each node gets, by the rank at which a drafter lists them.

A node is the path of ranks that leads to it: (0,) the first child of the root, (0, 2) that one's third child. A shape holds with every node its
parent and its elder siblings, since children are tried in order and a child cannot be drawn before its elders.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Ranks = tuple[int, ...]
FORMAT = "draftwise tree 1"
_TURNS = 4  # after these the tree hardly moves


class Shape(NamedTuple):
    """`children[i]`: the node that is the first child of node i, and how many there are; node 0 is the root, levels follow one another."""

    children: tuple[tuple[int, int], ...]

    @property
    def nodes(self) -> int:
        """Without the root."""
        return len(self.children) - 1

    @property
    def is_chain(self) -> bool:
        """Whether no node has two children."""
        return all(count < 2 for _, count in self.children)


def shape(paths: Iterable[Ranks]) -> Shape:
    """The shape of a set of nodes. Raises ValueError for a node whose parent or elder sibling is missing."""
    known = {tuple(path) for path in paths}
    for path in known:
        elder = (*path[:-1], path[-1] - 1) if path and path[-1] else path[:-1]
        if not path or min(path) < 0 or (elder and elder not in known):
            raise ValueError(f"a tree holds with every node its parent and its elder siblings; node {list(path)} lacks {list(elder)}")
    counts = Counter(path[:-1] for path in known)
    order = [(), *sorted(known, key=lambda path: (len(path), path))]
    first, children = 1, []
    for path in order:
        children.append((first, counts[path]))
        first += counts[path]
    return Shape(tuple(children))


def chain(depth: int) -> Shape:
    """One child each, `depth` levels."""
    return shape((0,) * d for d in range(1, depth + 1))


def by_levels(sizes: Sequence[int], width: int) -> list[Ranks]:
    """A tree of so many nodes a level, those of low ranks: a rank r counts ln(1 + r), and the nodes of least sum are taken. Best nodes first."""
    level: list[Ranks] = [()]
    found: list[Ranks] = []
    for size in sizes:
        level = sorted(((*path, r) for path in level for r in range(width)), key=lambda path: (_cost(path), path))[:size]
        found += level
    return sorted(found, key=lambda path: (_cost(path) + len(path), len(path), path))


def best(runs: Sequence[Sequence[int]], nodes: int, width: int, depth: int) -> list[tuple[Ranks, int]]:
    """The `nodes` nodes that accepted paths go through most often, and how often; best first, so that any beginning of the list is a tree.

    `runs`: for each text, the rank of the accepted child at each place, or -1 where none was. Where rounds begin depends on the tree: first they are
    counted for one without an end, then a few times for the tree that was found."""
    found: list[tuple[Ranks, int]] = []
    for _ in range(_TURNS):
        tree = {path for path, _ in found} if found else None
        paths = [path for run in runs for path in rounds(run, tree, width, depth)]
        found = _greedy(Counter(path[:n] for path in paths for n in range(1, len(path) + 1)), nodes, width, depth)
    return found


def rounds(run: Sequence[int], tree: Container[Ranks] | None, width: int, depth: int) -> Iterator[Ranks]:
    """For each round that a tree (None: without an end) takes through a text: the path that could be accepted, beyond the tree too. A round
    takes what of it lies in the tree, and one token more."""
    start = 0
    while start < len(run):
        ranks = run[start : start + depth]
        path = tuple(itertools.takewhile(lambda rank: 0 <= rank < width, ranks))
        yield path
        start += 1 + sum(tree is None or path[:n] in tree for n in range(1, len(path) + 1))


def _greedy(counts: Counter[Ranks], nodes: int, width: int, depth: int) -> list[tuple[Ranks, int]]:
    """Nodes by falling counts from those whose parent and elder siblings are taken; of equal ones the shallower first."""
    found: list[tuple[Ranks, int]] = []
    heap: list[tuple[int, int, Ranks]] = [(-counts[0,], 1, (0,))]
    while heap and len(found) < nodes:
        count, level, path = heapq.heappop(heap)
        found.append((path, -count))
        nexts = [(*path, 0)] * (level < depth) + [(*path[:-1], path[-1] + 1)] * (path[-1] + 1 < width)
        for other in nexts:
            heapq.heappush(heap, (-counts[other], len(other), other))
    return found


def read(file: str | Path, nodes: int) -> list[Ranks]:
    """The first `nodes` nodes of a tree file (0 = all). Raises ValueError for a file that is none."""
    try:
        found: Any = json.loads(Path(file).read_text(encoding="utf-8"))
        paths = [tuple(int(rank) for rank in path) for path in found["paths"]] if found["format"] == FORMAT else None
    except FileNotFoundError:
        raise ValueError(f"there is no tree file {file}: make one with `draftwise calibrate-tree {file}`, or take tree=default") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no tree file ({error}): `draftwise calibrate-tree` makes them") from None
    if paths is None:
        raise ValueError(f"{file} is a tree file of another version ({found['format']!r}, not {FORMAT!r}): make it again")
    return paths[: nodes or None]


def record(found: Sequence[tuple[Ranks, int]], passes: int, made: Mapping[str, Any]) -> dict[str, Any]:
    """What a tree file holds: the nodes, the share of rounds in which an accepted path goes through each, and how they were found."""
    return {
        "format": FORMAT,
        "made": dict(made),
        "paths": [list(path) for path, _ in found],
        "shares": [round(count / max(passes, 1), 5) for _, count in found],
    }


def _cost(path: Ranks) -> float:
    return math.fsum(math.log1p(rank) for rank in path)
