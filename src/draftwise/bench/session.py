"""One run of the bench from the chosen configuration to the last row: workers checked, jobs done, memory weighed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from draftwise.bench import machine, rendering, setup
from draftwise.bench.hosts import Host, Pool, WorkerError
from draftwise.bench.peers import Setup
from draftwise.bench.peers.ourselves import worker
from draftwise.bench.plan import Job, jobs
from draftwise.bench.run import Asking, Part, Runner, Variant
from draftwise.bench.schema import Problem, Row
from draftwise.bench.setup import Chosen
from draftwise.bench.store import Store, opened

Key = tuple[str, str]
OURS = "draftwise"


class Watch(Protocol):
    """Who shows how far a run is."""

    def tell(self, sentence: str) -> None:
        """Something went wrong, is skipped, or is worth knowing."""
        ...

    def total(self, jobs: int, done: int) -> None:
        """So many jobs there are, so many have their row from before."""
        ...

    def begin(self, what: str) -> None:
        """This is being done now."""
        ...

    def end(self) -> None:
        """A job is over."""
        ...


class Outcome(NamedTuple):
    """`rows`: all of the folder. `missing`: jobs without one. `failed`: variants that were given up, and why. `memory`: peak bytes by variant."""

    rows: list[Row]
    missing: list[Job]
    failed: dict[str, str]
    skipped: list[str]
    memory: dict[str, int]


def bench(
    chosen: Chosen,
    out: Path,
    watch: Watch,
    memory: bool = True,
    timeout_s: float = 3600.0,
    parts: Part | None = None,
    worker: Callable[[Setup], Sequence[str]] = worker,
) -> Outcome:
    """Does what is not done yet. `parts` and `worker` are for tests. Raises ValueError for a folder of another configuration and for methods or
    models that cannot run, before the first job; OSError where rows cannot be kept."""
    with opened(out, chosen.config) as store, Pool(chosen.options.threads, out / "logs") as pool:
        watch.begin("getting ready")
        found = parts or Part(rendering.load(chosen.options.target), partial(setup.score, chosen))
        home = Variant(OURS, tuple(worker(setup.frame(chosen.options, 0))), OURS)
        host, trees = _home(pool, home, chosen.methods)
        for spec in trees if chosen.options.trace else ():
            watch.tell(f"no trace is taken of {spec!r}: it proposes trees, and a trace holds chains")
        sizes = setup.contexts(chosen, found.renderer)
        short = {key: size for key, size in sizes.items() if size <= host.ready["max_length"]}
        _left_out(sizes.keys() - short.keys(), sizes, host.ready["max_length"], watch)
        others, skipped = setup.theirs(chosen, setup.frame(chosen.options, max(short.values(), default=0)))
        for sentence in skipped:
            watch.tell(sentence)
        variants = {some.name: some for some in [*(home._replace(name=name) for name in chosen.methods), *others]}
        runner = _runner(chosen, store, pool, variants, tuple(host.ready["stop_ids"]), timeout_s, found, watch)
        todo = [[problem for problem in some if (problem.task, problem.id) in short] for some in chosen.tasks]
        workers = {name: variant.argv for name, variant in variants.items()}
        missing = _work(runner, jobs(todo, workers, chosen.options.seed, chosen.options.block, chosen.options.samples), watch)
        if memory and short and not missing:
            runner.weigh(_middle([problem for some in todo for problem in some], sizes), lambda name: watch.begin(f"memory of {name}"))
        return Outcome(store.rows, missing, runner.failed, skipped, store.peaks)


def _home(pool: Pool, home: Variant, methods: list[str]) -> tuple[Host, list[str]]:
    """Our own worker, which has loaded the models and would run all methods, and those of them that propose trees. Raises ValueError where it
    cannot."""
    try:
        host = pool.turn(home.argv, home.log)
        answer = host.ask({"check": methods}, 600)
        refused = answer["refused"]
    except WorkerError as error:
        raise ValueError(f"our own engine could not be started: {error}") from None
    if refused:
        raise ValueError("; ".join(f"the method {spec!r} cannot run: {reason}" for spec, reason in refused.items()))
    return host, answer.get("trees", [])


def _left_out(keys: set[Key], sizes: dict[Key, int], most: int, watch: Watch) -> None:
    for task, id in sorted(keys):
        watch.tell(f"{task} {id} is left out: it takes up to {sizes[task, id]} tokens, and the target's context holds {most}")


def _runner(
    chosen: Chosen, store: Store, pool: Pool, variants: dict[str, Variant], stops: tuple[int, ...], timeout_s: float, parts: Part, watch: Watch
) -> Runner:
    options = chosen.options
    asking = Asking(options.temperature, options.top_p, options.seed, stops, chosen.limits, timeout_s)
    facts = machine.facts(options.threads)
    return Runner(store, pool, variants, asking, parts, facts, options.command, options.trace, watch.tell)


def _work(runner: Runner, planned: list[Job], watch: Watch) -> list[Job]:
    """Does the jobs that have no row. Returns those that got none."""
    done = runner.store.keys
    todo = [job for job in planned if job.key not in done]
    watch.total(len(planned), len(planned) - len(todo))
    return runner.run(todo, lambda job: watch.begin(str(job)), lambda _: watch.end())


def _middle(problems: list[Problem], sizes: dict[Key, int]) -> Problem:
    """The problem of median size."""
    return sorted(problems, key=lambda problem: (sizes[problem.task, problem.id], problem.id))[len(problems) // 2]
