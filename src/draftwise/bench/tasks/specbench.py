"""Spec-Bench: 480 prompts in six groups of 80, the field's usual measure of speculative decoding. Nothing is right or wrong: speed only.

Five groups have one turn each (translation, summarization, question answering, mathematics, retrieval); the sixth holds the eight categories
of MT-bench, with a second turn that builds on the first answer: 13 categories in all. Prompts are used as they are.

Xia et al., "Unlocking Efficiency in Large Language Model Inference: A Comprehensive Survey of Speculative Decoding", Findings of ACL 2024,
https://arxiv.org/abs/2401.07851.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from draftwise.bench.schema import Problem

GROUPS = ("translation", "summarization", "qa", "math_reasoning", "rag", "multi-turn")
TALKS = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")


@dataclass(frozen=True)
class SpecBench:
    """Rows {"question_id", "category", "turns"}. The group is one of GROUPS, the category stays in the problem's reference. There is no
    official dataset on the Hub. 1024 tokens are what the benchmark itself allows."""

    name: str = "specbench"
    version: int = 1
    default_max_tokens: int = 1024
    files: tuple[str, ...] = ("specbench*.jsonl", "spec_bench*.jsonl", "spec-bench*.jsonl", "spec_bench/question.jsonl", "question.jsonl")
    hub: tuple[str, str, str] | None = None
    url: str = "data/spec_bench/question.jsonl of https://github.com/hemingkx/Spec-Bench"
    per_group: bool = True

    def problem(self, row: dict[str, Any], line: int) -> Problem:
        """One question. Raises ValueError for a category that Spec-Bench does not have and for turns that are no texts."""
        category, turns = row["category"], row["turns"]
        if category not in GROUPS[:-1] + TALKS:
            raise ValueError(f"Spec-Bench has no category {category!r}, it has {', '.join(GROUPS[:-1] + TALKS)}")
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn for turn in turns):
            raise ValueError(f"the turns are a list of texts, got {turns!r:.80}")
        group = "multi-turn" if category in TALKS else category
        return Problem(self.name, self.version, f"specbench/{row['question_id']}", group, tuple(turns), category)

    def score(self, problem: Problem, texts: tuple[str, ...]) -> None:
        """None: its answers are not judged."""
        return None
