"""A run of the bench on fake workers, as a module for tests and as a program that tests kill: ``python bench_runs.py OUT [SECONDS PER ANSWER]``."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from draftwise.bench import plan, session
from draftwise.bench.run import Part
from draftwise.bench.schema import Problem
from draftwise.bench.setup import Chosen, Options

FAKE = str(Path(__file__).with_name("fake_worker.py"))


class Bytes:
    """The renderer of a model whose tokens are bytes."""

    def ids(self, turns: Sequence[str], answers: Sequence[str]) -> list[int]:
        return list("|".join(part for pair in zip(turns, [*answers, ""], strict=True) for part in pair).encode())

    def text(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")


class FakePeer(NamedTuple):
    """A peer whose variants are run by two workers."""

    extra: tuple[str, ...] = ()
    absent: str | None = None
    name: str = "fake"
    install: str = "pip install fake"
    variants: tuple[str, ...] = ("fake", "fake-lookup", "fake-draft")

    def missing(self, setup: Any) -> str | None:
        return self.absent

    def command(self, setup: Any, variant: str) -> list[str]:
        if variant == "fake-draft":
            raise ValueError("it needs a draft")
        own = ["--max-length", "4095"] if variant == "fake-lookup" else []
        return [sys.executable, FAKE, "--engine", "fake", *own, *self.extra]


class Notes:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.begun: list[str] = []
        self.totals: list[tuple[int, int]] = []
        self.ended = 0

    def tell(self, sentence: str) -> None:
        self.told.append(sentence)

    def total(self, jobs: int, done: int) -> None:
        self.totals.append((jobs, done))

    def begin(self, what: str) -> None:
        self.begun.append(what)

    def end(self) -> None:
        self.ended += 1


def problems(task: str, count: int, turns: int = 1) -> list[Problem]:
    return [Problem(task, 1, f"{task}/{i}", task, tuple(f"{task} {i} turn {t}" for t in range(turns)), f"{i}") for i in range(count)]


def chosen(
    peers: Sequence[Any] = (FakePeer(),), methods: Sequence[str] = ("plain", "adasd"), seed: int = 0, samples: int = 1, **changes: Any
) -> Chosen:
    options = Options("t", None, [*methods], ["a", "b"], [], "", "", 0.0, 1.0, seed, "float32", "cpu", 1, None, 1, "plain", False, "draftwise bench")
    tasks = [problems("a", 3), problems("b", 2, turns=2)]
    config = {"draftwise": "0", "command": "x", "methods": [*methods], "seed": seed, "tasks": {"a": {"version": 1}}} | changes
    return Chosen(options._replace(samples=samples), [*methods], [*peers], tasks, {}, {"a": 20, "b": 5}, config)


def score(problem: Problem, texts: Sequence[str]) -> bool | None:
    return len(texts) == len(problem.turns) if problem.task == "b" else None


def bench(out: Path, what: Chosen | None = None, watch: Any = None, own: Sequence[str] = (), memory: bool = False, timeout_s: float = 30.0) -> Any:
    worker = [sys.executable, FAKE, *own]
    return session.bench(what or chosen(), out, watch or Notes(), memory, timeout_s, Part(Bytes(), score), lambda setup: worker)


def keys(what: Chosen | None = None) -> set[tuple[str, str, str]]:
    variants = [*(what or chosen()).methods, "fake", "fake-lookup"]
    return {job.key for job in plan.jobs((what or chosen()).tasks, dict.fromkeys(variants), 0)}


if __name__ == "__main__":
    slow = sys.argv[2] if len(sys.argv) > 2 else "0"
    if len(sys.argv) > 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
    bench(Path(sys.argv[1]), chosen([FakePeer(("--slow", slow))]), own=("--slow", slow))
