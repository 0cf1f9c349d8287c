"""The loop over jobs: the right worker awake, warm, asked, and its answer kept as a row before the next job starts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from draftwise.bench import machine
from draftwise.bench.hosts import Host, Pool, WorkerError
from draftwise.bench.plan import Job
from draftwise.bench.rendering import Renderer
from draftwise.bench.schema import Pass, Problem, Row, Turn
from draftwise.bench.store import Store

WARM_UP = ("Write the numbers from one to thirty in words, and then say which of them are prime.", 24)
"""A prompt of no task, so that no engine finds a measured prompt in its cache, and how many tokens of answer warm an engine up."""
_WEIGHING = 32  # tokens of the request whose memory is measured

_TOTALS = ("accepted", "drafted", "passes")  # of engines that tell no single passes


class Variant(NamedTuple):
    """Who answers under a name: the worker's argv, and what its log is called."""

    name: str
    argv: tuple[str, ...]
    log: str


class Asking(NamedTuple):
    """What is the same in all requests. `max_tokens`: by task. `timeout_s`: of one answer."""

    temperature: float
    top_p: float
    seed: int
    stop_ids: tuple[int, ...]
    max_tokens: Mapping[str, int]
    timeout_s: float = 3600.0


class Part(NamedTuple):
    """The parts of a run that tests replace: words to ids, and the judge of answers."""

    renderer: Renderer
    score: Callable[[Problem, Sequence[str]], bool | None]


@dataclass
class Runner:
    """Turns jobs into rows. `tell` hears one sentence for each thing that went wrong; `failed`: variants given up in this run, and why."""

    store: Store
    pool: Pool
    variants: Mapping[str, Variant]
    asking: Asking
    parts: Part
    machine: dict[str, Any]
    command: str
    trace: bool = False
    tell: Callable[[str], None] = lambda _: None
    failed: dict[str, str] = field(default_factory=dict)

    def run(self, jobs: Sequence[Job], begin: Callable[[Job], None], end: Callable[[Job], None]) -> list[Job]:
        """Does the jobs in order; `begin` and `end` are told of each. Returns those that gave no row. Raises OSError where rows cannot be kept."""
        missing = []
        for job in jobs:
            begin(job)
            row = None if job.variant in self.failed else self._twice(job)
            if row is None:
                missing.append(job)
            else:
                self.store.add(row)
            end(job)
        return missing

    def weigh(self, prompt: Problem, begin: Callable[[str], None]) -> None:
        """Measures the memory of each variant in a worker of its own, after one answer to `prompt`."""
        for variant in self.variants.values():
            if variant.name in self.failed or variant.name in self.store.peaks:
                continue
            begin(variant.name)
            self.pool.close()
            try:
                self.store.weigh(self._weighed(variant, prompt))
            except WorkerError as error:
                self.tell(f"the memory of {variant.name} could not be measured: {error}")
            self.pool.close()

    def _twice(self, job: Job) -> Row | None:
        """The row; after an error once more in a fresh process; after a second one the variant has failed."""
        for again in ("once more in a fresh process", f"{job.variant} is left out of this run; the same command tries it again"):
            try:
                return self._row(job)
            except WorkerError as error:
                self.failed[job.variant] = str(error)
                self.tell(f"{job}: {error}; {again}")
                self.pool.drop(self.variants[job.variant].argv)
        return None

    def _row(self, job: Job) -> Row:
        problem, variant = job.problem, self.variants[job.variant]
        host = self._warm(variant)
        self._catch_up(host, job)
        turns = self._turns(host, job, self.trace)
        self.failed.pop(variant.name, None)  # its first attempt may have failed
        return Row(
            *problem[:4], variant.name, host.ready["engine"], host.ready["precision"], tuple(turns),
            self.parts.score(problem, [turn.text for turn in turns]), self._seed(job), machine.with_worker(self.machine, host.ready), self.command,
            job.sample,
        )  # fmt: skip

    def _turns(self, host: Host, job: Job, trace: bool = False) -> list[Turn]:
        """The answers of one job. Before the first sample of a problem the worker forgets what it has learnt from others."""
        problem, turns = job.problem, list[Turn]()
        for i in range(len(problem.turns)):
            ids = self.parts.renderer.ids(problem.turns[: i + 1], [turn.text for turn in turns])
            request = self._request(job.variant, ids, self.asking.max_tokens[problem.task]) | {"seed": self._seed(job)}
            if trace:
                request["trace"] = str(self._trace_file(job, i))
            if job.sample == i == 0:
                request["afresh"] = True
            turns.append(self._turn(host.ask(request, self.asking.timeout_s), len(ids)))
        if job.sample is not None:
            host.learnt[job.variant] = problem.task, problem.id, job.sample + 1
        return turns

    def _catch_up(self, host: Host, job: Job) -> None:
        """Has the earlier samples of the problem answered again, unmeasured, by a worker that has not seen them: after a resumption."""
        task, id, seen = host.learnt.get(job.variant, ("", "", 0))
        seen = seen if (task, id) == (job.problem.task, job.problem.id) else 0
        for sample in range(seen if seen <= (job.sample or 0) else 0, job.sample or 0):
            self._turns(host, job._replace(sample=sample))

    def _seed(self, job: Job) -> int:
        return self.asking.seed + (job.sample or 0)

    def _warm(self, variant: Variant) -> Host:
        """Its worker, after a request that is not measured if this variant has not run in this process yet."""
        host = self.pool.turn(variant.argv, variant.log)
        if variant.name not in host.warm:
            words, tokens = WARM_UP
            host.ask(self._request(variant.name, self.parts.renderer.ids([words], []), tokens), self.asking.timeout_s)
            host.warm.add(variant.name)
        return host

    def _request(self, variant: str, ids: list[int], max_tokens: int) -> dict[str, Any]:
        asking = self.asking
        fixed = {"temperature": asking.temperature, "top_p": asking.top_p, "seed": asking.seed, "stop_ids": list(asking.stop_ids)}
        return {"variant": variant, "ids": ids, "max_tokens": max_tokens} | fixed

    def _turn(self, answer: Mapping[str, Any], prompt_tokens: int) -> Turn:
        try:
            tokens = tuple(int(token) for token in answer["tokens"])
            totals: dict[str, Any] = {name: answer[name] for name in _TOTALS if answer.get(name) is not None}
            return Turn(
                tokens,
                self.parts.renderer.text(tokens),
                float(answer["seconds"]),
                prompt_tokens,
                tuple((float(s), int(n)) for s, n in answer.get("arrivals") or ()),
                str(answer.get("finish_reason") or ""),
                str(answer.get("origins") or ""),
                tuple(Pass(*some) for some in answer.get("rounds") or ()),
                **totals,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise WorkerError(f"gave an answer that is none ({type(error).__name__}: {error})") from None

    def _trace_file(self, job: Job, turn: int) -> Path:
        """Where the trace of one answer goes; ids and specs may hold any character."""
        name = "-".join(re.sub(r"[^\w.=]+", "_", str(part)) for part in (*job.key, turn))
        folder = (self.store.folder / "trace").absolute()
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.npz"

    def _weighed(self, variant: Variant, prompt: Problem) -> dict[str, Any]:
        host = self.pool.turn(variant.argv, variant.log)
        loading = host.peak()
        ids = self.parts.renderer.ids(prompt.turns[:1], [])
        host.ask(self._request(variant.name, ids, _WEIGHING), self.asking.timeout_s)
        return {"variant": variant.name, "peak_bytes": host.peak(), "loading_bytes": loading, "precision": host.ready["precision"]}
