"""Draft trees as `parents`: int64 [n], -1 = root, parents before children. Depths, masks and paths; pure functions on the host.

A chain is the tree whose every token hangs on the one before it; it is written `None` wherever a tree is optional.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def depths(parents: Tensor) -> Tensor:
    """Levels below the root: int64 [n]; tokens whose parent is -1 have depth 0. Raises ValueError if a parent does not come first."""
    found: list[int] = []
    for parent in _checked(parents):
        found.append(0 if parent < 0 else found[parent] + 1)
    return torch.tensor(found, dtype=torch.int64)


def levels(parents: Tensor | None, n: int) -> int:
    """Of a draft of `n` tokens: how many of them can follow one another at most. A chain has n levels."""
    return n if parents is None else int(depths(parents).max()) + 1 if n else 0


def children(parents: Tensor | None, n: int) -> list[list[int]]:
    """Below whom each token hangs: entry i lists the children of token i in draft order, the entry after the last (index -1, too) the roots."""
    below: list[list[int]] = [[] for _ in range(n + 1)]
    for i, parent in enumerate(range(-1, n - 1) if parents is None else _checked(parents)):
        below[parent].append(i)
    return below


def judges(parents: Tensor | None, n: int) -> Tensor:
    """The row of a `draftwise.types.Target` that judges each of `n` draft tokens: int64 [n]. Row 0 follows the committed text."""
    return torch.arange(n) if parents is None else parents + 1


def walk(below: Sequence[Sequence[int]], stays: Callable[[int], bool]) -> list[int]:
    """The path that sibling-after-sibling judging takes through `children`: from the root on, the first child that stays. `stays` is asked
    of the siblings in draft order up to the first that does, then of that one's children."""
    path: list[int] = []
    while (child := next((i for i in below[path[-1] if path else -1] if stays(i)), None)) is not None:
        path.append(child)
    return path


def deepest(below: Sequence[Sequence[int]], stays: Callable[[int], bool], gain: Callable[[int], float]) -> list[int]:
    """The longest path from the root all of whose tokens stay; of equals the one with the largest sum of gains, then the first. `stays` is
    asked of tokens only whose parents stay, once each."""
    paths: list[tuple[int, float, list[int]]] = [(0, 0.0, [])]
    for length, total, path in paths:  # grows while it is read: every path comes after its beginning
        paths += [(length + 1, total + gain(i), [*path, i]) for i in below[path[-1] if path else -1] if stays(i)]
    return max(paths, key=lambda found: found[:2])[2]


def ancestors(parents: Tensor) -> Tensor:
    """Who sees whom: bool [n, n]; row i is True at i itself and at every token on its way to the root."""
    n = len(parents)
    seen = torch.eye(n, dtype=torch.bool)
    for i, parent in enumerate(_checked(parents)):
        if parent >= 0:
            seen[i] |= seen[parent]
    return seen


def path_to(parents: Tensor, i: int) -> list[int]:
    """The tokens from a root down to `i`, root first, `i` last."""
    above = _checked(parents)
    if not 0 <= i < len(above):
        raise ValueError(f"token {i} is not in a tree of {len(above)} tokens")
    path = [i]
    while above[path[-1]] >= 0:
        path.append(above[path[-1]])
    return path[::-1]


def leaves(parents: Tensor) -> list[int]:
    """The tokens below which none hangs."""
    above = _checked(parents)
    return sorted(set(range(len(above))) - set(above))


def attach(pending: int, parents: Tensor | None, n: int | None = None) -> Tensor | None:
    """Parents over what is fed: `pending` committed tokens in a chain, then a draft of `n` tokens with its own `parents`, whose roots hang
    on the last pending token. None when all of it is a chain."""
    if parents is None:
        return None
    if n is not None and n != len(parents):
        raise ValueError(f"a draft of {n} tokens has {len(parents)} parents")
    own = torch.where(parents < 0, pending - 1, parents + pending)
    whole = torch.cat([torch.arange(-1, pending - 1), own])
    return None if is_chain(whole) else whole


def is_chain(parents: Tensor | None) -> bool:
    """Whether every token hangs on the one before it."""
    return parents is None or bool((parents == torch.arange(-1, len(parents) - 1)).all())


def _checked(parents: Tensor) -> list[int]:
    above: list[int] = parents.tolist()
    for i, parent in enumerate(above):
        if not -1 <= parent < i:
            raise ValueError(f"token {i} has parent {parent}; a parent is -1 (root) or an earlier token")
    return above
