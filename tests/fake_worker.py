"""A worker without a model, for tests of the runner: its answers are a function of the prompt, and it misbehaves on request.

    python fake_worker.py --engine NAME [--slow S] [--die VARIANT[:FILE]] [--hang VARIANT] [--refuse SPEC] [--max-length N] [--log FILE]

``--die VARIANT:FILE`` dies once: FILE remembers it. ``--log FILE`` gets a line for each request."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src" / "draftwise" / "bench" / "workers"))

import lines  # noqa: E402  # as the scripts of peers do


def tokens(variant: str, ids: list[int], n: int) -> list[int]:
    """What the fake engine answers."""
    return [97 + (sum(ids) + 7 * i + len(variant)) % 26 for i in range(n)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", default="draftwise")
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--die", default="")
    parser.add_argument("--hang", default="")
    parser.add_argument("--refuse", default="")
    parser.add_argument("--fail-start", default="")
    parser.add_argument("--max-length", type=int, default=4096)
    parser.add_argument("--log", default="")
    args = parser.parse_args()
    lines.run(lambda: start(args))


def start(args: argparse.Namespace):
    os.write(1, b"a library that prints\n")  # must not reach the protocol
    if args.fail_start:
        raise RuntimeError(args.fail_start)
    ready = {"engine": args.engine, "precision": "fp32", "versions": {"fake": "1"}, "threads": int(os.environ["OMP_NUM_THREADS"])}
    ready |= {"max_length": args.max_length, "stop_ids": [0], "vocab_size": 256}
    return ready, lambda request: answer(args, request)


def answer(args: argparse.Namespace, request: dict) -> dict:
    if "check" in request:
        return {"refused": {spec: "it was told to" for spec in request["check"] if spec == args.refuse}}
    variant, n = request["variant"], min(request["max_tokens"], 8)
    if args.log:
        with open(args.log, "a", encoding="utf-8") as file:
            file.write(f"{variant} {request['max_tokens']} {len(request['ids'])} {request['seed']} {request.get('afresh', False)} {os.getpid()}\n")
    die, _, once = args.die.partition(":")
    if variant == die and not (once and Path(once).exists()):
        if once:
            Path(once).touch()
        os.write(2, b"the last words\n")
        os.kill(os.getpid(), signal.SIGKILL)
    if variant == args.hang:
        time.sleep(3600)
    time.sleep(args.slow)
    found = tokens(variant, request["ids"], n)
    rounds = [(0, 0, 0, 0, 1, 0.0, 0.01)] * n
    arrivals = [(0.01 * (i + 1), 1) for i in range(n)]
    return {"tokens": found, "seconds": 0.01 * n, "arrivals": arrivals, "finish_reason": "length", "origins": "t" * n, "rounds": rounds}


if __name__ == "__main__":
    main()
