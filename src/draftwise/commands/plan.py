"""`draftwise plan`: which models to stack, from measured costs and agreement."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from draftwise.commands import options, prompts
from draftwise.commands.generate import check
from draftwise.spec import parse

if TYPE_CHECKING:
    from draftwise.api import Speculator
    from draftwise.bench.hierarchy import Plan, Text
    from draftwise.bench.planned import Checked


def plan(
    models: Annotated[
        str, typer.Option("--models", help="Models with commas between them, the target last. prompt-lookup may be the first.")
    ],
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
    held_out: Annotated[
        int, typer.Option("--check", min=0, help="Keep the last so many prompts out, and run the best hierarchy and the best single draft on them.")
    ] = 0,
    as_json: options.JsonOption = False,
    dtype: options.DtypeOption = None,
    device: options.DeviceOption = None,
    backend: options.BackendOption = None,
    quantize: options.QuantizeOption = None,
) -> None:
    """Measure models here and on your prompts, and find the hierarchy that is expected to be fastest.

    Each level verifies what the one below hands up. The prediction assumes that places and levels are independent; a run says whether they are."""
    from draftwise.bench import hierarchy, planned

    names, copier = _named(models)
    check({"max_tokens": max_tokens, "temperature": temperature, "seed": seed})
    asked: Sequence[prompts.Prompt] = prompts.read_many(prompts_file, limit) if prompts_file else [*prompts.shipped().values()][:limit]
    if len(asked) <= held_out:
        raise ValueError(f"--check keeps {held_out} prompts out, and there are {len(asked)}: at least one is needed to plan on")
    with options.waiting(f"loading {', '.join(names)}") as tell:
        speculator, backends = _loaded([name for name in names if name != copier], (dtype, device, backend, quantize), tell)
        options.decodes_only(speculator, "plan")
        ids = _encoded(speculator, asked, chat or not prompts_file)
        tell("the target writes")
        texts = [*_written(speculator, ids[: len(ids) - held_out], max_tokens, temperature, seed)]
        tell("comparing the models on it")
        agreed = hierarchy.agreement(backends, texts, temperature)
        tell(f"timing passes for {seconds:g} s")
        samples = _timed(backends, context, t_max, seconds, seed)
        laws = _copied(copier, backends, texts, t_max, temperature, seed, agreed, samples) if copier else {}
        found = hierarchy.plan(hierarchy.measured(names, samples, agreed, sum(len(text.written) for text in texts)), t_max, laws)
        held = ids[len(ids) - held_out :]
        checked = planned.check(speculator, backends, found, held, max_tokens, temperature, seed, copier, tell) if held_out else []
    if as_json:
        typer.echo(json.dumps(_record(found, copier) | {"checked": [some._asdict() for some in checked]}))
    else:
        _show(found, checked, copier)


def _loaded(names: list[str], how: tuple[str | None, ...], tell: Any) -> tuple[Speculator, dict[str, Any]]:
    """The target's speculator, and the backend of each model. `how`: dtype, device, backend, quantize. Raises ValueError for vocabularies that
    have nothing in common."""
    import draftwise
    from draftwise.narrowing import TEXT
    from draftwise.picking import quantization

    ours, theirs = quantization(how[3])
    main = draftwise.load_model(names[-1], how[0], how[1], how[2], ours, progress=tell, lean=True)
    target = draftwise.load(main, method="plain")
    backends = {}
    for name in names[:-1]:
        helper = draftwise.load_model(name, how[0], how[1], how[2], theirs, TEXT, progress=tell, lean=True)
        pair = draftwise.load(main, helper, method="plain")
        options.announce(pair)
        backends[name] = pair.context.draft
    return target, backends | {names[-1]: target.context.target}


def _named(models: str) -> tuple[list[str], str | None]:
    """The names, and which of them is prompt lookup. Raises ValueError for names that form no hierarchy."""
    from draftwise import catalog

    names = [name.strip() for name in models.split(",") if name.strip()]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"--models takes two or more different models, the target last, got {models!r}")
    drafters = [name for name in names if name.partition(":")[0] in catalog.names("drafter")]
    if any(parse(name).name != "prompt-lookup" for name in drafters) or len(drafters) > 1 or names[-1] in drafters:
        raise ValueError(f"of the drafters without a model only prompt-lookup can be planned with, once, and never as the target, got {models!r}")
    return names, next(iter(drafters), None)


def _encoded(speculator: Speculator, asked: Sequence[prompts.Prompt], chat: bool) -> list[list[int]]:
    from draftwise.text import encode

    return [list(encode(speculator.tokenizer, prompts.chat(text) if chat else text, speculator.context.vocab_size)) for text in asked]


def _written(speculator: Speculator, asked: Sequence[list[int]], max_tokens: int, temperature: float, seed: int) -> Iterator[Text]:
    from draftwise.bench.hierarchy import Text

    for ids in asked:
        yield Text(tuple(ids), speculator.generate(ids, max_tokens, temperature, seed=seed).tokens)


def _copied(
    copier: str, backends: dict[str, Any], texts: list[Text], t_max: int, temperature: float, seed: int, agreed: dict[Any, float], samples: Any
) -> dict[tuple[str, str], Any]:
    """What prompt lookup brings below each model; its figures are put beside those of the models."""
    from draftwise import catalog
    from draftwise.bench import copying, hierarchy

    found = copying.copied(catalog.create("drafter", copier), texts, copying.choices(backends, texts, temperature, seed), t_max)
    agreed.update({(copier, name): alpha for name, alpha in found.alpha.items()})
    samples.update({job: [found.seconds] for job in hierarchy.jobs([copier], next(iter(samples)).context, t_max)})
    return {(copier, name): law for name, law in found.laws.items()}


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
    for backend in backends.values():
        backend.free(0)  # the probe's slot, which a request would take for its own
    return samples


def _show(found: Plan, checked: Sequence[Checked], copier: str | None) -> None:
    whole = found.measured.names
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
    if checked:
        console.print(_checked_table(checked))
    if len(found.best.models) > 1:
        console.print(f"To run it: {_command(whole, found.best, copier)}")


def _command(names: Sequence[str], best: Any, copier: str | None) -> str:
    from draftwise.bench.planned import spec

    wanted = spec(names, best, copier)
    words = ["draftwise", "generate", "--target", names[-1], *(word for draft in wanted.drafts for word in ("--draft", draft))]
    return shlex.join([*words, "--method", wanted.method, "--drafter", wanted.drafter])


def _checked_table(checked: Sequence[Checked]) -> Table:
    tokens = max(some.tokens for some in checked)
    title = f"on the prompts kept out, up to {tokens} tokens each way"
    table = Table("run", "predicted", "measured", "tokens/s", "tau", title=title, title_justify="left")
    for some in checked:
        table.add_row(some.name, f"{some.predicted:.2f}x", f"{some.measured:.2f}x", f"{some.tokens_per_second:.2f}", f"{some.tau:.2f}")
    return table


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


def _record(found: Plan, copier: str | None) -> dict[str, Any]:
    from draftwise.bench.planned import spec

    measured = found.measured

    def entry(some: Any) -> dict[str, Any]:
        names = [measured.names[m] for m in some.models]
        figures = {"models": names, "buffers": list(some.buffers), "latency": some.latency, "over_plain": found.plain / some.latency}
        return figures | {"spec": spec(measured.names, some, copier)._asdict()}

    return {
        "models": list(measured.names),
        "seconds": [{str(width): s for width, s in some.items()} for some in measured.seconds],
        "agreement": [list(row) for row in measured.alpha],
        "places": measured.places,
        "plain": found.plain,
        "ranked": [entry(some) for some in found.ranked],
    }
