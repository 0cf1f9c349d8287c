"""The tasks of the bench: a name or a file of your own -> problems, and whether an answer is right.

A named task is read from a local file where one of its usual names lies in the data folder, else through the `datasets` package from the Hub.

Each task has a `version`. Any change of a prompt's wording or of the scoring raises it: scores of two versions are not comparable.
"""

from __future__ import annotations

import difflib
import gzip
import importlib
import json
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from draftwise.bench.schema import Problem

TASKS = {
    "specbench": "draftwise.bench.tasks.specbench:SpecBench",
    "humaneval": "draftwise.bench.tasks.humaneval:HumanEval",
    "gsm8k": "draftwise.bench.tasks.gsm8k:GSM8K",
}
_OWN = "draftwise.bench.tasks.own:Own"
_Rows = Iterable[tuple[str, dict[str, Any]]]  # where a row comes from, in words, and the row


class Task(Protocol):
    """One task, a frozen dataclass in a file of its own. `files`: patterns of local names, the best first; `hub`: (dataset, configuration,
    split) or None; `url`: where a person finds the file; `per_group`: whether a limit counts for each group by itself."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def default_max_tokens(self) -> int: ...
    @property
    def files(self) -> tuple[str, ...]: ...
    @property
    def hub(self) -> tuple[str, str, str] | None: ...
    @property
    def url(self) -> str: ...
    @property
    def per_group(self) -> bool: ...
    def problem(self, row: dict[str, Any], line: int) -> Problem:
        """One row of the upstream file, `line` counted from 1. Raises KeyError for a missing field, ValueError for an impossible one."""
        ...

    def score(self, problem: Problem, texts: tuple[str, ...]) -> bool | None:
        """Whether the answers (one text per turn) are right; None where nothing is right or wrong."""
        ...


def find(spec: str) -> Task:
    """The task of a name in TASKS, or of a path to a JSONL file. Raises ValueError where `spec` looks like neither."""
    if spec in TASKS:
        return _build(TASKS[spec])
    if spec.endswith((".jsonl", ".jsonl.gz")):
        return _build(_OWN, Path(spec).name)
    near = difflib.get_close_matches(spec, TASKS, 1, 0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"there is no task {spec!r}: {hint}there are {', '.join(TASKS)}, or the path of a .jsonl file of your own prompts")


def source(spec: str, data: Path | None = None) -> Path | None:
    """The file a task is read from, or None where it comes from the Hub. In `data` the first match counts: the task's patterns in their order,
    names of one pattern in alphabetical order. Raises ValueError where `data` or a path is missing."""
    task = find(spec)
    if spec not in TASKS:
        if not Path(spec).is_file():
            raise ValueError(f"there is no file {spec!r}: give {', '.join(TASKS)}, or the path of an existing .jsonl file of your own prompts")
        return Path(spec)
    if data is not None and not data.is_dir():
        raise ValueError(f"the data folder {str(data)!r} is not there: give the folder that holds {' or '.join(task.files)}")
    found = [path for pattern in task.files for path in sorted(data.glob(pattern)) if path.is_file()] if data else []
    return found[0] if found else None


def load(spec: str, data: Path | None = None, limit: int | None = None, seed: int = 0) -> list[Problem]:
    """The problems of a task, in the file's order.

    `limit`: that many problems of the task; of Spec-Bench that many of each of its six groups, so that a short run still compares translation
    with summarization. They lie at even distances in the file, from a start that only `seed` decides: its eight conversation categories, which
    are sorted in the file, are then met alike. Raises ValueError for files that are missing, empty or broken (with the line)."""
    if limit is not None and limit < 1:
        raise ValueError(f"the limit of problems is at least 1, got {limit}")
    task, path = find(spec), source(spec, data)
    problems = _problems(task, _file(path) if path else _hub(task, data))
    if not problems:
        raise ValueError(f"{path or task.name} holds no problem: it is empty")
    if limit is None:
        return problems
    groups = {problem.group for problem in problems} if task.per_group else {None}
    kept = {p.id for group in groups for p in _spread([p for p in problems if group in (None, p.group)], limit, seed)}
    return [problem for problem in problems if problem.id in kept]


def max_tokens(spec: str) -> int:
    """How many new tokens an answer of this task may have where nobody says otherwise."""
    return find(spec).default_max_tokens


def score(problem: Problem, texts: Sequence[str]) -> bool | None:
    """Whether the answers to a problem are right (one text per turn), or None where nothing is right or wrong. Raises ValueError for a problem
    of another version of its task: its score would mean something else."""
    task = find(problem.task)
    if problem.version != task.version:
        raise ValueError(f"{problem.id} is of version {problem.version} of {task.name}, which is at version {task.version} now")
    return task.score(problem, tuple(texts))


def _build(target: str, *arguments: str) -> Task:
    module, _, attribute = target.partition(":")
    task: Task = getattr(importlib.import_module(module), attribute)(*arguments)
    return task


def _problems(task: Task, rows: _Rows) -> list[Problem]:
    """Rows to problems, with the place of a broken one in the error."""
    problems: list[Problem] = []
    places: dict[str, str] = {}
    for number, (place, row) in enumerate(rows, 1):
        try:
            problem = task.problem(row, number)
            "".join(problem.turns).encode()  # half a surrogate pair is no text that a tokenizer takes
        except KeyError as error:
            raise ValueError(f"{place}: a problem of {task.name} needs the field {error}, there are {', '.join(row) or 'none'}") from None
        except UnicodeEncodeError:
            raise ValueError(f"{place}: half a surrogate pair is no text") from None
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        if problem.id in places:
            raise ValueError(f"{place}: the id {problem.id!r} is taken by {places[problem.id]}")
        places[problem.id] = place
        problems.append(problem)
    return problems


def _file(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, gzip or plain, with their lines; blank lines are passed over."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path}, line {number}", _row(line, f"{path}, line {number}")
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is no whole gzip file: {error}") from None


def _row(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: not UTF-8 at byte {error.start + 1} of the line") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{place}: an object like {{...}} is wanted, not {type(row).__name__}")
    return row


def _hub(task: Task, data: Path | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a dataset on the Hub."""
    folder = f"in {data}" if data else "(no data folder was given)"
    file = f"download {task.url} and give the folder that holds it as data; looked for {', '.join(task.files)} {folder}"
    if task.hub is None:
        raise ValueError(f"{task.name} is read from a file: {file}")
    dataset, configuration, split = task.hub
    try:
        load_dataset = importlib.import_module("datasets").load_dataset
    except ImportError:
        raise ValueError(f"{task.name} is not here: pip install datasets, or {file}") from None
    try:
        rows = load_dataset(dataset, configuration, split=split)
    except Exception as error:  # no network, a proxy, a cache that cannot be written: the package has many ways to say it
        raise ValueError(f"{task.name} could not be had from the Hub as {dataset} ({type(error).__name__}: {error}): {file}") from None
    for number, row in enumerate(rows, 1):
        yield f"{dataset}, row {number}", dict(row)


def _spread(problems: Sequence[Problem], count: int, seed: int) -> Sequence[Problem]:
    """`count` problems at even distances, each equally likely over the seeds."""
    start, step = random.Random(seed).random(), len(problems) / count
    return [problems[int((i + start) * step)] for i in range(count)] if count < len(problems) else problems
