"""Two tasks with a right answer, read from JSONL files: HumanEval (the tests are run) and GSM8K (the numbers are compared)."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LIMITS = {"humaneval": 256, "gsm8k": 320}
FILES = {"humaneval": "humaneval_dev.jsonl", "gsm8k": "gsm8k_dev.jsonl"}


def prompts(data: Path, task: str, count: int) -> list[dict[str, Any]]:
    """`count` problems, each with its chat `messages`: spread evenly over the third of the file with the shortest reference answers, so that
    all variants of a prompt fit into minutes on two cores. Long answers are therefore not represented."""
    lines = (data / FILES[task]).read_text(encoding="utf-8").splitlines()
    ordered = sorted(map(json.loads, lines), key=lambda p: len(p["answer"] if task == "gsm8k" else p["prompt"] + p["canonical_solution"]))
    chosen = [ordered[i * len(ordered) // 3 // count] for i in range(count)]
    return [{"task": task, "index": i, "problem": problem, "messages": _messages(task, problem)} for i, problem in enumerate(chosen)]


def _messages(task: str, problem: dict[str, Any]) -> list[dict[str, str]]:
    if task == "humaneval":
        text = f"Complete this Python function. Answer with the whole function in one code block.\n\n```python\n{problem['prompt']}```"
    else:
        ask = "Solve it in two or three short lines, then give the answer as a number on a last line that starts with ####."
        text = f"{problem['question']}\n\n{ask}"
    return [{"role": "user", "content": text}]


def correct(task: str, problem: dict[str, Any], text: str) -> bool:
    """Whether the answer is right."""
    return _runs(problem, text) if task == "humaneval" else _number(text) == _number(problem["answer"])


def _number(text: str) -> float | None:
    """The number after the last ####, else the last number of the text."""
    found = re.findall(r"-?\$?\d[\d,]*\.?\d*", text.rsplit("####", 1)[-1]) or re.findall(r"-?\d[\d,]*\.?\d*", text)
    if not found:
        return None
    pick = found[0] if "####" in text else found[-1]
    return float(pick.replace(",", "").replace("$", "").rstrip("."))


def _runs(problem: dict[str, Any], text: str) -> bool:
    """Runs the problem's tests on the code of the answer in a process of its own, with limits on time, memory and files."""
    blocks = re.findall(r"```(?:python)?\n(.*?)(?:```|\Z)", text, re.DOTALL)
    code = blocks[0] if blocks else text
    header = problem["prompt"].split("def ")[0]
    program = f"{header}\n{code}\n\n{problem['test']}\n\ncheck({problem['entry_point']})\n"
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", program], cwd=folder, env={}, timeout=15, capture_output=True, preexec_fn=_limit, check=False
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
