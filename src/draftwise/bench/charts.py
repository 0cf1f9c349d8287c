"""The pictures of a report. Each is one SVG, drawn from figures; nothing here knows where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from draftwise.bench.measures import Figure
from draftwise.bench.page import detail, overview
from draftwise.bench.page.canvas import styled
from draftwise.bench.schema import Row


def draw(figures: Sequence[Figure], table: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """Name -> <svg> for every picture that the figures hold something for: speed, pareto, acceptance, length, shares, groups. `table`: the rows
    behind the figures, by variant. Raises ValueError without matplotlib."""
    with styled():
        found = {
            "speed": bool(figures) and overview.speed(figures),
            "pareto": any(f.accuracy or f.common_prefix is not None for f in figures) and overview.pareto(figures),
            "acceptance": any(f.by_position for f in figures) and detail.acceptance(figures, table),
            "length": any(f.by_position for f in figures) and detail.length(figures, table),
            "shares": any(f.draft_share is not None for f in figures) and detail.shares(figures),
            "groups": any(f.variant != f.own_plain and any(g.over_plain for g in f.groups.values()) for f in figures) and detail.groups(figures),
        }
        return {name: picture for name, picture in found.items() if picture}
