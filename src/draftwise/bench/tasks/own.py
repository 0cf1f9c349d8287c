"""Prompts of your own: a JSONL file, one object a line.

{"prompt": "..."} or {"turns": ["...", "..."]}, and if you like
- "id": a text or a whole number, unique in the file (default: the line's number);
- "group" (or "category"): what reports average over (default: the file's name);
- "answer": what the last answer must hold. A number is compared with the answer's result as GSM8K's is (after ####, boxed, or the last number); a
  text must appear in it as whole words, whatever the case and the spaces. Without one, nothing is right or wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from draftwise.bench.schema import Problem
from draftwise.bench.tasks.gsm8k import final

_FIELDS = ("prompt", "turns", "id", "group", "category", "answer")


@dataclass(frozen=True)
class Own:
    """The task of one file; its name is the file's, suffix included, so it can never be that of another task."""

    name: str
    version: int = 1
    default_max_tokens: int = 512
    files: tuple[str, ...] = ()
    hub: tuple[str, str, str] | None = None
    url: str = ""
    per_group: bool = False

    def problem(self, row: dict[str, Any], line: int) -> Problem:
        """One prompt. Raises ValueError for fields that are unknown or of another kind."""
        unknown = [key for key in row if key not in _FIELDS]
        if unknown:
            raise ValueError(f"there is no field {unknown[0]!r}, there are {', '.join(_FIELDS)}")
        if ("prompt" in row) == ("turns" in row):
            raise ValueError('one of "prompt" (a text) and "turns" (a list of texts) is needed')
        turns = [row["prompt"]] if "prompt" in row else row["turns"]
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
            raise ValueError(f"prompts are texts that are not empty, got {turns!r:.80}")
        label, group, answer = row.get("id", line), row.get("group", row.get("category", self.name)), row.get("answer")
        if not isinstance(label, (str, int)) or isinstance(label, bool) or label == "":
            raise ValueError(f"an id is a text or a whole number, got {label!r:.80}")
        if not isinstance(group, str) or not group:
            raise ValueError(f"a group is a text, got {group!r:.80}")
        if isinstance(answer, (bool, list, dict)) or answer == "" or answer in (float("inf"), float("-inf")) or answer != answer:
            raise ValueError(f"an answer is a text that must appear or a number, got {answer!r:.80}")
        return Problem(self.name, self.version, str(label), group, tuple(turns), answer)

    def score(self, problem: Problem, texts: tuple[str, ...]) -> bool | None:
        """Whether the last text holds the answer; None without one."""
        wanted, text = problem.reference, texts[-1]
        if wanted is None:
            return None
        if isinstance(wanted, (int, float)):
            return final(text) == Fraction(str(wanted))
        words = r"\s+".join(map(re.escape, wanted.split()))
        return re.search(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE) is not None
