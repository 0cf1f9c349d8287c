"""Small rows for tests of measures and reports, and a results folder made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from draftwise.bench.schema import Pass, Row, Turn, to_json

MACHINE = {"cpu": "Test CPU", "cores": 2, "threads": 2, "memory_bytes": 24 * 2**30, "versions": {"torch": "2.13.0"}}


def turn(n: int, seconds: float, rounds: Sequence[Pass] = (), arrivals: Sequence[tuple[float, int]] = (), origins: str = "", **rest: Any) -> Turn:
    """An answer of tokens 0 to n-1."""
    fixed: dict[str, Any] = {"tokens": tuple(range(n)), "text": f"text of {n} tokens"} | rest
    return Turn(fixed["tokens"], fixed["text"], seconds, 7, tuple(arrivals), "stop", origins, tuple(rounds))


def row(variant: str, id: str, *turns: Turn, engine: str = "draftwise", precision: str = "bf16", task: str = "gsm8k", **rest: Any) -> Row:
    """One problem answered by one variant."""
    fixed = {"group": task, "correct": None, "machine": MACHINE, "command": "draftwise bench --out DIR", "sample": None} | rest
    rest = {name: fixed[name] for name in ("correct", "machine", "command", "sample")}
    return Row(task, 1, id, fixed["group"], variant, engine, precision, turns, seed=0, **rest)


def rounds(n: int, drafted: int, accepted: int, relaxed: int = 0) -> tuple[Pass, ...]:
    """A pass that reads the prompt, and n equal ones."""
    return (Pass(0, 0, 0, 0, 0, 0.0, 0.2), *[Pass(drafted, drafted, accepted, relaxed, accepted + 1, 0.05 * drafted, 0.1)] * n)


def run(problems: int = 4, lossy: bool = True) -> list[Row]:
    """A run of plain decoding, two methods (one lossy) and an engine with its own plain; speeds differ from problem to problem."""
    rows = []
    for i in range(problems):
        id, hard, group = f"p{i}", 1 + i / 10, ("maths", "code")[i % 2]
        told = {"group": group, "correct": i % 3 != 0}
        steps = [(k + 1.0, 1) for k in range(12)]
        rows.append(row("plain", id, turn(12, 3.0 * hard, rounds(12, 0, 0), steps, "t" * 12), **told))
        rows.append(row("fixed:n=5", id, turn(12, 1.5 * hard, rounds(4, 5, 2), steps[::3], "ddt" * 4), **told))
        if lossy:
            rows.append(row("adasd", id, turn(12, 1.2 * hard, rounds(3, 6, 3, 1), steps[::4], "drdt" * 3), **told))
        rows.append(row("vllm", id, turn(12, 2.5 * hard), engine="vllm", precision="f32", **told))
        rows.append(row("vllm-draft", id, turn(11, 2.0 * hard), engine="vllm", precision="f32", **told))
    return rows


def write(folder: Path, rows: Sequence[Row], config: Mapping[str, Any] | None = None, tail: str = "") -> Path:
    """A results folder. `tail` stands after the last whole line."""
    folder.mkdir(exist_ok=True, parents=True)
    lines = "".join(json.dumps(to_json(some)) + "\n" for some in rows)
    (folder / "rows.jsonl").write_text(lines + tail, encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config or {"target": "models/big", "draft": "models/small", "temperature": 0.0}), encoding="utf-8")
    (folder / "memory.jsonl").write_text('{"variant": "plain", "peak_bytes": 2500000000}\n', encoding="utf-8")
    return folder


class Letters:
    """A tokenizer of single letters: token i is the i-th of the alphabet."""

    def decode(self, ids: Any, **_: Any) -> str:
        return "".join(chr(97 + int(i) % 26) for i in ids)
