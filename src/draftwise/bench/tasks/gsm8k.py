"""GSM8K: grade-school word problems with one number as the answer.

The last number wins that is marked as final: after the last ``####``, else in the last ``\\boxed{}``, else the last number of the text. Numbers
are compared as exact fractions; thousands commas, currency and percent signs, a trailing dot and LaTeX around them do not count.

Cobbe et al., "Training Verifiers to Solve Math Word Problems", 2021, https://arxiv.org/abs/2110.14168.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from draftwise.bench.schema import Problem

PROMPT = (
    "{question}\n\nWork it out step by step. Then write the result on a last line of its own: four hash signs and the number alone, "
    "without units, like this:\n#### 42"
)

# A minus that something stands right before, or a space behind, subtracts or marks a list; "\u2212" is the typographic one.
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}])(?P<minus>[-\u2212])|(?<![\w.]))[$\u20ac\u00a3]?(?P<inner>[-\u2212])?"
    r"(?P<digits>(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:[eE](?P<power>[+-]?\d{1,2})(?!\d))?(?:\s?/\s?(?P<below>\d+(?:\.\d+)?))?"
)
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{?([\d.,]+)\}?\s*\{([\d.,]+)\}")


@dataclass(frozen=True)
class GSM8K:
    """Rows {"question", "answer"}, the answer's last line "#### number". The id is made of the question's text, as the file has none."""

    name: str = "gsm8k"
    version: int = 1
    default_max_tokens: int = 512
    files: tuple[str, ...] = ("gsm8k*.jsonl", "test.jsonl")
    hub: tuple[str, str, str] | None = ("openai/gsm8k", "main", "test")
    url: str = "grade_school_math/data/test.jsonl of https://github.com/openai/grade-school-math"
    per_group: bool = False

    def problem(self, row: dict[str, Any], line: int) -> Problem:
        """One question. Raises ValueError where question or answer are no texts, or the answer has no number after ####."""
        question, answer = row["question"], row["answer"]
        if not isinstance(question, str) or not isinstance(answer, str):
            raise ValueError(f"question and answer are texts, got {question!r:.40} and {answer!r:.40}")
        wanted = number(answer.rpartition("####")[2]) if "####" in answer else None
        if wanted is None:
            raise ValueError(f"the answer ends with '#### number', got {answer[-40:]!r}")
        label = hashlib.sha256(question.encode()).hexdigest()[:12]
        return Problem(self.name, self.version, f"gsm8k/{label}", self.name, (PROMPT.format(question=question.strip()),), str(wanted))

    def score(self, problem: Problem, texts: tuple[str, ...]) -> bool:
        """Whether the answer's number is the reference's."""
        return final(texts[-1]) == Fraction(problem.reference)


def final(text: str) -> Fraction | None:
    """The number a text gives as its result, or None where it has none."""
    text = _plain(text)
    for tail in reversed(text.split("####")[1:]):  # "#### Step 2" and "#### 2. Add" are headings, no results
        line = next(iter(tail.strip().splitlines()), "").rpartition("=")[2]
        found = re.match(r"[\s*_:\\(\[~\u2248]*", line)
        match = _NUMBER.match(line, found.end() if found else 0)
        if match and not re.match(r"[.)]\s*[^\W\d]", line[match.end() :]) and (value := _value(match)) is not None:
            return value
    for box in reversed(_BOXED.findall(text)):
        if (value := number(box)) is not None:
            return value
    return number(text)


def number(text: str) -> Fraction | None:
    """The last number of a text, exactly, or None: "-1,234.50" "$18." "25%" "3/4" "\\frac{3}{4}" "2e3"."""
    values = [_value(match) for match in _NUMBER.finditer(_plain(text))]
    return next((value for value in reversed(values) if value is not None), None)


def _plain(text: str) -> str:
    """Without the LaTeX that stands in and around numbers."""
    text = text.replace("{,}", ",").replace("\\,", "").replace("\\!", "").replace("\\$", "$").replace("\\%", "%")
    return _FRACTION.sub(r"\1/\2", text)


def _value(match: re.Match[str]) -> Fraction | None:
    """None for a fraction over zero, and for digits without end: int() refuses those."""
    sign = -1 if match["minus"] or match["inner"] else 1
    try:
        return sign * Fraction(match["digits"].replace(",", "")) * Fraction(10) ** int(match["power"] or 0) / Fraction(match["below"] or 1)
    except (ValueError, ZeroDivisionError):
        return None
