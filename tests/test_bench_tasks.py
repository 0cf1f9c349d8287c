"""The tasks of the bench: reading, choosing, prompts, and what counts as right."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import types
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftwise.bench import tasks
from draftwise.bench.schema import Problem
from draftwise.bench.tasks import gsm8k, humaneval, specbench

DOUBLE = {
    "task_id": "HumanEval/900",
    "prompt": (
        'import math\n\n\ndef helper(x):\n    return x + x\n\n\ndef double(x: float) -> float:\n    """ Twice x.\n    >>> double(2)\n    4\n    """\n'
    ),
    "entry_point": "double",
    "canonical_solution": "    return helper(math.floor(x)) if x == math.floor(x) else 2 * x\n",
    "test": (
        "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0.5) == 1.0\n    assert helper(1) == 2\n"
    ),
}
APPLES = {"question": "Ann has 1,200 apples and sells half. How many are left?", "answer": "She sells 1200/2 = <<1200/2=600>>600.\n#### 600"}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def spec_rows(each: int = 8) -> list[dict[str, Any]]:
    """A small Spec-Bench, sorted by category as the real one is."""
    categories = [c for c in specbench.TALKS for _ in range(each // 8)] + [g for g in specbench.GROUPS[:-1] for _ in range(each)]
    return [
        {"question_id": i, "category": category, "turns": [f"say {i}"] + ["and again"] * (category in specbench.TALKS)}
        for i, category in enumerate(categories)
    ]


# Reading and choosing


def test_importing_the_tasks_needs_no_torch() -> None:
    code = "import sys, draftwise.bench.tasks.humaneval, draftwise.bench.tasks.own; sys.exit('torch' in sys.modules or 'datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_limit_of_specbench_counts_for_each_group(tmp_path: Path) -> None:
    write(tmp_path / "question.jsonl", *spec_rows(16))
    everything = tasks.load("specbench", tmp_path)
    assert len(everything) == 96 and len({p.reference for p in everything}) == 13
    some = tasks.load("specbench", tmp_path, 2, seed=3)
    assert [p.group for p in some] == ["multi-turn"] * 2 + [g for g in specbench.GROUPS[:-1] for _ in range(2)]
    assert [p for p in everything if p in some] == some  # in the file's order
    assert len({p.reference for p in tasks.load("specbench", tmp_path, 8) if p.group == "multi-turn"}) == 8
    assert some[0].turns[1:] == ("and again",) and tasks.score(some[0], ("a", "b")) is None
    assert some[0] == Problem("specbench", 1, f"specbench/{some[0].turns[0][4:]}", "multi-turn", some[0].turns, some[0].reference)


@settings(deadline=None)
@given(count=st.integers(1, 40), total=st.integers(1, 60), seed=st.integers(0, 2**32))
def test_the_choice_is_spread_evenly(count: int, total: int, seed: int) -> None:
    problems = [Problem("t", 1, str(i), "g", ("x",)) for i in range(total)]
    chosen = [int(p.id) for p in tasks._spread(problems, count, seed)]
    assert len(chosen) == len(set(chosen)) == min(count, total) and chosen == sorted(chosen)
    gaps = {b - a for a, b in zip(chosen, chosen[1:], strict=False)}
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert chosen == [int(p.id) for p in tasks._spread(problems, count, seed)]


def test_the_seed_decides_which(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k.jsonl", *({"question": f"{i}?", "answer": f"#### {i}"} for i in range(50)))
    chosen = {tuple(p.id for p in tasks.load("gsm8k", tmp_path, 5, seed)) for seed in range(8)}
    assert len(chosen) > 4 and all(len(some) == 5 for some in chosen)


def test_the_first_matching_file_is_read_and_can_be_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", {"question": "q", "answer": "#### 1"})
    assert tasks.source("gsm8k", tmp_path) == tmp_path / "test.jsonl"
    write(tmp_path / "gsm8k_train.jsonl", {"question": "q", "answer": "#### 2"})
    write(tmp_path / "gsm8k_dev.jsonl", {"question": "q", "answer": "#### 3"})
    assert tasks.source("gsm8k", tmp_path) == tmp_path / "gsm8k_dev.jsonl"
    assert tasks.load("gsm8k", tmp_path)[0].reference == "3"
    assert tasks.source("humaneval", tmp_path) is None and tasks.source("humaneval") is None
    with gzip.open(tmp_path / "HumanEval.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps(DOUBLE) + "\n\n")
    assert [p.id for p in tasks.load("humaneval", tmp_path)] == ["HumanEval/900"]
    (tmp_path / "HumanEval.jsonl.gz").write_bytes((tmp_path / "HumanEval.jsonl.gz").read_bytes()[:-20])
    with pytest.raises(ValueError, match="no whole gzip file"):
        tasks.load("humaneval", tmp_path)


def test_the_hub_where_no_file_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def load_dataset(*arguments: str, split: str) -> list[dict[str, str]]:
        asked.append((*arguments, split))
        if arguments[0] != "openai/gsm8k":
            raise ConnectionError("no route")
        return [APPLES]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert tasks.load("gsm8k", tmp_path)[0].reference == "600"
    assert asked == [("openai/gsm8k", "main", "test")]
    with pytest.raises(ValueError, match=r"not be had from the Hub as openai/openai_humaneval \(ConnectionError: no route\): download .*human-eval"):
        tasks.load("humaneval")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets, or download .*grade-school-math"):
        tasks.load("gsm8k")
    with pytest.raises(ValueError, match=r"specbench is read from a file: download .*hemingkx/Spec-Bench.* looked for specbench\*.jsonl"):
        tasks.load("specbench", tmp_path)


def test_what_cannot_be_read_is_named_with_its_line(tmp_path: Path) -> None:
    def error(*rows: Any, spec: str = "gsm8k", name: str = "gsm8k.jsonl") -> str:
        write(tmp_path / name, *rows)
        with pytest.raises(ValueError) as caught:
            tasks.load(str(tmp_path / name) if spec == "own" else spec, tmp_path)
        return str(caught.value)

    assert "gsm8k.jsonl holds no problem" in error("", "")
    assert "gsm8k.jsonl, line 2: not JSON" in error(APPLES, '{"question": ')
    assert "line 3: an object like {...} is wanted, not list" in error(APPLES, "", "[1]")
    assert "line 1: a problem of gsm8k needs the field 'answer', there are question" in error({"question": "?"})
    assert "line 1: the answer ends with '#### number', got 'six'" in error({"question": "?", "answer": "six"})
    assert "line 1: question and answer are texts" in error({"question": "?", "answer": 6})
    assert f"line 2: the id 'gsm8k/{tasks_id(APPLES)}' is taken by {tmp_path / 'gsm8k.jsonl'}, line 1" in error(APPLES, APPLES)
    assert "has no category 'poems'" in error({"question_id": 1, "category": "poems", "turns": ["x"]}, spec="specbench", name="question.jsonl")
    assert "the turns are a list of texts" in error({"question_id": 1, "category": "qa", "turns": "x"}, spec="specbench", name="question.jsonl")
    assert "does not begin the function 'f'" in error(DOUBLE | {"entry_point": "f"}, spec="humaneval", name="humaneval.jsonl")
    assert "half a surrogate pair" in error('{"prompt": "\\ud83d"}', spec="own", name="own.jsonl")
    (tmp_path / "own.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    with pytest.raises(ValueError, match="own.jsonl, line 2: not UTF-8 at byte 13"):
        tasks.load(str(tmp_path / "own.jsonl"))


def tasks_id(row: dict[str, str]) -> str:
    return gsm8k.GSM8K().problem(row, 1).id.removeprefix("gsm8k/")


def test_what_is_no_task_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no task 'gsm8': did you mean 'gsm8k'"):
        tasks.load("gsm8")
    with pytest.raises(ValueError, match="there is no file 'nowhere/own.jsonl'"):
        tasks.load("nowhere/own.jsonl")
    with pytest.raises(ValueError, match="the data folder .* is not there"):
        tasks.load("gsm8k", tmp_path / "none")
    with pytest.raises(ValueError, match="at least 1, got 0"):
        tasks.load("gsm8k", tmp_path, 0)
    with pytest.raises(ValueError, match="of version 0 of gsm8k, which is at version 1"):
        tasks.score(Problem("gsm8k", 0, "x", "gsm8k", ("q",), "1"), ("1",))
    assert [tasks.max_tokens(name) for name in (*tasks.TASKS, "own.jsonl")] == [1024, 512, 512, 512]


# Prompts of one's own


def test_prompts_of_ones_own(tmp_path: Path) -> None:
    path = write(
        tmp_path / "own.jsonl",
        "\ufeff" + json.dumps({"prompt": "Say hello."}),
        {"turns": ["one", "two"], "id": "talk", "group": "chat", "answer": "Blue  whale"},
        {"prompt": "6 * 7?", "id": 7, "category": "sums", "answer": 42},
        {"prompt": "0.1 + 0.2?", "answer": 0.3},
    )
    plain, talk, product, total = problems = tasks.load(str(path))
    assert [(p.task, p.id, p.group, len(p.turns)) for p in problems] == [
        ("own.jsonl", "1", "own.jsonl", 1), ("own.jsonl", "talk", "chat", 2), ("own.jsonl", "7", "sums", 1), ("own.jsonl", "4", "own.jsonl", 1),
    ]  # fmt: skip
    assert tasks.score(plain, ("anything",)) is None
    assert tasks.score(talk, ("a blue whale", "It is a BLUE\nwhale.")) is True
    assert tasks.score(talk, ("a blue whale", "blue whales")) is False
    assert tasks.score(product, ("It is 42.",)) is True and tasks.score(product, ("42, no, 43",)) is False
    assert tasks.score(total, ("#### 0.30",)) is True
    assert tasks.load(str(path), limit=2, seed=1) == [p for p in problems if p in tasks.load(str(path), limit=2, seed=1)]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, "one of"),
        ({"prompt": "a", "turns": ["b"]}, "one of"),
        ({"prompt": " "}, "not empty"),
        ({"turns": []}, "not empty"),
        ({"turns": "abc"}, "not empty"),
        ({"prompt": 3}, "not empty"),
        ({"prompt": "a", "messages": []}, "no field 'messages', there are prompt, turns"),
        ({"prompt": "a", "id": True}, "an id is"),
        ({"prompt": "a", "id": ""}, "an id is"),
        ({"prompt": "a", "group": 1}, "a group is"),
        ({"prompt": "a", "answer": ["b"]}, "an answer is"),
        ({"prompt": "a", "answer": ""}, "an answer is"),
        ({"prompt": "a", "answer": float("nan")}, "an answer is"),
        ({"prompt": "a", "answer": float("inf")}, "an answer is"),
    ],
)
def test_own_prompts_that_are_refused(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"own.jsonl, line 1: .*{said}"):
        tasks.load(str(write(tmp_path / "own.jsonl", row)))


# GSM8K


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("6 + 4 = 10\n#### 10", 10),
        ("#### 1\nno, wrong.\n#### $1,234.50.", "1234.5"),
        ("#### **18**", 18),
        ("#### 18 eggs in 3 days", 18),
        ("#### 3 + 4 = 7", 7),
        ("#### x = -5", -5),
        ("####\n12", 12),
        ("#### Step 2: add them\nThe total is 30 apples.", 30),
        ("#### 2. Add them\nThe total is 30.", 30),
        ("#### Answer: 5", 5),
        ("so \\boxed{3} or rather \\boxed{\\$1{,}000} for 2 days", 1000),
        ("\\[ \\boxed{\\frac{3}{4}} \\]", "3/4"),
        ("\\boxed{\\text{about } 20\\%}", 20),
        ("He has 5 apples and 7 pears, 12 in all.", 12),
        ("a loss of -$40", -40),
        ("a loss of $-40", -40),
        ("a loss of \u221240 dollars", -40),
        ("10-5", 5),
        ("10 - 5", 5),
        ("- 5 apples", 5),
        ("one of (1,-2)", -2),
        ("1, 2,3", 3),
        ("US$5", 5),
        ("#### \\(\\frac{1}{2}\\)", "1/2"),
        ("#### [12]", 12),
        ("half is 1/2", "1/2"),
        ("2e3 of them", 2000),
        (".5 litres", "1/2"),
        ("in H2O", None),
        ("none", None),
        ("", None),
        ("####", None),
        ("1/0 is nothing, 4 is", 4),
        ("4 and 1/0", 4),
        ("9" * 6000, None),
    ],
)
def test_the_result_of_a_text(text: str, wanted: Any) -> None:
    assert gsm8k.final(text) == (None if wanted is None else Fraction(wanted))


@settings(deadline=None)
@given(value=st.decimals(-(10**9), 10**9, places=2), lead=st.sampled_from(["#### ", "The answer is $", "= \\boxed{"]))
def test_any_number_is_read_back(value: Any, lead: str) -> None:
    shown = f"{value:,}" + "}" * lead.endswith("{")
    if not lead.endswith("$"):
        assert gsm8k.final("3 cats.\n" + lead + shown) == Fraction(value)
    assert gsm8k.final(f"3 cats, {value}.") == Fraction(value)


def test_gsm8k_problems_score_right_on_their_own_answers(tmp_path: Path) -> None:
    (problem,) = tasks.load("gsm8k", Path(write(tmp_path / "gsm8k.jsonl", APPLES)).parent)
    assert problem.turns[0].startswith(APPLES["question"]) and "####" in problem.turns[0]
    assert tasks.score(problem, (APPLES["answer"],)) is True
    assert tasks.score(problem, ("#### 601",)) is False
    assert tasks.score(problem, ("",)) is False


# HumanEval


@pytest.fixture
def double() -> Problem:
    return humaneval.HumanEval().problem(DOUBLE, 1)


def test_humaneval_prompt_and_reference(double: Problem) -> None:
    assert double.turns[0].endswith("```python\n" + DOUBLE["prompt"].strip("\n") + "\n```")
    assert json.loads(json.dumps(double.reference)) == {key: DOUBLE[key] for key in ("prompt", "test", "entry_point")}


WHOLE = DOUBLE["prompt"] + DOUBLE["canonical_solution"]
BARE = "def double(x):\n    return x + x\n"


@pytest.mark.parametrize(
    "text",
    [
        f"Here it is:\n```python\n{WHOLE}```\nIt works.",
        f"```python\n{BARE}```\nUse it so:\n```python\nprint(double(3))\n```",
        f"```\n{BARE}```",
        f"~~~python\n{BARE}~~~",
        f"```python\nfrom __future__ import annotations\nimport math\n{BARE}```",
        f"First try:\n```python\ndef double(x):\n    return x\n```\nBetter:\n```python\n{BARE}```",
        f"```python\n{BARE}```\nThe same again with notes:\n```python\ndef double(x):\n    # twi",
        f"```python\n{BARE}\nprint(double(2",
        "1. Like this:\n   ```python\n   def double(x):\n       return x + x\n   ```\n",
        "```python\ndouble = lambda x: x + x\n```",
        BARE,
        f"Sure, this is it:\n\n{BARE}\nIt doubles x.",
        f"Hello,\nfrom what you say it is this:\n\n{BARE}\nfrom me",
        f"{BARE}```\nThat was it.",
        DOUBLE["canonical_solution"],
        f"```python\n{DOUBLE['canonical_solution']}```",
        f"```python\n{BARE}if __name__ == '__main__':\n    raise SystemExit(double(1))\n```",
        f"```python\n{BARE}\nPATTERN = '\\d'\n```",
    ],
)
def test_answers_that_pass(text: str, double: Problem) -> None:
    code = humaneval.program(double.reference, text)
    assert tasks.score(double, (text,)) is True, code


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot do that.",
        "```python\ndef other(x):\n    return x + x\n```",
        "```python\ndef double(x):\n    return x\n```",
        "```python\ndef double(x):\n    return x +\n```",
        "```python\nimport sys\ndef double(x):\n    sys.exit(0)\n```",
        "```python\nimport os\nos._exit(0)\ndef double(x):\n    return x + x\n```",
        "```python\nclass Solution:\n    def double(self, x):\n        return x + x\n```",
        "def double(x):\n    while True:\n        try:\n            raise ValueError\n        except BaseException:\n            continue\n",
    ],
)
def test_answers_that_do_not_pass(text: str) -> None:
    task = humaneval.HumanEval(timeout_s=0.5)
    assert task.score(task.problem(DOUBLE, 1), (text,)) is False


@settings(deadline=None)
@given(st.text(st.sampled_from("`~ \ndefdouble(x):ret\"'#\\\t"), max_size=200))
def test_any_text_is_judged_without_an_error(text: str) -> None:
    code = humaneval.solution(DOUBLE["prompt"], "double", text)
    assert code is None or isinstance(code, str)
