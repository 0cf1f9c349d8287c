"""From what was typed to what runs: every name checked before a model is loaded, and the configuration that a folder of rows belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from draftwise import __version__, catalog, picking
from draftwise.bench import peers, plan, tasks
from draftwise.bench.rendering import Renderer
from draftwise.bench.run import Variant
from draftwise.bench.schema import Problem
from draftwise.spec import parse
from draftwise.types import Sampling

PLAIN = "plain"


class Options(NamedTuple):
    """The options of the command, lists split. `limit`, `max_tokens`: as `plan.by_task` takes them. `dtype` and `device` as typed. `samples`: how
    often each problem is asked. `further`: drafts besides `draft`. `backend`, `quantize`, `vocabulary`: as typed."""

    target: str
    draft: str | None
    methods: list[str]
    tasks: list[str]
    peers: list[str]
    limit: str
    max_tokens: str
    temperature: float
    top_p: float
    seed: int
    dtype: str | None
    device: str | None
    threads: int
    data: Path | None
    block: int
    baseline: str
    trace: bool
    command: str
    samples: int = 1
    further: tuple[str, ...] = ()
    backend: str | None = None
    quantize: str | None = None
    vocabulary: str | None = None


class Chosen(NamedTuple):
    """What will run. `tasks`: the problems of each. `judges`: by task, who scores its answers. `limits`: most new tokens by task. `config`: what
    config.json holds."""

    options: Options
    methods: list[str]
    peers: list[peers.Peer]
    tasks: list[list[Problem]]
    judges: Mapping[str, tasks.Task]
    limits: dict[str, int]
    config: dict[str, Any]


def choose(options: Options) -> Chosen:
    """Checks and loads what needs no model. Raises ValueError for what is not there, does not fit, or is out of range."""
    if options.samples < 1:
        raise ValueError(f"--samples takes how often each problem is asked, at least 1, got {options.samples}")
    if options.samples > 1 and not options.temperature:
        raise ValueError("at temperature 0 all samples of a problem are the same: give --samples a --temperature above 0, such as 0.6")
    methods = our_methods(options.methods, options.draft)
    others = [peers.create(spec) for spec in options.peers]
    names = [*methods, *(name for peer in others for name in peer.variants)]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the variant {doubled[0]!r} would be there twice: rows could not tell them apart")
    if options.baseline not in names:
        raise ValueError(f"the baseline {options.baseline!r} is none of the variants: {catalog.suggest(options.baseline, names)}")
    if not options.tasks:
        raise ValueError("name at least one task: --tasks specbench,humaneval,gsm8k or a .jsonl file of your own prompts")
    Sampling(options.temperature, top_p=options.top_p, seed=options.seed)
    Sampling(seed=options.seed + options.samples - 1)
    found = {spec: tasks.find(spec) for spec in options.tasks}
    judges = {task.name: task for task in found.values()}
    counts = plan.by_task(options.limit, dict.fromkeys(judges), "--limit")
    limits = plan.by_task(options.max_tokens, {name: task.default_max_tokens for name, task in judges.items()}, "--max-tokens")
    problems = [tasks.load(spec, options.data, counts[task.name], options.seed) for spec, task in found.items()]
    _unique([problem for some in problems for problem in some])
    return Chosen(options, methods, others, problems, judges, limits, _config(options, methods, problems, counts, limits))


def our_methods(specs: Sequence[str], draft: str | None) -> list[str]:
    """The specs as they are named in rows, plain decoding first; without any, all presets that run with what is given."""
    presets = [e.name for e in catalog.entries("method").values() if e.parts and (draft is not None or not _needs_draft(e))]
    chosen = [str(parse(spec)) for spec in specs] or presets
    for spec in chosen:
        entry = catalog.entry("method", parse(spec).name)
        catalog.method(spec, None, drafter=object())  # any object: a drafter needs the models
        if draft is None and _needs_draft(entry):
            raise ValueError(f"the method {spec!r} needs a draft model: name one with --draft, or take {', '.join(presets)}")
    return list(dict.fromkeys([PLAIN, *chosen]))


def _needs_draft(entry: catalog.Entry) -> bool:
    return entry.parts is not None and parse(entry.parts[2]).name in ("draft-model", "draft-tree", "cascade")


def frame(options: Options, max_context: int) -> peers.Setup:
    """What all engines are told alike."""
    device = picking.pick_device(options.device)
    dtype = str(picking.pick_dtype(options.dtype, device)).removeprefix("torch.")
    own = options.further, options.backend, options.quantize, options.vocabulary
    return peers.Setup(options.target, options.draft, dtype, options.threads, max_context, str(device), *own)


def score(chosen: Chosen, problem: Problem, texts: Sequence[str]) -> bool | None:
    """Whether the answers are right; None where nothing is right or wrong."""
    return chosen.judges[problem.task].score(problem, tuple(texts))


def theirs(chosen: Chosen, setup: peers.Setup) -> tuple[list[Variant], list[str]]:
    """The variants of the peers that can run, and a sentence for each that cannot."""
    found: list[Variant] = []
    skipped: list[str] = []
    for peer in chosen.peers:
        if reason := peer.missing(setup):
            skipped.append(f"{peer.name} is skipped: {reason}; it is installed by: {peer.install}")
            continue
        for name in peer.variants:
            try:
                found.append(Variant(name, tuple(peer.command(setup, name)), name))
            except ValueError as error:
                skipped.append(f"{name} is skipped: {error}")
    return found, skipped


def contexts(chosen: Chosen, renderer: Renderer) -> dict[tuple[str, str], int]:
    """By (task, id), how many tokens prompt and answers take at most."""
    found = {}
    for problem in (problem for some in chosen.tasks for problem in some):
        turns = len(problem.turns)
        prompt = len(renderer.ids(problem.turns, [""] * (turns - 1)))
        found[problem.task, problem.id] = prompt + turns * chosen.limits[problem.task] + 16 * (turns - 1)  # an answer's ids may part anew
    return found


def _unique(problems: Sequence[Problem]) -> None:
    seen = set()
    for problem in problems:
        if (problem.task, problem.id) in seen:
            raise ValueError(f"the task {problem.task!r} has two problems named {problem.id!r}: rows could not tell them apart")
        seen.add((problem.task, problem.id))


def _config(
    options: Options, methods: list[str], problems: list[list[Problem]], counts: dict[str, int | None], limits: dict[str, int]
) -> dict[str, Any]:
    setup = frame(options, 0)
    asked: dict[str, Any] = {"samples": options.samples} if options.samples > 1 else {}  # only what was asked for: older folders go on
    asked |= {"further": list(options.further)} if options.further else {}
    return asked | {
        "draftwise": __version__,
        "command": options.command,
        "baseline": options.baseline,
        "target": options.target,
        "draft": options.draft,
        "methods": methods,
        "peers": options.peers,
        "tasks": {some[0].task: {"version": some[0].version, "problems": len(some), "hash": plan.fingerprint(some)} for some in problems},
        "limit": counts,
        "max_tokens": limits,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "seed": options.seed,
        "dtype": setup.dtype,
        "device": setup.device,
        "threads": options.threads,
        "trace": options.trace,
        **{name: value for name in ("backend", "quantize", "vocabulary") if (value := getattr(options, name))},
    }
