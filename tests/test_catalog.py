"""Specs, presets and their errors."""

from __future__ import annotations

import importlib.metadata
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftwise import catalog
from draftwise.bibliography import PAPERS, bibtex
from draftwise.context import Context
from draftwise.methods.adasd import AdaSDAccept, AdaSDStop
from draftwise.methods.breakeven import Breakeven
from draftwise.methods.draft_model import DraftModel
from draftwise.methods.fixed import Fixed
from draftwise.methods.prompt_lookup import PromptLookup
from draftwise.methods.speculative import Speculative
from draftwise.spec import Spec, parse
from tables import pair


def test_the_grammar() -> None:
    assert parse("adasd") == Spec("adasd", {})
    assert parse("a:n=3,x=0.5,s=word,t=true,f=False,z=none,e=1e-3") == Spec(
        "a", {"n": 3, "x": 0.5, "s": "word", "t": True, "f": False, "z": None, "e": 1e-3}
    )
    assert parse("budget:tv=0.02,over=[adasd:base=ratio,v=[x]]") == Spec(
        "budget", {"tv": 0.02, "over": Spec("adasd", {"base": "ratio", "v": Spec("x", {})})}
    )
    assert parse("first-hit:[suffix],[draft-model:k=1]").parts == (Spec("suffix", {}), Spec("draft-model", {"k": 1}))


@pytest.mark.parametrize("text", ["", ":n=3", "a:n", "a:n=", "a:=3", "a:[b", "a:b]", "a:n=[b", "a,b", "[a]"])
def test_a_broken_spec_is_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=re.compile("spec|brackets")):
        parse(text)


_words = st.from_regex(r"[a-z][a-z-]{0,6}", fullmatch=True).filter(lambda w: w not in ("true", "false", "none", "nan", "inf"))
_values = st.one_of(st.booleans(), st.none(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), _words)
_specs = st.recursive(
    st.builds(lambda n, o: Spec(n, o), _words, st.dictionaries(_words, _values, max_size=3)),
    lambda inner: st.builds(lambda n, o, p: Spec(n, o, tuple(p)), _words, st.dictionaries(_words, inner, max_size=2), st.lists(inner, max_size=2)),
    max_leaves=5,
)


@given(_specs)
def test_a_printed_spec_reads_as_itself(spec: Spec) -> None:
    assert parse(str(spec)) == spec


def test_presets_and_parts() -> None:
    context = pair()
    length, accept, drafter = catalog.method("adasd:persist=true,base=ratio", context)
    assert length == AdaSDStop(persist=True)
    assert accept == AdaSDAccept(base="ratio", persist=True)
    assert isinstance(drafter, DraftModel)
    assert catalog.method("fixed:n=3", context).length == Fixed(3)
    assert catalog.method("adasd", context, length="fixed:n=2", accept=Speculative()) [:2] == (Fixed(2), Speculative())


def test_defaults_are_lossless_with_and_without_a_draft() -> None:
    context = pair()
    alone = context._replace(draft=None)
    assert [type(part).__name__ for part in catalog.method(None, context).drafter.parts] == ["Suffix", "DraftModel"]
    assert [type(part).__name__ for part in catalog.method(None, alone).drafter.parts] == ["Suffix"]
    assert isinstance(catalog.method("gammatune", alone).drafter, PromptLookup)
    assert catalog.method(None, context).accept.lossless


def test_the_default_gives_way_to_a_part_that_is_named() -> None:
    context = pair()
    assert isinstance(catalog.method(None, context, length="adasd").length, AdaSDStop)
    assert isinstance(catalog.method(None, context, length="adasd").drafter, DraftModel)
    lossy = catalog.method(None, context, accept="adasd")
    assert (type(lossy.length).__name__, type(lossy.drafter).__name__) == ("Breakeven", "DraftModel")
    assert type(catalog.method(None, context, drafter="prompt-lookup").length).__name__ == "Breakeven"


def test_a_part_in_brackets_takes_the_place_of_a_methods_own() -> None:
    context = pair()
    lossy = catalog.method("breakeven:accept=[adasd:base=ratio],cap=9", context)
    assert lossy.accept == AdaSDAccept(base="ratio") and lossy.length == Breakeven(cap=9) and isinstance(lossy.drafter, DraftModel)
    copies = catalog.method("fixed:n=2,drafter=[prompt-lookup],length=[svip]", context)
    assert isinstance(copies.drafter, PromptLookup) and type(copies.length).__name__ == "SVIP"
    assert catalog.method("breakeven:accept=[adasd]", context, accept="speculative").accept == Speculative()  # what is named beside it is nearer
    assert catalog.method("cascade:length=[fixed:n=3]", context).drafter.length == Fixed(3)  # the drafter has such an option: it stays the drafter's


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("method", "adasdd", "did you mean 'adasd'"),
        ("length", "fixd", "did you mean 'fixed'"),
        ("length", "fixed:m=3", "no option 'm'"),
        ("length", "fixed:n=three", "takes int, got 'three'"),
        ("length", "fixed:n=true", "takes int, got True"),
        ("length", "fixed:n=2.5", "takes int, got 2.5"),
        ("method", "adasd:bas=ratio", "did you mean 'base'"),
        ("method", "breakeven:accept=adasd", r"takes a spec in brackets: accept=\[adasd\]"),
        ("method", "breakeven:accept=[adasdd]", "did you mean 'adasd'"),
        ("method", "breakeven:accep=[adasd]", "did you mean 'accept'"),
        ("accept", "adasd:base=coin", "coin"),
        ("tokenizer", "x", "no kind 'tokenizer'"),
        ("drafter", "draft-model", "needs a draft"),
    ],
)
def test_what_is_unknown_is_named_with_what_there_is(kind: str, spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        catalog.create(kind, spec, Context(None, None, 8))


def test_every_entry_can_be_cited_and_says_what_it_is() -> None:
    for kind in catalog.KINDS:
        for name, entry in catalog.entries(kind).items():
            assert entry.name == name
            assert entry.title
            for key in entry.papers:
                assert bibtex(key).startswith("@")
                assert PAPERS[key].link.startswith("https://")


def test_options_are_the_defaults_with_the_presets_own_settings() -> None:
    assert catalog.entry("length", "fixed").options == {"n": 5}
    assert catalog.entry("method", "plain").options == {"n": 0}
    assert catalog.entry("method", "adasd").options["base"] == "match"


def test_third_parties_add_names_by_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("constant", "draftwise.methods.fixed:Fixed", "draftwise.length")
    monkeypatch.setattr(catalog, "entry_points", lambda group: [point] if group == "draftwise.length" else [])
    assert catalog.create("length", "constant:n=7") == Fixed(7)
    assert "constant" in catalog.names("length")
