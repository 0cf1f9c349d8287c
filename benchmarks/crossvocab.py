"""A draft of another vocabulary for a target: TLI, SLEM and UAG against plain decoding, greedy, interleaved prompt by prompt.

    python benchmarks/crossvocab.py --target NAME --draft NAME --data DIR [--quantize int4] [--out rows.jsonl]

Two HumanEval and two GSM8K problems, as chat where the target has a template. Every answer is compared with that of plain decoding; where they
part, the target's logits there say whether rounding can be the reason. Prints a table; --out keeps one JSON line for each answer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import draftwise
from draftwise import catalog
from draftwise.bench import tasks
from draftwise.bench.schema import Problem
from draftwise.commands.compare import compare, tolerance
from draftwise.text import encode


def main() -> None:
    args = arguments()
    ours = draftwise.load(args.target, args.draft, dtype=args.dtype, quantize=args.quantize)
    print(ours.note)
    length = args.length
    methods = {name: catalog.method("fixed", ours.context, length=length, drafter=name) for name in args.drafters.split(",")}
    variants = {"plain": catalog.method("plain", ours.context), **methods}
    prompts = [(task, ids(ours, problem)) for task in ("humaneval", "gsm8k") for problem in tasks.load(task, args.data, args.count)]
    for method in variants.values():
        ours.generate(prompts[0][1], 8, method=method)
    rows = []
    for i, (task, prompt) in enumerate(prompts):
        turned = list(variants)[i % len(variants) :] + list(variants)[: i % len(variants)]
        found = {name: answer(ours, prompt, variants[name], args) for name in turned}
        for name in variants:
            rows.append({"prompt": i, "task": task, "variant": name, **found[name], **against(ours, prompt, found["plain"], found[name])})
            print(line(rows[-1], rows[len(rows) - 1 - list(variants).index(name)]), flush=True)
    if args.out:
        args.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(summary(rows, list(variants), length))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with humaneval_dev.jsonl and gsm8k_dev.jsonl")
    parser.add_argument("--count", type=int, default=2, help="prompts of each task")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--length", default="fixed:n=4")
    parser.add_argument("--drafters", default="tli,slem,uag")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--quantize", default=None, help="as everywhere: int4, or target=int4")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def ids(ours: Any, problem: Problem) -> list[int]:
    chat, text = getattr(ours.tokenizer, "chat_template", None), problem.turns[0]
    return encode(ours.tokenizer, [{"role": "user", "content": text}] if chat else text, ours.context.vocab_size)


def answer(ours: Any, prompt: list[int], method: Any, args: argparse.Namespace) -> dict[str, Any]:
    start = time.perf_counter()
    result = ours.generate(prompt, args.tokens, method=method)
    stats = result.stats
    figures = {"drafted": stats.drafted, "accepted": stats.accepted, "rounds": stats.rounds, "draft_share": stats.draft_share}
    return {"tokens": list(result.tokens), "seconds": time.perf_counter() - start, **figures}


def against(ours: Any, prompt: list[int], plain: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Whether the text is plain decoding's, and if not, by how little it may have been missed."""
    target = ours.engine.target
    difference = compare(target, prompt, plain["tokens"], found["tokens"])
    if difference is None:
        return {"text": "same"}
    kind = "rounding" if difference.gap <= tolerance(target) else "DEFECT"
    return {"text": kind, "position": difference.position, "gap": difference.gap}


def line(row: dict[str, Any], plain: dict[str, Any]) -> str:
    speed, base = (len(some["tokens"]) / some["seconds"] for some in (row, plain))
    rate = row["accepted"] / max(1, row["drafted"])
    where = f" from token {row['position']} (gap {row['gap']:.2g})" if "position" in row else ""
    head = f"{row['prompt']} {row['task']:<10} {row['variant']:<6} {len(row['tokens'])} tokens {speed:6.2f}/s {speed / base:5.2f}x"
    return f"{head} tau {len(row['tokens']) / row['rounds']:.2f} accepted {rate:.0%} of {row['drafted']}: {row['text']}{where}"


def summary(rows: list[dict[str, Any]], variants: list[str], length: str) -> str:
    """All tokens over all time; the ratio to plain also as the median over prompts."""
    found = [f"over all prompts, {length}:"]
    for task in (None, *dict.fromkeys(row["task"] for row in rows)):
        speeds: dict[str, list[float]] = {}
        for name in variants:
            mine = [row for row in rows if row["variant"] == name and task in (None, row["task"])]
            tokens, rounds, seconds = sum(len(r["tokens"]) for r in mine), sum(r["rounds"] for r in mine), sum(r["seconds"] for r in mine)
            speeds[name] = [len(r["tokens"]) / r["seconds"] for r in mine]
            ratio = statistics.median(a / b for a, b in zip(speeds[name], speeds["plain"], strict=True))
            rate = sum(r["accepted"] for r in mine) / max(1, sum(r["drafted"] for r in mine))
            texts = ", ".join(f"{sum(r['text'] == kind for r in mine)} {kind}" for kind in dict.fromkeys(r["text"] for r in mine))
            figures = f"{tokens / seconds:6.2f} tokens/s  {ratio:5.2f}x  tau {tokens / rounds:.2f}  accepted {rate:4.0%}"
            found.append(f"{task or 'all':<10} {name:<6} {figures}  {texts}")
    return "\n".join(found)


if __name__ == "__main__":
    main()
