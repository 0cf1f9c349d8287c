"""The options that several commands share, and loading the models they name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape

from draftwise.spec import parse

if TYPE_CHECKING:
    from draftwise.api import Speculator

_MODELS, _METHOD = "Models", "Method"
TargetOption = Annotated[
    str, typer.Option("--target", "-t", help="The model that decides: a Hub id, a folder, a GGUF file, or smollm2.", rich_help_panel=_MODELS)
]
DraftOption = Annotated[
    str | None,
    typer.Option("--draft", "-d", help="A smaller model that drafts, best of the same vocabulary. Named as the target is.", rich_help_panel=_MODELS),
]
DraftsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--draft",
        "-d",
        help="A smaller model that drafts, best of the same vocabulary. Named as the target is. Repeated, largest first, for hierarchies.",
        rich_help_panel=_MODELS,
    ),
]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16; default: by device.", rich_help_panel=_MODELS)]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1 ...; by default cuda if there.", rich_help_panel=_MODELS)]
BackendOption = Annotated[
    str | None,
    typer.Option(
        "--backend",
        help="hf (hf:graphs=true for CUDA graphs), or llamacpp with options as in llamacpp:threads=4,gpu_layers=-1. "
        "Default: llamacpp for a .gguf file if it is installed, its draft in 4 bits of ours where that is faster.",
        rich_help_panel=_MODELS,
    ),
]
QuantizeOption = Annotated[
    str | None,
    typer.Option("--quantize", help="int8 or int4: weights of so many bits on a CPU; draft=int8 for the draft alone.", rich_help_panel=_MODELS),
]
VocabularyOption = Annotated[
    str | None,
    typer.Option(
        "--draft-vocabulary",
        help="Cut the draft's head to the first so many tokens, or to those of a text file (.txt, .jsonl): a cheaper draft, the same text. "
        "Default: text, the frequent ones and each text's own, where the backend can; all for none.",
        rich_help_panel=_MODELS,
    ),
]
MethodOption = Annotated[
    str | None,
    typer.Option(
        "--method",
        "-m",
        help="A method of `draftwise methods --kind method`, with options: adasd, gammatune:eta=0.3, plain. "
        "Default: auto, which drafts as much as pays here and never loses to plain decoding.",
        rich_help_panel=_METHOD,
    ),
]
LengthOption = Annotated[str | None, typer.Option("--length", help="Put this length policy into the method.", rich_help_panel=_METHOD)]
AcceptOption = Annotated[str | None, typer.Option("--accept", help="Put this acceptance rule into the method.", rich_help_panel=_METHOD)]
DrafterOption = Annotated[str | None, typer.Option("--drafter", help="Put this drafter into the method.", rich_help_panel=_METHOD)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]


class Models(NamedTuple):
    """What `draftwise.load` takes."""

    target: str
    draft: str | list[str] | None = None
    method: str | None = None
    length: str | None = None
    accept: str | None = None
    drafter: str | None = None
    dtype: str | None = None
    device: str | None = None
    backend: str | None = None
    quantize: str | None = None
    draft_vocabulary: str | None = None


def load(models: Models) -> Speculator:
    """Loads the pair; on a terminal a spinner on stderr says so. Names and options of methods are checked first, since a model takes long."""
    from draftwise import catalog

    catalog.method(models.method, None, models.length, models.accept, drafter=object())  # any object: a drafter needs the models
    if models.drafter is not None:
        catalog.entry("drafter", parse(models.drafter).name)
    import draftwise

    with waiting(f"loading {' and '.join([models.target, *listed(models.draft)])}") as tell:
        speculator = draftwise.load(**models._asdict(), progress=tell)
    announce(speculator)
    return speculator


def announce(speculator: Speculator) -> None:
    """Says on stderr what was chosen for the user, if anything was."""
    if speculator.note:
        Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print(speculator.note)


def one_or_all(drafts: list[str] | None) -> str | list[str] | None:
    """What `Models.draft` holds: the name where there is one, the list where there are several."""
    return drafts if drafts and len(drafts) > 1 else next(iter(drafts or ()), None)


def listed(draft: str | list[str] | None) -> list[str]:
    """The same as a list."""
    return draft if isinstance(draft, list) else [draft] if draft else []


@contextmanager
def waiting(message: str) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr while something takes its time, and what changes its message. Where stderr is no terminal, nothing is shown."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status(escape(message)) as status:
        yield lambda news: status.update(escape(news))


def describe(models: Models, speculator: Speculator) -> dict[str, Any]:
    """What decodes what, for JSON: the names that were given, what became of them, and where it runs."""
    from draftwise import catalog

    length, accept, drafter = speculator.method
    backend = speculator.context.target
    return {
        "target": models.target,
        "draft": models.draft,
        "method": models.method or catalog.default(models.length, models.accept, models.drafter),
        "length": repr(length),
        "accept": repr(accept),
        "drafter": type(drafter).__name__,
        "dtype": precision(backend),
        "device": str(getattr(backend, "device", "")),
    }


def precision(backend: Any) -> str:
    """Of the weights, in words."""
    return str(getattr(backend, "precision", None) or getattr(backend, "dtype", "")).removeprefix("torch.")


def decodes_only(speculator: Speculator, command: str) -> None:
    """Raises ValueError for a target with an encoder, where a command times or reads a decoder's text alone."""
    if speculator.encodes:
        raise ValueError(f"{command} is for decoder-only targets, and this one is an encoder-decoder model: generate, demo and verify know those")
