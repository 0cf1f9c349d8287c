"""`draftwise plan`: which models to stack, from measured costs and agreement."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from draftwise.commands import options, prompts
from draftwise.commands.generate import check

if TYPE_CHECKING:
    from draftwise.api import Speculator
    from draftwise.bench.hierarchy import Plan, Text


def plan(
    models: Annotated[str, typer.Option("--models", help="Models with commas between them, the target last.")],
    prompts_file: Annotated[
        Path | None, typer.Option("--prompts", "-p", help="A .jsonl file or one prompt a line, as for `verify`. Default: the demo's three.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many prompts.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompts into the model's chat template.")] = False,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Tokens the target writes for each prompt.")] = 48,
    temperature: Annotated[float, typer.Option(help="Of the text and of the agreement; 0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the text and of the order of passes.")] = 0,
    t_max: Annotated[int, typer.Option("--t-max", min=1, max=64, help="The largest buffer of a level.")] = 12,
    context: Annotated[int, typer.Option(min=1, help="Tokens in the cache while passes are timed.")] = 256,
    seconds: Annotated[float, typer.Option(min=0, help="How long passes are timed.")] = 30.0,
    as_json: options.JsonOption = False,
    dtype: options.DtypeOption = None,
    device: options.DeviceOption = None,
) -> None:
    """Measure models here and on your prompts, and find the hierarchy that is expected to be fastest.

    Each level verifies what the one below hands up. The prediction assumes that places and levels are independent; a run says whether they are."""
    from draftwise.bench import hierarchy

    names = [name.strip() for name in models.split(",") if name.strip()]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"--models takes two or more different models, the target last, got {models!r}")
    check({"max_tokens": max_tokens, "temperature": temperature, "seed": seed})
    asked: Sequence[prompts.Prompt] = prompts.read_many(prompts_file, limit) if prompts_file else [*prompts.shipped().values()][:limit]
    with options.waiting(f"loading {', '.join(names)}") as tell:
        speculator, backends = _loaded(names, dtype, device, tell)
        options.decodes_only(speculator, "plan")
        tell("the target writes")
        texts = [*_written(speculator, asked, chat or not prompts_file, max_tokens, temperature, seed)]
        tell("comparing the models on it")
        agreed = hierarchy.agreement(backends, texts, temperature)
        tell(f"timing passes for {seconds:g} s")
        samples = _timed(backends, context, t_max, seconds, seed)
    found = hierarchy.plan(hierarchy.measured(names, samples, agreed, sum(len(text.written) for text in texts)), t_max)
    if as_json:
        typer.echo(json.dumps(_record(found)))
    else:
        _show(found)


def _loaded(names: list[str], dtype: str | None, device: str | None, tell: Any) -> tuple[Speculator, dict[str, Any]]:
    """The target's speculator, and the backend of each model. Raises ValueError for vocabularies that have nothing in common."""
    import draftwise

    main = draftwise.load_model(names[-1], dtype, device, progress=tell)
    target = draftwise.load(main, method="plain")
    backends = {}
    for name in names[:-1]:
        helper = draftwise.load_model(name, dtype, device, progress=tell)
        pair = draftwise.load(main, helper, method="plain")
        options.announce(pair)
        backends[name] = pair.context.draft
    return target, backends | {names[-1]: target.context.target}


def _written(speculator: Speculator, asked: Sequence[prompts.Prompt], chat: bool, max_tokens: int, temperature: float, seed: int) -> Iterator[Text]:
    from draftwise.bench.hierarchy import Text
    from draftwise.text import encode

    for text in asked:
        ids = encode(speculator.tokenizer, prompts.chat(text) if chat else text, speculator.context.vocab_size)
        result = speculator.generate(ids, max_tokens, temperature, seed=seed)
        yield Text(tuple(ids), result.tokens)


def _timed(backends: dict[str, Any], context: int, t_max: int, seconds: float, seed: int) -> Any:
    from draftwise.bench import hierarchy, profile

    room = min(backend.max_length for backend in backends.values()) - t_max - 1
    work = hierarchy.jobs(list(backends), min(context, room), t_max)
    probe = profile.Probe(backends, work, seed)
    for _ in probe.warm_up():
        pass
    samples: profile.Samples = {}
    for _ in profile.measure(probe, samples, seconds, seed):
        pass
    return samples


def _show(found: Plan) -> None:
    console = Console(highlight=False, soft_wrap=True, markup=False)
    short = tuple(name.rstrip("/").rsplit("/", 1)[-1] for name in found.measured.names)  # folders and owners would fill the tables
    measured = found.measured._replace(names=short if len(set(short)) == len(short) else found.measured.names)
    found = found._replace(measured=measured)
    widths = [f"k = {width}" for width in measured.seconds[-1]]
    costs = Table("model", *widths, title="measured costs: ms of a pass over k tokens", title_justify="left")
    for name, seconds in zip(measured.names, measured.seconds, strict=True):
        costs.add_row(name, *(f"{1000 * s:.1f}" for s in seconds.values()))
    alike = Table("agreement with", *measured.names[1:], title=f"agreement at {measured.places} places", title_justify="left")
    for i, name in enumerate(measured.names[:-1]):
        alike.add_row(name, *(f"{measured.alpha[i][j]:.2f}" if j > i else "" for j in range(1, len(measured.names))))
    ranked = Table("hierarchy", "tokens gathered", "ms per token", "over plain", title="expected", title_justify="left")
    for some in found.ranked[:8]:
        ranked.add_row(*_described(found, some))
    for table in (costs, alike, ranked):
        console.print(table)
    console.print(_conclusion(found))


def _described(found: Plan, some: Any) -> tuple[str, str, str, str]:
    names = " -> ".join(found.measured.names[m] for m in some.models)
    return names, ", ".join(map(str, some.buffers)) or "plain", f"{1000 * some.latency:.1f}", f"{found.plain / some.latency:.2f}x"


def _conclusion(found: Plan) -> str:
    best, single = found.best, found.single
    if len(best.models) == 1:
        return "No hierarchy of these models pays here: decode plainly."
    names, buffers, _, faster = _described(found, best)
    said = f"Best: {names}, gathering {buffers} tokens, {faster} of plain decoding expected"
    if single is None or best == single:
        return said + "."
    return said + f"; the best single draft is {_described(found, single)[0]} with {_described(found, single)[3]}."


def _record(found: Plan) -> dict[str, Any]:
    measured = found.measured

    def entry(some: Any) -> dict[str, Any]:
        names = [measured.names[m] for m in some.models]
        return {"models": names, "buffers": list(some.buffers), "latency": some.latency, "over_plain": found.plain / some.latency}

    return {
        "models": list(measured.names),
        "seconds": [{str(width): s for width, s in some.items()} for some in measured.seconds],
        "agreement": [list(row) for row in measured.alpha],
        "places": measured.places,
        "plain": found.plain,
        "ranked": [entry(some) for some in found.ranked],
    }
