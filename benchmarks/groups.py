"""Tokens a second by group of problems, ratios with their geometric mean over the groups, and what a round took, of a committed bench.

    python benchmarks/groups.py benchmarks/qwen2.5-coder-quantised auto/plain int8/auto//int8/plain useless/auto//useless/plain

Only problems that all variants answered count. A pair is A/B, or A//B where names hold a stroke.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from pathlib import Path


def main() -> None:
    rows = [json.loads(line) for line in Path(sys.argv[1], "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    by: dict[str, dict[str, dict]] = defaultdict(dict)
    for row in rows:
        by[row["variant"]][row["id"]] = row
    common = set.intersection(*(set(some) for some in by.values()))
    groups = sorted({row["group"] for row in rows if row["id"] in common})

    def speed(variant: str, group: str) -> float:
        turns = [turn for id, row in by[variant].items() if id in common and row["group"] == group for turn in row["turns"]]
        return sum(len(turn["tokens"]) for turn in turns) / sum(turn["seconds"] for turn in turns)

    print("variant".ljust(40), *(group.rjust(15) for group in groups), "ms a round".rjust(12))
    for variant in by:
        turns = [turn for id, row in by[variant].items() if id in common for turn in row["turns"]]
        rounds = sum(bool(one[4]) for turn in turns for one in turn["rounds"])
        took = f"{1e3 * sum(turn['seconds'] for turn in turns) / rounds:12.1f}" if rounds else ""
        print(variant.ljust(40), *(f"{speed(variant, group):15.2f}" for group in groups), took)
    for pair in sys.argv[2:]:
        a, b = pair.split("//" if "//" in pair else "/")
        ratios = [speed(a, group) / speed(b, group) for group in groups]
        print(pair.ljust(40), *(f"{ratio:15.2f}" for ratio in ratios), f"{math.exp(sum(map(math.log, ratios)) / len(ratios)):12.2f}")


if __name__ == "__main__":
    main()
