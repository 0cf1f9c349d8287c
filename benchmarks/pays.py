"""The table and the picture of docs/pays.md from folders that `draftwise profile --out` wrote.

    python benchmarks/pays.py benchmarks/profile/hf-bf16 benchmarks/profile/llamacpp ... [--context 64] [--plot benchmarks/profile/pays.svg]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

WIDTHS = (1, 2, 4, 6, 8, 16)
ACCEPTANCE = 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    found = {folder.name: json.loads((folder / "profile.json").read_text()) for folder in args.folders}
    print("| | " + " | ".join(f"{k}" for k in WIDTHS) + " | draft step | pays from | at 80 % | copies at 80 % |")
    print("| --- |" + " --- |" * (len(WIDTHS) + 4))
    for name, profile in found.items():
        print(line(name, profile, args.context))
    if args.plot:
        plot(found, args.context, args.plot)


def passes(profile: dict[str, Any], context: int) -> dict[int, float]:
    """Milliseconds of a target pass by its tokens."""
    return {c["rows"]: 1e3 * c["median_s"] for c in profile["costs"] if c["model"] == "target" and c["context"] == context}


def step(profile: dict[str, Any], context: int) -> float:
    return next(1e3 * c["median_s"] for c in profile["costs"] if c["model"] == "draft" and c["context"] == context)


def line(name: str, profile: dict[str, Any], context: int) -> str:
    known = passes(profile, context)
    pays = {p["drafter"]: p for p in profile["pay_off"] if p["context"] == context}
    cells = [f"{known[k]:.0f}" for k in WIDTHS] + [f"{step(profile, context):.0f}"]
    threshold = pays["draft"]["threshold"]
    cells.append(f"{threshold['acceptance']:.0%} (n = {threshold['n']})" if threshold else "never")
    for drafter in pays:
        best = next(b for b in pays[drafter]["best"] if abs(b["acceptance"] - ACCEPTANCE) < 1e-9)
        cells.append(f"{best['speed_up']:.2f}x (n = {best['n']})")
    return f"| {name} | " + " | ".join(cells) + " |"


def plot(found: dict[str, Any], context: int, path: Path) -> None:
    """The cost of a pass against that of one token, and the draft's step beside it."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), width_ratios=(3, 2))
    for i, (name, profile) in enumerate(found.items()):
        known = passes(profile, context)
        axes[0].plot(list(known), [s / known[1] for s in known.values()], marker="o", markersize=3, label=name, color=f"C{i}")
        axes[1].bar(i, known[1], color=f"C{i}", alpha=0.4)
        axes[1].bar(i, step(profile, context), color=f"C{i}")
    axes[0].axhline(1, color="black", linewidth=0.5)
    axes[0].set_xlabel("tokens in one pass of the target")
    axes[0].set_ylabel("cost against a pass over one")
    axes[0].set_ylim(0, None)
    axes[0].legend(fontsize=8)
    axes[1].set_xticks(range(len(found)), list(found), rotation=30, fontsize=8)
    axes[1].set_ylabel("ms: target (light), draft (full)")
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
