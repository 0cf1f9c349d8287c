"""Names to objects. One line here gives a method its command-line name, its row in the docs and its contract tests.

A spec is ``name`` or ``name:key=value,key=value``; a value in brackets is itself a spec, and a bare bracket is a positional part:
``budget:tv=0.02,over=[adasd:base=ratio]``, ``first-hit:[suffix],[draft-model]``. Third parties add names through the entry points
``draftwise.length``, ``draftwise.accept``, ``draftwise.drafter`` and ``draftwise.backend``.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any, NamedTuple, get_args

from draftwise.bibliography import PAPERS
from draftwise.context import Context
from draftwise.protocols import Encodes
from draftwise.sequence import Method
from draftwise.spec import Spec, parse

KINDS = ("length", "accept", "drafter", "backend", "method")
_PLACES = KINDS[:3]  # the parts of a method


class Entry(NamedTuple):
    """`target`: 'module:Class' of a part. `parts`: (length, accept, drafter) specs of a method; drafter 'auto' is the draft model where there is
    one and prompt lookup where not, 'every' copies with the draft model where there is one. `title`: one line. `papers`: keys of
    `draftwise.bibliography.PAPERS`."""

    kind: str
    name: str
    title: str
    papers: tuple[str, ...] = ()
    target: str = ""
    parts: tuple[str, str, str] | None = None

    @property
    def paper(self) -> str:
        """Title of the first paper, or ''."""
        return PAPERS[self.papers[0]].title if self.papers else ""

    @property
    def url(self) -> str:
        """Where to read the first paper, or ''."""
        return PAPERS[self.papers[0]].link if self.papers else ""

    @property
    def lossless(self) -> bool | None:
        """Whether the text is what plain decoding gives (in law or in tokens). Only acceptance rules decide that: None for the others."""
        if self.kind == "accept":
            return bool(load(self).lossless)
        return entry("accept", parse(self.parts[1]).name).lossless if self.parts else None

    @property
    def options(self) -> dict[str, Any]:
        """Option names and defaults; a preset's own settings stand in for those of its parts."""
        if self.parts:
            specs = [(kind, parse(part)) for kind, part in zip(KINDS, self.parts[: 2 if self.parts[2] in _CHOSEN else 3], strict=False)]
            return {k: v for kind, spec in specs for k, v in (entry(kind, spec.name).options | spec.options).items()}
        return {name: p.default for name, p in _parameters(load(self)).items() if p.default is not inspect.Parameter.empty}


_M = "draftwise.methods."
_CHOSEN = ("auto", "every")  # drafters that hang on what there is
_EVERY = "best-of:length=[breakeven],explore=0.005"
_ENTRIES = [
    Entry("length", "fixed", "the same number of tokens every round", ("leviathan2023",), _M + "fixed:Fixed"),
    Entry("length", "heuristic", "+2 after a fully accepted round, else -1", ("gante2023assisted",), _M + "heuristic:Heuristic"),
    Entry("length", "confidence", "stop below a probability that a ROC curve sets", ("mamou2024disco",), _M + "confidence:Confidence"),
    Entry("length", "svip", "stop where the draft's entropy bounds acceptance too low", ("zhang2024svip",), _M + "svip:SVIP"),
    Entry("length", "adaedl", "entropy bound against a threshold that follows acceptance", ("agrawal2024adaedl",), _M + "adaedl:AdaEDL"),
    Entry("length", "gammatune", "smoothed accepted length, expanding at once", ("gautam2025gammatune",), _M + "gammatune:GammaTune"),
    Entry("length", "gammatune-plus", "GammaTune with a confidence stop", ("gautam2025gammatune",), _M + "gammatune:GammaTunePlus"),
    Entry("length", "breakeven", "draft while one more token pays at the costs measured here", (), _M + "breakeven:Breakeven"),
    Entry("length", "adasd", "stop above the mean entropy of rejected tokens", ("lu2025adasd",), _M + "adasd:AdaSDStop"),
    Entry(
        "accept", "speculative", "rejection sampling: keeps the target's distribution",
        ("leviathan2023", "chen2023"), _M + "speculative:Speculative",
    ),
    Entry(
        "accept", "coupled", "shared Gumbel noise: keeps the tokens of plain decoding for the same seed",
        ("daliri2024coupling",), _M + "coupled:Coupled",
    ),
    Entry("accept", "typical", "accept what the target finds typical", ("cai2024medusa",), _M + "typical:Typical"),
    Entry("accept", "adasd", "accept below a Jensen-Shannon distance set by past verdicts", ("lu2025adasd",), _M + "adasd:AdaSDAccept"),
    Entry("accept", "ears", "the rejection test, looser where the target is unsure", ("sun2025ears",), _M + "ears:EARS"),
    Entry("accept", "fly", "keep a mismatch if the target is unsure there and the draft recovers", ("li2025fly",), _M + "fly:FLy"),
    Entry("accept", "consultant", "accept while the target's smoothed cost stays low", ("ding2025consultant",), _M + "consultant:Consultant"),
    Entry("accept", "budget", "any lossy rule within a stated mean divergence per token", (), _M + "budget:Budget"),
    Entry("drafter", "draft-model", "a smaller model of the same vocabulary", ("leviathan2023", "chen2023"), _M + "draft_model:DraftModel"),
    Entry(
        "drafter", "prompt-lookup", "copies what followed the same n-gram earlier in the text",
        ("saxena2023lookup",), _M + "prompt_lookup:PromptLookup",
    ),
    Entry(
        "drafter", "draft-tree", "a smaller model that drafts several continuations at once",
        ("li2024eagle2", "miao2023specinfer"), _M + "draft_tree:DraftTree",
    ),
    Entry("drafter", "cascade", "a draft model that verifies a cheaper drafter", ("globerson2025hsd", "li2025fly"), _M + "cascade:Cascade"),
    Entry("drafter", "first-hit", "the first of several drafters that has something", (), _M + "first_hit:FirstHit"),
    Entry("drafter", "best-of", "of several drafters the one expected to bring most tokens per second", (), _M + "best_of:BestOf"),
    Entry("drafter", "suffix", "copies what followed the same run of tokens, as far as it is likely", ("oliaro2024suffix",), _M + "suffix:Suffix"),
    Entry("drafter", "stand", "a tree drawn from mean laws of the target after the same n-gram", ("song2025stand",), _M + "stand:Stand"),
    Entry("drafter", "recycling", "a tree of the target's runners-up after each token", ("luo2024recycling",), _M + "recycling:Recycling"),
    Entry("drafter", "tli", "a model of another vocabulary, cut to the tokens both have", ("timor2025",), _M + "tli:TLI"),
    Entry("drafter", "slem", "a model of another vocabulary writes text, tokenised anew as far as it is settled", ("timor2025",), _M + "slem:SLEM"),
    Entry("drafter", "uag", "a model of another vocabulary writes text, aligned with the end of the target's", ("hf2024uag",), _M + "uag:UAG"),
    Entry("drafter", "none", "drafts nothing", (), _M + "none:NoDraft"),
    Entry("backend", "llamacpp", "GGUF files in llama.cpp", (), "draftwise.backends.llamacpp:LlamaCpp"),
    Entry("backend", "table", "an n-gram table model, an exact oracle", (), "draftwise.backends.table:Table"),
    Entry("method", "plain", "no speculation", parts=("fixed:n=0", "coupled", "none")),
    Entry("method", "auto", "copies and the draft model, each as far as it pays here, lossless", parts=("fixed:n=32", "speculative", "every")),
    Entry("method", "adasd-stop", "AdaSD's stop rule, lossless acceptance", ("lu2025adasd",), parts=("adasd", "speculative", "draft-model")),
    Entry("method", "adasd", "AdaSD whole: adaptive stop and acceptance", ("lu2025adasd",), parts=("adasd", "adasd", "draft-model")),
    Entry("method", "lookup", "prompt lookup with GammaTune's lengths", ("saxena2023lookup",), parts=("gammatune", "speculative", "prompt-lookup")),
    Entry(
        "method", "suffix", "suffix decoding, which sets its own lengths",
        ("oliaro2024suffix",), parts=("fixed:n=32", "speculative", "suffix"),
    ),
    Entry("method", "stand", "STAND, all levels of its tree", ("song2025stand",), parts=("fixed:n=20", "speculative", "stand")),
    Entry("method", "recycling", "token recycling, all levels of its tree", ("luo2024recycling",), parts=("fixed:n=20", "speculative", "recycling")),
    Entry("method", "fixed", "fixed draft length", ("leviathan2023",), parts=("fixed", "speculative", "auto")),
    Entry("method", "heuristic", "transformers' +2/-1 schedule", ("gante2023assisted",), parts=("heuristic", "speculative", "auto")),
    Entry(
        "method", "confidence", "transformers' dynamic confidence threshold",
        ("mamou2024disco",), parts=("confidence", "speculative", "draft-model"),
    ),
    Entry("method", "svip", "SVIP's self-verified lengths", ("zhang2024svip",), parts=("svip", "speculative", "draft-model")),
    Entry("method", "adaedl", "AdaEDL's entropy bound", ("agrawal2024adaedl",), parts=("adaedl", "speculative", "draft-model")),
    Entry("method", "gammatune", "GammaTune's lengths", ("gautam2025gammatune",), parts=("gammatune", "speculative", "auto")),
    Entry("method", "gammatune-plus", "GammaTune+'s lengths", ("gautam2025gammatune",), parts=("gammatune-plus", "speculative", "draft-model")),
    Entry("method", "breakeven", "as many tokens as pay here, lossless", parts=("breakeven", "speculative", "auto")),
    Entry("method", "coupled", "plain decoding's own tokens for the same seed", ("daliri2024coupling",), parts=("adasd", "coupled", "draft-model")),
    Entry("method", "typical", "typical acceptance over AdaSD's lengths", ("cai2024medusa",), parts=("adasd", "typical", "draft-model")),
    Entry("method", "ears", "EARS over AdaSD's lengths", ("sun2025ears",), parts=("adasd", "ears", "draft-model")),
    Entry("method", "fly", "FLy with its long drafts", ("li2025fly",), parts=("fixed:n=15", "fly", "draft-model")),
    Entry("method", "cascade", "prompt lookup below the draft model", ("globerson2025hsd",), parts=("fixed", "speculative", "cascade")),
    Entry(
        "method", "fly-cascade", "FLy's second level too: its long drafts are drafted by prompt lookup",
        ("li2025fly",), parts=("fixed:n=15", "fly", "cascade:length=[fixed:n=6],[prompt-lookup:max_ngram=4]"),
    ),
    Entry("method", "first-hit", "prompt lookup where it has something, else the draft model", (), parts=("fixed:n=20", "speculative", "first-hit")),
    Entry("method", "best-of", "prompt lookup or the draft model, whichever pays more", (), parts=("fixed:n=20", "speculative", "best-of")),
    Entry("method", "draft-tree", "a dynamic tree of the draft model's guesses", ("li2024eagle2",), parts=("fixed", "speculative", "draft-tree")),
    Entry("method", "budget", "AdaSD's acceptance within a stated budget", ("lu2025adasd",), parts=("adasd", "budget", "draft-model")),
    Entry("method", "consultant", "Consultant Decoding over AdaSD's lengths", ("ding2025consultant",), parts=("adasd", "consultant", "draft-model")),
]


def entries(kind: str) -> dict[str, Entry]:
    """All entries of a kind by name: our own first, then those of installed packages."""
    if kind not in KINDS:
        raise ValueError(f"there is no kind {kind!r} in the catalog: {', '.join(KINDS)}")
    own = {e.name: e for e in _ENTRIES if e.kind == kind}
    foreign = {p.name: Entry(kind, p.name, f"from {p.value}", (), p.value) for p in entry_points(group=f"draftwise.{kind}")}
    return own | {name: e for name, e in foreign.items() if name not in own}


def names(kind: str) -> list[str]:
    """The names of a kind, in the catalog's order."""
    return list(entries(kind))


def entry(kind: str, name: str) -> Entry:
    """One entry. Raises ValueError with the nearest names."""
    found = entries(kind)
    if name not in found:
        raise ValueError(f"there is no {kind} {name!r}: {suggest(name, list(found))}")
    return found[name]


def create(kind: str, spec: str | Spec, context: Context | None = None) -> Any:
    """The object a spec names: a policy, a rule, a drafter, a backend, or for kind 'method' a `Method`. Raises ValueError."""
    return method(str(spec), context) if kind == "method" else _build(kind, parse(spec), context)


def method(spec: str | None, context: Context | None, length: Any = None, accept: Any = None, drafter: Any = None) -> Method:
    """A preset with parts put in its place. `length`, `accept` and `drafter` are specs or objects; None keeps the preset's. Without a
    `spec` it is the one that `default` names. Options of the spec go to every part that has them; a ``length``, ``accept`` or ``drafter`` in
    brackets that is an option of no part takes the part's place: ``breakeven:accept=[adasd]``."""
    chosen = parse(spec or default(length, accept, drafter))
    preset = entry("method", chosen.name)
    if preset.parts is None:
        raise ValueError(f"the method {chosen.name!r} names no parts")
    given, placed = _with_options(preset.parts[: 2 if preset.parts[2] in _CHOSEN else 3], chosen)
    given += preset.parts[len(given) :]
    asked = [placed.get(kind) if own is None else own for kind, own in zip(_PLACES, (length, accept, drafter), strict=True)]
    parts = [part if own is None else own for own, part in zip(asked, given, strict=True)]
    if isinstance(parts[2], str) and parts[2] in _CHOSEN:
        parts[2] = _drafter(parts[2], context)
    parts = [parse(part) if isinstance(part, str) else part for part in parts]
    if context and isinstance(parts[2], Spec) and parts[2].name == "draft-model":
        draft = context.helper(parts[2].options.get("model", 1))
        parts[2] = parts[2]._replace(name=getattr(draft, "drafter", "draft-model"))  # a draft of another vocabulary says how it drafts
    return Method(*(_build(kind, part, context) for kind, part in zip(KINDS, parts, strict=False)))


def default(length: Any = None, accept: Any = None, drafter: Any = None) -> str:
    """The preset for those who name none: 'auto', or 'breakeven' where a part is put into its place, which 'auto' has not room for."""
    return "auto" if length is None and accept is None and drafter is None else "breakeven"


def load(entry: Entry) -> Any:
    """The class (or factory) of an entry that is no method."""
    module, _, attribute = entry.target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def suggest(name: str, known: Sequence[str]) -> str:
    """'did you mean ...? known are ...'."""
    near = difflib.get_close_matches(name, known, 2, 0.5)
    return (f"did you mean {' or '.join(repr(n) for n in near)}? " if near else "") + f"there are {', '.join(known) or 'none'}"


def _drafter(keyword: str, context: Context | None) -> str:
    """The spec of a drafter that hangs on what there is."""
    draft = context is not None and context.draft is not None
    model = getattr(context.draft, "drafter", "draft-model") if context is not None and draft else ""
    if keyword == "auto":
        return "draft-model" if draft else "prompt-lookup"
    copies = "prompt-lookup" if context is not None and isinstance(context.target, Encodes) else "suffix"  # which copies from a source too
    return ",".join([_EVERY, f"[{copies}]", *([f"[{model}]"] if model else [])])


def _build(kind: str, spec: Any, context: Context | None) -> Any:
    if not isinstance(spec, Spec):
        return spec  # an object of the caller's own
    found = entry(kind, spec.name)
    factory = load(found)
    known = _parameters(factory)
    for key in spec.options:
        if key not in known:
            raise ValueError(f"the {kind} {spec.name!r} has no option {key!r}: {suggest(key, list(known))}")
    options = {}
    for key, value in spec.options.items():
        inside = key if key in KINDS else kind  # cascade:length=[fixed:n=3] names a length
        options[key] = _build(inside, value, context) if isinstance(value, Spec) else _typed(spec.name, known[key], value)
    parts = [_build(kind, part, context) for part in spec.parts]
    build = getattr(factory, "from_context", None)
    try:
        return build(context, *parts, **options) if build and context is not None else factory(*parts, **options)
    except TypeError as error:
        raise ValueError(f"the {kind} {spec.name!r} cannot be built from {str(spec)!r}: {error}") from None


def _with_options(parts: Sequence[str], spec: Spec) -> tuple[list[Any], dict[str, Spec]]:
    """The preset's specs, each with those of the method's options that it has, and the parts that are to stand in their place, by kind."""
    known = [_parameters(load(entry(kind, parse(part).name))) for kind, part in zip(KINDS, parts, strict=False)]
    strange = {key: value for key, value in spec.options.items() if not any(key in some for some in known)}
    for key, value in strange.items():
        if key in _PLACES and not isinstance(value, Spec):
            raise ValueError(f"{key!r} of the method {spec.name!r} takes a spec in brackets: {key}=[{value}]")
        if key not in _PLACES:
            raise ValueError(f"the method {spec.name!r} has no option {key!r}: {suggest(key, sorted({*_PLACES}.union(*known)))}")
    given = []
    for base, some in zip(map(parse, parts), known, strict=True):
        given.append(base._replace(options=base.options | {k: v for k, v in spec.options.items() if k in some}))
    return given, strange


def _parameters(factory: Any) -> dict[str, inspect.Parameter]:
    """Options a spec may set: the parameters of the constructor (or of ``from_context`` after the context)."""
    builder = getattr(factory, "from_context", factory)
    found = dict(inspect.signature(builder, eval_str=True).parameters)
    found.pop("context", None)
    return {name: p for name, p in found.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _typed(owner: str, parameter: inspect.Parameter, value: Any) -> Any:
    """The value as the parameter's annotation wants it; an int may stand for a float. What may be any object is a part, and a part is a spec."""
    if parameter.annotation is Any:
        if value is not None:
            raise ValueError(f"option {parameter.name!r} of {owner!r} takes a spec in brackets: {parameter.name}=[{value}]")
        return value
    wanted = tuple(a for a in (get_args(parameter.annotation) or (parameter.annotation,)) if isinstance(a, type))
    if not wanted or (isinstance(value, wanted) and not (isinstance(value, bool) and bool not in wanted)):
        return value
    if float in wanted and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    kinds = " or ".join(w.__name__ for w in wanted)
    raise ValueError(f"option {parameter.name!r} of {owner!r} takes {kinds}, got {value!r}")
