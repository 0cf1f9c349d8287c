"""Tables and a picture from the rows of ``benchmarks/pair.py``.

    python benchmarks/pair_report.py benchmarks/pair-qwen [--readme README.md]

writes OUT/summary.md, OUT/summary.json and OUT/speed.svg; ``--readme`` puts the greedy table between the README's table:pair comments.
Speed is total tokens over total seconds; ratios compare the same prompts; intervals are 95 % of a bootstrap over prompts.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path
from typing import Any

Rows = dict[str, dict[tuple[str, int], dict[str, Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--readme", type=Path)
    args = parser.parse_args()
    rows = [json.loads(line) for line in (args.out / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    tables, figures = [], {}
    for temperature in sorted({row["temperature"] for row in rows}):
        variants = whole(rows, temperature)
        figures[str(temperature)] = [figure(variants, name) for name in variants]
        tables.append(markdown(figures[str(temperature)], temperature))
    machine = rows[-1]["machine"]
    facts = f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, transformers {machine['transformers']}"
    args.out.joinpath("summary.md").write_text(f"Machine: {facts}.\n\n" + "\n\n".join(tables) + "\n", encoding="utf-8")
    args.out.joinpath("summary.json").write_text(json.dumps({"machine": machine, "figures": figures}, indent=1) + "\n")
    draw(figures["0.0"], args.out / "speed.svg")
    if args.readme:
        text = args.readme.read_text(encoding="utf-8")
        block = f"<!-- table:pair -->\n{tables[0]}\n\n{facts}.\n<!-- /table:pair -->"
        args.readme.write_text(re.sub(r"<!-- table:pair -->.*?<!-- /table:pair -->", lambda _: block, text, flags=re.DOTALL), encoding="utf-8")
    print("\n\n".join(tables))


def whole(rows: list[dict[str, Any]], temperature: float) -> Rows:
    """Variant -> prompt -> row, over the prompts that every variant has answered."""
    found: Rows = {}
    for row in rows:
        if row["temperature"] == temperature:
            found.setdefault(row["variant"], {})[row["task"], row["index"]] = row
    shared = set.intersection(*(set(some) for some in found.values()))
    names = sorted(found, key=lambda name: (name.startswith("transformers"), name != "plain", not name.startswith("fixed"), name))
    return {name: {key: found[name][key] for key in sorted(shared)} for name in names}


def speed(rows: list[dict[str, Any]]) -> float:
    return float(sum(row["n"] for row in rows) / sum(row["seconds"] for row in rows))


def ratio(variants: Rows, name: str, base: str) -> tuple[float, float, float]:
    """Speed of `name` over that of `base`, with a 95 % bootstrap interval over prompts."""
    a, b = variants[name], variants[base]
    keys, random_ = list(a), random.Random(0)
    draws = []
    for _ in range(2000):
        some = random_.choices(keys, k=len(keys))
        draws.append(speed([a[k] for k in some]) / speed([b[k] for k in some]))
    draws.sort()
    return speed(list(a.values())) / speed(list(b.values())), draws[50], draws[-51]


def figure(variants: Rows, name: str) -> dict[str, Any]:
    rows = list(variants[name].values())
    stats = [row["stats"] for row in rows if row["stats"]]
    total = {key: sum(s[key] for s in stats) for key in ("tokens", "rounds", "drafted", "accepted", "relaxed")}
    right = {task: [row["correct"] for row in rows if row["task"] == task] for task in ("humaneval", "gsm8k")}
    plain = variants["plain"]
    return {
        "variant": name,
        "prompts": len(rows),
        "tokens_per_second": speed(rows),
        "over_plain": ratio(variants, name, "plain"),
        "over_fixed_5": ratio(variants, name, "fixed:n=5"),
        "tau": total["tokens"] / total["rounds"] if stats else None,
        "acceptance": total["accepted"] / total["drafted"] if total["drafted"] else None,
        "drafted_per_round": total["drafted"] / total["rounds"] if stats else None,
        "relaxed_share": total["relaxed"] / total["tokens"] if stats else None,
        "correct": {task: (sum(r), len(r)) for task, r in right.items()},
        "same_text": sum(row["tokens"] == plain[key]["tokens"] for key, row in variants[name].items()),
    }


def markdown(figures: list[dict[str, Any]], temperature: float) -> str:
    head = ["method", "tokens/s", "over plain", "over fixed 5", "tau", "acceptance", "drafted a round", "relaxed", "HumanEval", "GSM8K", "same text"]
    lines = [f"Temperature {temperature:g}, {figures[0]['prompts']} prompts.", "", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for f in figures:
        ratios = [f"{m:.2f} ({low:.2f} to {high:.2f})" for m, low, high in (f["over_plain"], f["over_fixed_5"])]
        shares = [_show(f["tau"]), _show(f["acceptance"]), _show(f["drafted_per_round"]), _show(f["relaxed_share"], 3)]
        right = ["-" if temperature else "/".join(map(str, f["correct"][task])) for task in ("humaneval", "gsm8k")]  # sampled answers are cut
        same = f"{f['same_text']}/{f['prompts']}" if temperature == 0 else "-"
        lines.append("| " + " | ".join([f["variant"], f"{f['tokens_per_second']:.2f}", *ratios, *shares, *right, same]) + " |")
    return "\n".join(lines)


def _show(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def draw(figures: list[dict[str, Any]], path: Path) -> None:
    """Speed over plain decoding, one bar a method, with its interval."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ordered = sorted(figures, key=lambda f: f["over_plain"][0])
    centre = [f["over_plain"][0] for f in ordered]
    errors = [[m - low for m, low, _ in (f["over_plain"] for f in ordered)], [high - m for m, _, high in (f["over_plain"] for f in ordered)]]
    colours = ["#999999" if f["variant"] in ("plain",) or f["variant"].startswith("transformers") else "#3b6ea5" for f in ordered]
    figure, axes = plt.subplots(figsize=(7, 0.34 * len(ordered) + 1.2))
    axes.barh([f["variant"] for f in ordered], centre, xerr=errors, color=colours, error_kw={"ecolor": "#333333", "capsize": 2, "lw": 1})
    axes.axvline(1, color="#333333", lw=0.8)
    axes.set_xlabel("speed over plain decoding; lines: 95 % over prompts")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
