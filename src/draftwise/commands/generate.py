"""`draftwise generate`: one prompt in, text out as it comes."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from draftwise.commands import options, prompts, show
from draftwise.commands.errors import INTERRUPTED

if TYPE_CHECKING:
    from draftwise.api import Piece, Result

_INPUT, _SAMPLING, _OUTPUT = "Input", "Sampling", "Output"


class Show(str, Enum):
    """What `--show` takes."""

    text = "text"
    tokens = "tokens"


def generate(
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="The prompt; - or nothing reads stdin.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from this file.", rich_help_panel=_INPUT)] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.", rich_help_panel=_INPUT)] = False,
    system: Annotated[str | None, typer.Option("--system", help="A system message (implies --chat).", rich_help_panel=_INPUT)] = None,
    decoder_start: Annotated[
        list[str] | None,
        typer.Option("--decoder-start", help="Encoder-decoder: begin with this token, as a language. May be repeated.", rich_help_panel=_INPUT),
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="Most new tokens.", rich_help_panel=_SAMPLING)] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy decoding.", rich_help_panel=_SAMPLING)] = 0.0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens of this total probability.", rich_help_panel=_SAMPLING)] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep this many likeliest tokens; 0 keeps all.", rich_help_panel=_SAMPLING)] = 0,
    min_p: Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest.", rich_help_panel=_SAMPLING)] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 makes repeated tokens less likely.", rich_help_panel=_SAMPLING)] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Fixes the random numbers.", rich_help_panel=_SAMPLING)] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text. May be repeated.", rich_help_panel=_SAMPLING)] = None,
    shown: Annotated[Show, typer.Option("--show", help="tokens: colour each token by who wrote it.", rich_help_panel=_OUTPUT)] = Show.text,
    stats: Annotated[bool, typer.Option("--stats", help="Print a table of figures on stderr.", rich_help_panel=_OUTPUT)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end instead of text.", rich_help_panel=_OUTPUT)] = False,
    logprobs: Annotated[bool, typer.Option("--logprobs", help="Put log-probabilities into the JSON.", rich_help_panel=_OUTPUT)] = False,
    target: options.TargetOption = "smollm2",
    draft: options.DraftsOption = None,
    method: options.MethodOption = None,
    length: options.LengthOption = None,
    accept: options.AcceptOption = None,
    drafter: options.DrafterOption = None,
    dtype: options.DtypeOption = None,
    device: options.DeviceOption = None,
    backend: options.BackendOption = None,
    quantize: options.QuantizeOption = None,
    draft_vocabulary: options.VocabularyOption = None,
) -> None:
    """Go on with a prompt, or answer it with --chat; an encoder-decoder model reads it with its encoder.

    The text goes to stdout as it comes, everything else to stderr."""
    asked = prompts.read(prompt, file)
    seed = secrets.randbits(32) if seed is None else seed
    request: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    request |= {"repetition_penalty": repetition_penalty, "seed": seed}
    check(request)
    models = options.Models(target, options.one_or_all(draft), method, length, accept, drafter, dtype, device, backend, quantize, draft_vocabulary)
    speculator = options.load(models)
    screen = None if as_json else show.Screen(colours=shown is Show.tokens)
    if screen and screen.paints:
        errors().print(show.legend())
    messages = prompts.chat(asked, system) if chat or system else asked
    stream = speculator.stream(messages, **request, stop=stop, logprobs=logprobs, decoder_start=decoder_start or None)
    interrupted = follow(stream, screen)
    result = stream.results[0]
    if as_json:
        echo_json(result, interrupted, {"seed": seed} | options.describe(models, speculator))
    if stats or interrupted:
        errors().print(show.figures(result.stats, "interrupted: what there is so far" if interrupted else "", result.account))
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def check(request: dict[str, Any]) -> None:
    """Raises ValueError for sampling options out of range, before a model is loaded."""
    from draftwise.types import Sampling

    Sampling(**request)


def follow(stream: Iterable[Piece], screen: show.Screen | None) -> bool:
    """Shows the pieces as they come. Returns whether Ctrl-C broke them off."""
    try:
        for piece in stream:
            for text, origin in piece.parts if screen else ():
                screen.write(text, origin)  # type: ignore[union-attr]
    except KeyboardInterrupt:
        return True
    finally:
        if screen:
            screen.end()
    return False


def echo_json(result: Result, interrupted: bool, more: dict[str, Any]) -> None:
    """One line of JSON."""
    record = result._asdict() | {"stats": result.stats._asdict()} | more
    if interrupted:
        record["finish_reason"] = "interrupted"
    typer.echo(json.dumps(show.plain_json(record), ensure_ascii=False))


def errors() -> Console:
    """stderr, where everything goes that is not the text."""
    return Console(stderr=True, highlight=False)
