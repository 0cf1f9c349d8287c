"""Right answers of whole tasks under lossless and lossy rules, decoded many at a time: what an acceptance rule costs in quality, not in speed.

    python benchmarks/accuracy.py --target DIR --draft DIR --data FOLDER [--quantize int4] [--methods plain,adasd] [--limit 100] --out rows.jsonl

HumanEval and GSM8K, greedy, as chat, with the tasks' own judges (HumanEval's programs run in the sandbox of the bench). Rows are kept as they come:
the same command goes on with what is missing. Prints the share of right answers with Wilson's 95 % interval, and how many problems only one of two
methods got right. Batches make passes wide, so a method that looks at costs would draft less here than alone: name lengths that do not.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import draftwise
from draftwise.bench import tasks
from draftwise.bench.bootstrap import wilson
from draftwise.bench.plan import split
from draftwise.bench.schema import Problem

TASKS = {"humaneval": 256, "gsm8k": 320}
METHODS = "plain,fixed:n=4,fixed:n=4,accept=[adasd]"


def main() -> None:
    args = arguments()
    done = [json.loads(line) for line in args.out.read_text(encoding="utf-8").splitlines()] if args.out.is_file() else []
    ours = draftwise.load(args.target, args.draft, dtype=args.dtype, quantize=args.quantize)
    specs = split(args.methods)
    for task in TASKS:
        problems = tasks.load(task, args.data, args.limit)
        for first in range(0, len(problems), args.batch):
            for spec in specs:
                answered = {row["id"] for row in done if row["method"] == spec}
                left = [problem for problem in problems[first : first + args.batch] if problem.id not in answered]
                rows = answers(ours, spec, left, TASKS[task]) if left else []
                done += rows
                with args.out.open("a", encoding="utf-8") as out:
                    out.writelines(json.dumps(row) + "\n" for row in rows)
        print(table(task, [row for row in done if row["task"] == task], specs), flush=True)


def answers(ours: Any, spec: str, problems: Sequence[Problem], most: int) -> list[dict[str, Any]]:
    chats = [[{"role": "user", "content": problem.turns[0]}] for problem in problems]
    rows = []
    for problem, result in zip(problems, ours.generate(chats, most, method=spec), strict=True):
        figures = {"tokens": len(result.tokens), "relaxed": result.stats.relaxed, "cut": result.finish_reason == "length"}
        right = bool(tasks.score(problem, [result.text]))
        rows.append({"task": problem.task, "id": problem.id, "method": spec, "right": right, **figures, "text": result.text})
    return rows


def table(task: str, rows: Sequence[dict[str, Any]], specs: Sequence[str]) -> str:
    first = {row["id"]: row for row in rows if row["method"] == specs[0]}
    last = f"same text as {specs[0]}, only this right, only {specs[0]} right"
    found = [f"{task:<10} {'method':<27} {'right':>9}  {'95 %':<15} {'relaxed':>8} {'cut':>4}  {last}"]
    for spec in specs:
        own = [row for row in rows if row["method"] == spec]
        right, tokens = sum(row["right"] for row in own), sum(row["tokens"] for row in own)
        share = wilson(right, len(own))
        if share is None:
            continue
        pairs = [(row, first[row["id"]]) for row in own]
        same, more = sum(a["text"] == b["text"] for a, b in pairs), sum(a["right"] > b["right"] for a, b in pairs)
        less = sum(a["right"] < b["right"] for a, b in pairs)
        relaxed, cut = sum(row["relaxed"] for row in own) / tokens, sum(row["cut"] for row in own)
        line = f"{task:<10} {spec:<27} {right:>3} of {len(own):<3} {share.low:5.1%} to {share.high:5.1%} {relaxed:9.2%} {cut:>4}"
        found.append(f"{line}  {same}, {more}, {less}")
    return "\n".join(found)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with humaneval_dev.jsonl and gsm8k_dev.jsonl")
    parser.add_argument("--methods", default=METHODS, help="the first is what the others are compared with")
    parser.add_argument("--limit", type=int, default=100, help="problems of each task")
    parser.add_argument("--batch", type=int, default=16, help="answers that are decoded together")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--quantize", default=None)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
