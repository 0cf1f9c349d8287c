"""HumanEval: 164 Python functions to write, judged by running their tests (pass@1 of one answer).

The answer's code is run behind `draftwise.bench.sandbox`, with what the prompt has before the function (imports, helpers) put before it.

Chen et al., "Evaluating Large Language Models Trained on Code", 2021, https://arxiv.org/abs/2107.03374.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from dataclasses import dataclass
from typing import Any

from draftwise.bench import sandbox
from draftwise.bench.schema import Problem

PROMPT = (
    "Complete the following Python function. Answer with the whole function, and the imports it needs, in one code block.\n\n```python\n{code}\n```"
)
_FIELDS = ("prompt", "test", "entry_point")
_FENCED = re.compile(r"^[ \t]*(```+|~~~+)[^\n`]*\n(.*?)(?:^[ \t]*\1|\Z)", re.MULTILINE | re.DOTALL)  # a cut answer may leave its fence open


@dataclass(frozen=True)
class HumanEval:
    """Rows {"task_id", "prompt", "entry_point", "test"}. `timeout_s` and `memory_mb` hold for one answer's tests."""

    name: str = "humaneval"
    version: int = 1
    default_max_tokens: int = 512
    files: tuple[str, ...] = ("humaneval*.jsonl", "humaneval*.jsonl.gz", "HumanEval*.jsonl", "HumanEval*.jsonl.gz")
    hub: tuple[str, str, str] | None = ("openai/openai_humaneval", "openai_humaneval", "test")
    url: str = "data/HumanEval.jsonl.gz of https://github.com/openai/human-eval"
    per_group: bool = False
    timeout_s: float = 10.0
    memory_mb: int = 1024

    def problem(self, row: dict[str, Any], line: int) -> Problem:
        """One function. Raises ValueError for fields that are no texts and for a prompt without its function."""
        reference = {field: row[field] for field in _FIELDS}
        if not all(isinstance(value, str) for value in reference.values()):
            raise ValueError(f"{', '.join(_FIELDS)} are texts")
        if not defines(reference["prompt"], reference["entry_point"]):
            raise ValueError(f"the prompt does not begin the function {reference['entry_point']!r}")
        prompt = PROMPT.format(code=reference["prompt"].strip("\n"))
        return Problem(self.name, self.version, str(row["task_id"]), self.name, (prompt,), reference)

    def score(self, problem: Problem, texts: tuple[str, ...]) -> bool:
        """Whether the answer's function passes all its tests, in the sandbox."""
        code = program(problem.reference, texts[-1])
        return code is not None and sandbox.run(code, timeout_s=self.timeout_s, memory_mb=self.memory_mb).ok


def program(reference: dict[str, str], text: str) -> str | None:
    """What to run for an answer: its solution, then the tests. None where it holds no code for the function."""
    name = reference["entry_point"]
    code = solution(reference["prompt"], name, text)
    if code is None:
        return None
    future = r"^from __future__ .*\n"  # these must come first of all
    first, rest = "".join(re.findall(future, code, re.MULTILINE)), re.sub(future, "", code, flags=re.MULTILINE)
    return f"{first}{rest}\n\n{reference['test']}\n\ncheck({name})\n"


def solution(prompt: str, name: str, text: str) -> str | None:
    """The function `name` out of a model's answer, behind what the prompt has before it.

    In this order: the last fenced block that defines it and is whole; the last one that defines it, or text without fences, as far as it can be
    parsed; an indented continuation of the prompt, fenced or not. None if there is nothing of the kind."""
    blocks = [block for _, block in _FENCED.findall(text)]
    written = [code for code in (*map(textwrap.dedent, reversed(blocks)), text) if defines(code, name)]
    whole = [code for code in written if _parses(code)]
    if written:
        start = _definition(name).search(prompt)
        return (prompt[: start.start()] if start else "") + "\n" + (whole[0] if whole else _longest(written[0], name))
    bodies = [body for body in (*reversed(blocks), text) if re.match(r"\s*\n?[ \t]+\S", body)]
    return _longest(prompt.rstrip("\n") + "\n" + bodies[0].lstrip("\n"), name) if bodies else None


def defines(code: str, name: str) -> bool:
    """Whether the code says ``def name(`` or ``name =`` at its outermost level."""
    return _definition(name).search(code) is not None


def _definition(name: str) -> re.Pattern[str]:
    return re.compile(rf"^(?:(?:async[ \t]+)?def[ \t]+{re.escape(name)}[ \t]*\(|{re.escape(name)}[ \t]*(?::[^=\n]+)?=[^=])", re.MULTILINE)


def _parses(code: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "\d" in a string is a warning, and none of ours
        try:
            ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def _longest(code: str, name: str) -> str:
    """The longest run of whole lines that is Python and defines `name`: of an answer that was cut off, or of code with prose around it. It begins
    with the first line that looks like code, or where that was prose ("from what you say"), with the function itself."""
    looks = re.compile(r"^(?:from|import|def|async def|class|@|[A-Za-z_]\w*[ \t]*=)", re.MULTILINE)
    for start in filter(None, (looks.search(code), _definition(name).search(code))):
        lines = code[start.start() :].splitlines()
        while lines and not _parses("\n".join(lines)):
            lines.pop()
        if defines(kept := "\n".join(lines), name):
            return kept
    return ""
