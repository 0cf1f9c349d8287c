"""Every length policy and acceptance rule on one target/draft pair, interleaved prompt by prompt, with transformers in the same run.

    python benchmarks/pair.py --target DIR --draft DIR --data DIR --out benchmarks/pair-qwen

appends one JSON line per prompt and variant to OUT/rows.jsonl. Kill it and start it again: it goes on where it stopped.
``python benchmarks/pair_report.py OUT`` makes the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import draftwise
import tasks

GREEDY = [
    "plain", "fixed:n=3", "fixed:n=5", "fixed:n=8", "heuristic", "confidence", "gammatune", "gammatune-plus", "svip", "adaedl",
    "adasd-stop", "adasd", "transformers-assisted",
]  # fmt: skip
SAMPLED = ["plain", "fixed:n=5", "gammatune-plus", "adasd-stop", "adasd"]


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = args.out / "rows.jsonl"
    done = read_done(rows)
    todo = [job for job in jobs(args) if key(job) not in done]
    print(f"{len(done)} rows are there, {len(todo)} to go", flush=True)
    if not todo:
        return
    run = runners(args)
    warm_up(run, todo)
    with rows.open("a", encoding="utf-8") as file:
        for i, job in enumerate(todo):
            while (args.out / "pause").exists():  # touch it to have the machine for something else between two rows
                time.sleep(1)
            row = measure(run, job, args)
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
            print(f"{i + 1}/{len(todo)} {' '.join(map(str, key(job)))}: {row['n']} tokens, {row['n'] / row['seconds']:.1f} tokens/s", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with humaneval_dev.jsonl and gsm8k_dev.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=6, help="prompts of each task at temperature 0")
    parser.add_argument("--count-sampled", type=int, default=3, help="prompts of each task at temperature 0.7")
    parser.add_argument("--tokens-sampled", type=int, default=128, help="most new tokens at temperature 0.7 (answers may be cut)")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def jobs(args: argparse.Namespace) -> list[dict[str, Any]]:
    """First greedy, then sampled; prompt by prompt, the variants of each in an order shuffled by the seed: a noisy minute hurts all alike."""
    found = []
    tasks_of = {task: tasks.prompts(args.data, task, args.count) for task in tasks.LIMITS}
    for temperature, variants, step in ((0.0, GREEDY, 1), (0.7, SAMPLED, args.count // args.count_sampled)):
        for i in range(0, args.count, step):
            for task in tasks.LIMITS:
                order = random.Random(f"{args.seed} {task} {i} {temperature}").sample(variants, len(variants))
                found += [{"prompt": tasks_of[task][i], "variant": variant, "temperature": temperature} for variant in order]
    return found


def key(job: dict[str, Any]) -> tuple[Any, ...]:
    prompt = job["prompt"]
    return prompt["task"], prompt["index"], job["temperature"], job["variant"]


def read_done(path: Path) -> set[tuple[Any, ...]]:
    """Keys of the whole rows; a last line that a killed run left broken is cut off."""
    if not path.exists():
        return set()
    lines = path.read_bytes().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    path.write_bytes(b"".join(whole))
    rows = [json.loads(line) for line in whole]
    return {(row["task"], row["index"], row["temperature"], row["variant"]) for row in rows}


def runners(args: argparse.Namespace) -> Callable[..., dict[str, Any]]:
    """One function over both engines. transformers gets models of its own: draftwise sets its own attention on those it is given."""
    ours = draftwise.load(args.target, args.draft, dtype=args.dtype)
    theirs = Peer(args)

    def run(job: dict[str, Any], max_tokens: int) -> dict[str, Any]:
        ids = theirs.ids(job["prompt"]["messages"])
        if job["variant"].startswith("transformers"):
            return theirs.generate(ids, job, max_tokens)
        start = time.perf_counter()
        result = ours.generate(ids, method=job["variant"], max_tokens=max_tokens, seed=args.seed, **sampling(job))
        seconds = time.perf_counter() - start
        return {"tokens": list(result.tokens), "text": result.text, "seconds": seconds, "stats": result.stats._asdict()}

    return run


def sampling(job: dict[str, Any]) -> dict[str, float]:
    return {"temperature": 0.7, "top_p": 0.95} if job["temperature"] else {}


class Peer:
    """transformers' own generate on the same weights, plain and assisted (defaults of this version)."""

    def __init__(self, args: argparse.Namespace) -> None:
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(args.target)
        self.target, self.draft = (load(name, dtype=getattr(torch, args.dtype)).eval() for name in (args.target, args.draft))

    def ids(self, messages: list[dict[str, str]]) -> list[int]:
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def generate(self, ids: list[int], job: dict[str, Any], max_tokens: int) -> dict[str, Any]:
        options: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if job["temperature"]:
            options = {"do_sample": True, "top_k": 0, **sampling(job)}
        if job["variant"].endswith("assisted"):
            options["assistant_model"] = self.draft
        torch.manual_seed(0)
        prompt = torch.tensor([ids])
        start = time.perf_counter()
        with torch.inference_mode():
            out = self.target.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=max_tokens, repetition_penalty=1.0, pad_token_id=0, **options
            )
        seconds = time.perf_counter() - start
        tokens = out[0, len(ids) :].tolist()
        return {"tokens": tokens, "text": self.tokenizer.decode(tokens, skip_special_tokens=True), "seconds": seconds, "stats": {}}


def warm_up(run: Callable[..., dict[str, Any]], todo: list[dict[str, Any]]) -> None:
    for variant in ("plain", "fixed:n=5", "transformers-assisted"):
        run({**todo[0], "variant": variant}, 16)


def measure(run: Callable[..., dict[str, Any]], job: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    task, index, temperature, variant = key(job)
    found = run(job, args.tokens_sampled if temperature else tasks.LIMITS[task])
    right = tasks.correct(task, job["prompt"]["problem"], found["text"])
    row = {"task": task, "index": index, "temperature": temperature, "variant": variant, "n": len(found["tokens"]), "correct": right}
    return {**row, **found, "seed": args.seed, "machine": machine(), "command": command()}


def command() -> str:
    """What was typed, with the folders above absolute paths left out: they are nobody's business."""
    return " ".join(["python", *(Path(arg).name if Path(arg).is_absolute() else arg for arg in sys.argv)])


def machine() -> dict[str, Any]:
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    versions = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    return {"cpu": cpu or platform.processor(), "threads": torch.get_num_threads(), "draftwise": draftwise.__version__, **versions}


if __name__ == "__main__":
    main()
