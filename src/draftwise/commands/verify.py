"""`draftwise verify`: does a method that claims to be lossless give what plain decoding gives?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console

from draftwise.commands import options, prompts, show
from draftwise.commands.errors import DEFECT
from draftwise.commands.generate import check

if TYPE_CHECKING:
    from draftwise.api import Speculator
    from draftwise.commands.compare import Difference


class Checked(NamedTuple):
    """One prompt: its beginning, the new tokens of plain decoding, the first difference, the share of tokens in common."""

    prompt: str
    tokens: int
    difference: Difference | None
    alike: float

    def verdict(self, lossless: bool, tolerance: float) -> str:
        """'same', 'rounding', 'DEFECT', or 'differs' for a method that promises nothing."""
        if self.difference is None:
            return "same"
        if not lossless:
            return "differs"
        return "rounding" if self.difference.gap <= tolerance else "DEFECT"


def verify(
    prompts_file: Annotated[
        Path | None,
        typer.Option("--prompts", "-p", help="A .jsonl file (strings, or objects with prompt, messages, question or text) or one prompt a line."),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompts into the model's chat template.")] = False,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="New tokens for each prompt.")] = 64,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many prompts.")] = None,
    temperature: Annotated[float, typer.Option(help="Above 0 only for methods with coupled acceptance.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the random numbers at a temperature above 0.")] = 0,
    tolerance: Annotated[float | None, typer.Option(min=0, help="Gap of scores up to which a difference is rounding. Default: by dtype.")] = None,
    as_json: options.JsonOption = False,
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
    """Compare a method with plain decoding, token for token, on your models and prompts.

    Greedy by default. Where the texts part, the target reads the text so far once more, alone: if the two tokens lie closer together than
    the tolerance of the dtype, rounding decided and not the method. Without --prompts the demo's three are used.

    Exit code 1 only if a method that claims to be lossless differs by more than rounding. A lossy method is measured, not judged."""
    from draftwise.commands.compare import tolerance as usual

    request: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    check(request)
    texts = prompts.read_many(prompts_file, limit) if prompts_file else [*prompts.shipped().values()][:limit]
    models = options.Models(target, options.one_or_all(draft), method, length, accept, drafter, dtype, device, backend, quantize, draft_vocabulary)
    speculator = options.load(models)
    what = options.describe(models, speculator)
    lossless = _comparable(speculator, what["method"], temperature)
    allowed = usual(speculator.engine.target) if tolerance is None else tolerance
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if not as_json:
        console.print(_heading(what, request, lossless, allowed))
    results = []
    for i, checked in enumerate(run(speculator, texts, request, chat or not (prompts_file or speculator.encodes)), 1):
        results.append(checked)
        if not as_json:
            console.print(_line(i, checked, checked.verdict(lossless, allowed), speculator.tokenizer))
    verdicts = [checked.verdict(lossless, allowed) for checked in results]
    if as_json:
        typer.echo(json.dumps(show.plain_json(_record(what, request, lossless, allowed, results)), ensure_ascii=False))
    else:
        console.print(_conclusion(results, verdicts, lossless))
    if "DEFECT" in verdicts:
        raise typer.Exit(DEFECT)


def run(speculator: Speculator, texts: Sequence[prompts.Prompt], request: dict[str, Any], chat: bool) -> Iterator[Checked]:
    """Decodes each prompt plainly and by the speculator's method, and compares."""
    from draftwise.commands.compare import compare, likeness

    target = speculator.engine.target
    for text in texts:
        prompt = prompts.chat(text) if chat else text
        given = speculator.inputs(prompt)
        plain = speculator.generate(prompt, **request, method="plain").tokens
        found = speculator.generate(prompt, **request).tokens
        difference = compare(target, given.tokens, plain, found, request["temperature"], request["seed"], given.source)
        yield Checked(_beginning(text), len(plain), difference, likeness(plain, found))


def _comparable(speculator: Speculator, method: str, temperature: float) -> bool:
    """Whether the method claims to be lossless. Raises ValueError where its tokens are no function of the seed."""
    accept = speculator.method.accept
    if temperature > 0 and not accept.coupled:
        promise = "keeps the law of plain decoding, not its tokens" if accept.lossless else "does not promise the tokens of plain decoding"
        raise ValueError(
            f"at a temperature above 0 {method!r} {promise}, so two texts say nothing: "
            "verify it greedily (--temperature 0), or verify coupled acceptance (--accept coupled), which keeps the tokens of a seed"
        )
    return bool(accept.lossless)


def _beginning(text: prompts.Prompt) -> str:
    words = " ".join((text if isinstance(text, str) else text[-1]["content"]).split())
    return words if len(words) <= 40 else words[:39] + "…"


def _heading(what: dict[str, Any], request: dict[str, Any], lossless: bool, tolerance: float) -> str:
    models = " with ".join([what["target"], *options.listed(what["draft"])])
    how = "greedy" if request["temperature"] == 0 else f"temperature {request['temperature']:g}, seed {request['seed']}"
    claim = f"claims to be lossless; differences up to a gap of {tolerance:g} logits are rounding" if lossless else "is lossy: measured, not judged"
    return f"{what['method']} on {models}, {how}, up to {request['max_tokens']} tokens, {what['dtype']} on {what['device']}\n{what['method']} {claim}"


def _line(i: int, checked: Checked, verdict: str, tokenizer: Any) -> str:
    line = f"{i:>3}  {verdict:<8}  {checked.tokens:>4} tokens  {checked.prompt}"
    if checked.difference is None:
        return line
    position, plain, found, top_gap, gap = checked.difference
    tokens = [f"{tokenizer.decode([t])!r} ({t})" if t is not None else "the end" for t in (plain, found)]
    line += f"\n     parts at new token {position}: plain {tokens[0]}, the method {tokens[1]}"
    line += f"\n     the top two logits there are {top_gap:.4g} apart, and both tokens within {gap:.4g} of the best"
    return line + f"; {checked.alike:.0%} of the tokens in common"


def _conclusion(results: list[Checked], verdicts: list[str], lossless: bool) -> str:
    same = f"{verdicts.count('same')} of {len(results)} texts are token for token those of plain decoding"
    if not lossless:
        alike = sum(checked.alike for checked in results) / len(results)
        return f"lossy: {same}; on average {1 - alike:.0%} of the tokens differ"
    if "DEFECT" in verdicts:
        return f"DEFECT in {verdicts.count('DEFECT')} of {len(results)} texts; {same}"
    rounding = verdicts.count("rounding")
    return f"no defect: {same}" + (f"; {rounding} part where rounding decides, and were compared up to there" if rounding else "")


def _record(what: dict[str, Any], request: dict[str, Any], lossless: bool, tolerance: float, results: list[Checked]) -> dict[str, Any]:
    texts = [
        {"prompt": c.prompt, "verdict": c.verdict(lossless, tolerance), "tokens": c.tokens, "alike": c.alike}
        | {"difference": c.difference._asdict() if c.difference else None}
        for c in results
    ]
    return what | request | {"lossless": lossless, "tolerance": tolerance, "defects": sum(t["verdict"] == "DEFECT" for t in texts), "texts": texts}
