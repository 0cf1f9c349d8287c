"""Repeated samples of the same problems: what drafters that remember gain from one sample to the next.

    python benchmarks/repeated.py --target DIR --data gsm8k_dev.jsonl --problems 1 --samples 8 --out benchmarks/repeated.jsonl

Sample i of a problem has seed i; the drafter is made anew for every problem and shared by its samples, which are decoded one after another.
Methods take turns after every sample, so that a busy machine is busy for all. With ``--temperature 0`` each text is compared with that of plain
decoding. Rows are appended to --out; started again with the same options it goes on with the next problem. Prints tokens per target pass by
sample, and tokens per second.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import draftwise
from draftwise import catalog
from draftwise.sequence import Method

METHODS = ["plain", "lookup", "suffix", "stand:nodes=8", "stand:nodes=20", "recycling:nodes=20"]


def main() -> None:
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    done = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    finished = {row["problem"] for row in done if row["sample"] == args.samples - 1}
    rows = [row for row in done if row["problem"] in finished]
    speculator = draftwise.load(args.target, method="plain")
    questions = [json.loads(line)["question"] for line in args.data.read_text(encoding="utf-8").splitlines()[: args.first + args.problems]]
    with args.out.open("a", encoding="utf-8") as file:
        for problem in range(args.first, args.first + args.problems):
            if problem not in finished:
                for row in solved(speculator, problem, questions[problem], args):
                    rows.append(row)
                    file.write(json.dumps(row) + "\n")
                    file.flush()
    report(rows, args)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--problems", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def solved(speculator: Any, problem: int, question: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each sample and method."""
    methods = {spec: built(speculator, spec) for spec in args.methods}
    prompt = [{"role": "user", "content": question}]
    for sample in range(args.samples):
        texts = {}
        for spec, method in methods.items():
            start = time.perf_counter()
            result = speculator.generate(prompt, args.tokens, args.temperature, seed=1000 * problem + sample, method=method)
            seconds = time.perf_counter() - start
            texts[spec] = result.tokens
            same = None if args.temperature or "plain" not in texts else result.tokens == texts["plain"]
            yield {
                "problem": problem, "sample": sample, "method": spec, "tokens": result.stats.tokens, "rounds": result.stats.rounds,
                "drafted": result.stats.drafted, "draft_s": result.stats.draft_share * result.stats.seconds, "seconds": seconds, "same": same,
            }  # fmt: skip


def built(speculator: Any, spec: str) -> Method:
    """A preset, whose options go to its drafter."""
    name = spec.partition(":")[0]
    drafter = spec if ":" in spec else None
    return catalog.method(name, speculator.context, drafter=drafter)


def report(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    samples = range(args.samples)
    print("| method | " + " | ".join(f"sample {i + 1}" for i in samples) + " | all | tokens/s | draft ms a pass | as plain |")
    print("| --- |" + " --- |" * (args.samples + 4))
    for spec in args.methods:
        own = [row for row in rows if row["method"] == spec]
        by = [[row for row in own if row["sample"] == i] for i in samples]
        cells = [f"{tau(some):.2f}" for some in by]
        speed = sum(r["tokens"] for r in own) / sum(r["seconds"] for r in own)
        ms = 1000 * mean(r["draft_s"] / max(r["rounds"], 1) for r in own)
        same = "" if own[0]["same"] is None else f"{sum(r['same'] for r in own)} of {len(own)}"
        print(f"| {spec} | {' | '.join(cells)} | {tau(own):.2f} | {speed:.1f} | {ms:.2f} | {same} |")


def tau(rows: list[dict[str, Any]]) -> float:
    """Tokens per target pass."""
    return sum(r["tokens"] for r in rows) / max(sum(r["rounds"] for r in rows), 1)


if __name__ == "__main__":
    main()
