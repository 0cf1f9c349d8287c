"""llama.cpp, vLLM and OpenVINO as peers: what is started, what is said where a part is missing, and what their workers make of an engine's answers.

The engines here are fakes with the interfaces of the real ones; the workers are the real scripts in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from draftwise.bench import peers
from draftwise.bench.peers import Setup
from draftwise.bench.peers.openvino import weights

SETUP = Setup("target-folder", "draft-folder", "bfloat16", 2, 500)
ASKED = {"variant": "x", "ids": [1, 2, 3], "max_tokens": 6, "temperature": 0.0, "top_p": 1.0, "seed": 0, "stop_ids": [9]}

LLAMA = """\
    #!{python}
    import http.server, json, sys
    ARGV = dict(zip(sys.argv[1::1], sys.argv[2::1]))
    if "broken" in ARGV["-m"]:
        sys.exit("error: no such model\\nbye")
    # each decode: milliseconds, and the ids with whether they are sent to one whose prompt begins with 7
    PASSES = [(1.0, [(11, True)]), (2.5, [(12, True), (13, True), (14, None)]), (4.0, [(15, True), (9, True)])]
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args): pass
        def reply(self, value, status=200):
            body = json.dumps(value).encode()
            self.send_response(status); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
        def do_GET(self):
            self.reply({{"/health": {{"status": "ok"}}, "/props": {{"build_info": "b1"}},
                "/v1/models": {{"data": [{{"meta": {{"ftype": "Q4_K - Medium", "n_vocab": 50, "n_ctx": 512}}}}]}}}}[self.path])
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if len(asked["prompt"]) > 400:
                return self.reply({{"error": {{"message": "too long"}}}}, 400)
            assert asked["cache_prompt"] is False and asked["return_tokens"] and asked["top_k"] == 0, asked
            if not asked["stream"]:
                return self.reply({{"tokens": [token for _, some in PASSES for token, _ in some]}})
            self.send_response(200); self.end_headers()
            n = drafted = accepted = 0
            for ms, some in PASSES:
                drafted, accepted = drafted + 3 * (len(some) > 1), accepted + len(some) - 1
                for token, sent in some:
                    n += 1
                    timings = {{"predicted_ms": ms, "draft_n": drafted, "draft_n_accepted": accepted}}
                    if sent or asked["prompt"][0] != 7:
                        self.send({{"tokens": [token], "tokens_predicted": n, "timings": timings, "stop": False}})
            self.send({{"tokens": [], "tokens_predicted": n, "timings": timings, "stop": True, "stop_type": "eos"}})
        def send(self, event): self.wfile.write(b"data: " + json.dumps(event).encode() + b"\\n\\n"); self.wfile.flush()
    http.server.HTTPServer(("127.0.0.1", int(ARGV["--port"])), Handler).serve_forever()
"""

VLLM = """\
    from types import SimpleNamespace as Some
    class SamplingParams(Some): pass
    class LLM:
        def __init__(self, **options):
            assert options["enable_prefix_caching"] is False and options["max_num_seqs"] == 1, options
            self.spec, self.total, self.queue = options["speculative_config"], {"drafts": 7, "draft_tokens": 30, "accepted_tokens": 11}, []
            config = Some(dtype="torch.bfloat16", get_vocab_size=lambda: 50, max_model_len=options["max_model_len"])
            self.llm_engine = Some(model_config=config, add_request=self.add, has_unfinished_requests=lambda: bool(self.queue), step=self.step)
        def add(self, name, prompt, params):
            assert params.output_kind == "delta" and params.detokenize is False, params
            self.queue = [[21], [22, 23, 24], [25, 26, 9][: params.max_tokens - 4]] if self.spec else [[21], [22], [9]]
        def step(self):
            new = self.queue.pop(0)
            if self.spec and len(new) > 1:
                self.total = {key: self.total[key] + more for key, more in (("drafts", 1), ("draft_tokens", 5), ("accepted_tokens", len(new) - 1))}
            end = None if self.queue else "stop" if new[-1] == 9 else "length"
            return [Some(outputs=[Some(token_ids=new, finish_reason=end)])]
        def get_metrics(self):
            return [Some(name="vllm:spec_decode_num_" + key, value=value) for key, value in self.total.items()]
"""

GENAI = """\
    from types import SimpleNamespace as Some
    class StreamerBase: pass
    class SchedulerConfig: pass
    class StreamingStatus: RUNNING = 0
    def draft_model(folder, device, **properties): return Some(folder=folder, properties=properties)
    class LLMPipeline:
        def __init__(self, folder, device, scheduler_config, draft_model=None, prompt_lookup=False, **properties):
            assert properties["INFERENCE_NUM_THREADS"] == 2 and scheduler_config.enable_prefix_caching is False
            assert draft_model is None or draft_model.properties == properties
            self.draft, self.lookup = draft_model, prompt_lookup
        def get_generation_config(self): return Some(eos_token_id=8)
        def generate(self, prompt, config, streamer):
            assert config.do_sample is False and bool(self.draft or self.lookup) == hasattr(config, "num_assistant_tokens"), config
            assert hasattr(config, "max_ngram_size") == self.lookup
            steps = [31, [32, 33], [34]] if self.draft or self.lookup else [31, 32, 33, 34]
            for step in steps:
                streamer.write(step)
            metrics = Some(get_num_accepted_tokens=lambda: 1, get_num_draft_tokens=lambda: 5) if self.draft else None
            return Some(tokens=[[31, 32, 33, 34][: config.max_new_tokens]], extended_perf_metrics=metrics)
"""

CORE = """\
    class Tensor:
        def __init__(self, array): self.array = array
    class Core:
        def get_property(self, device, name): return "bfloat16"
"""


class Talk:
    """A worker in a process of its own, and what it said first."""

    def __init__(self, argv: list[str], env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)
        self.first = self.read()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline() or "{}")

    def ask(self, **changes: Any) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(ASKED | changes) + "\n")
        self.process.stdin.flush()
        return self.read()

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: Any) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


@pytest.fixture
def gguf(tmp_path):
    for name in ("target.gguf", "draft.gguf", "broken.gguf"):
        (tmp_path / name).touch()
    server = tmp_path / "llama-server"
    server.write_text(textwrap.dedent(LLAMA).format(python=sys.executable))
    server.chmod(0o755)
    return tmp_path


@pytest.fixture
def env(tmp_path):
    """An environment in which python finds fake engines."""
    (tmp_path / "target-folder").mkdir()
    (tmp_path / "target-folder/config.json").write_text('{"max_position_embeddings": 4096}')
    texts = {"vllm/__init__.py": VLLM, "vllm/sampling_params.py": "class RequestOutputKind: DELTA = 'delta'\n"}
    texts |= {"openvino_genai.py": GENAI, "openvino.py": CORE}
    texts |= {f"{name}-1.0.dist-info/METADATA": f"Name: {name}\nVersion: 1.0\n" for name in ("openvino", "openvino_genai", "vllm")}
    for name, text in texts.items():
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / name).write_text(textwrap.dedent(text))
    return os.environ | {"PYTHONPATH": str(tmp_path / "site")}


@pytest.fixture
def export(tmp_path):
    """A folder like those of `optimum-cli export openvino`."""
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "config.json").write_text('{"vocab_size": 50, "max_position_embeddings": 4096}')
    said = '<weight_compression><backup_mode value="int8_asym" /><mode value="int4_asym" /></weight_compression>'
    (folder / "openvino_model.xml").write_text("<layer />" * 20000 + said)
    return str(folder)


def after(argv: list[str], option: str) -> str:
    return argv[argv.index(option) + 1]


def llama(gguf: Path, **options: Any) -> Any:
    return peers.create(
        "llamacpp:" + ",".join(f"{k}={v}" for k, v in ({"server": gguf / "llama-server", "target": gguf / "target.gguf"} | options).items())
    )


def test_llamacpp_names_what_is_missing(gguf):
    assert llama(gguf).missing(SETUP) is None
    said = llama(gguf, server=gguf / "nowhere").missing(SETUP)
    assert "nowhere" in said and "llamacpp:server=PATH" in said
    assert "target-folder" in peers.create(f"llamacpp:server={gguf}/llama-server").missing(SETUP)
    assert "absent.gguf" in llama(gguf, draft="absent.gguf").missing(SETUP)
    with pytest.raises(ValueError, match="llamacpp-draft needs the draft model as a GGUF file"):
        llama(gguf).command(SETUP, "llamacpp-draft")


def test_llamacpp_takes_the_runs_own_files(gguf):
    setup = SETUP._replace(target=str(gguf / "target.gguf"), draft=str(gguf / "draft.gguf"))
    peer = peers.create(f"llamacpp:server={gguf}/llama-server")
    assert peer.missing(setup) is None
    argv = peer.command(setup, "llamacpp-draft")
    assert (after(argv, "--model"), after(argv, "--draft"), after(argv, "--threads")) == (setup.target, setup.draft, "2")
    assert int(after(argv, "--context")) > SETUP.max_context


def test_a_draft_is_loaded_only_where_it_drafts(gguf):
    peer = llama(gguf, draft=gguf / "draft.gguf", draft_tokens=7)
    commands = {variant: peer.command(SETUP, variant) for variant in peer.variants}
    assert [after(argv, "--speculate") for argv in commands.values()] == ["none", "draft-simple", "ngram-simple"]
    assert [variant for variant, argv in commands.items() if "--draft" in argv] == ["llamacpp-draft"]
    assert after(commands["llamacpp-draft"], "--draft-tokens") == "7"


def test_llamacpp_tells_passes_apart_and_finds_ids_that_were_not_streamed(gguf):
    with Talk(llama(gguf).command(SETUP, "llamacpp-ngram")) as worker:
        assert worker.first["ready"] | {"versions": {}} == {
            "precision": "Q4_K_M",
            "engine": "llamacpp",
            "versions": {},
            "threads": 2,
            "vocab_size": 50,
            "max_length": 512,
        }
        said = worker.ask()
        assert said["tokens"] == [11, 12, 13, 14, 15, 9]
        assert [n for _, n in said["arrivals"]] == [1, 3, 2]
        assert (said["origins"], said["passes"]) == ("tddtdt", 3)
        said = worker.ask(ids=[7])
        assert said["tokens"] == [11, 12, 13, 14, 15, 9]
        assert [n for _, n in said["arrivals"]] == [1, 2, 3]
        assert "origins" not in said and "passes" not in said
        assert (said["accepted"], said["drafted"], said["finish_reason"]) == (3, 6, "stop")
        assert said["seconds"] == said["arrivals"][-1][0] > 0


def test_llamacpp_cuts_at_a_stop_id_that_its_file_does_not_know(gguf):
    with Talk(llama(gguf).command(SETUP, "llamacpp")) as worker:
        said = worker.ask(stop_ids=[13])
        assert said["tokens"] == [11, 12, 13] and said["origins"] == "tdd" and said["finish_reason"] == "stop"
        assert "too long" in worker.ask(ids=[1] * 401)["error"]
        assert worker.ask()["tokens"][-1] == 9


def test_llamacpp_says_why_the_server_did_not_start(gguf):
    with Talk(llama(gguf, target=gguf / "broken.gguf").command(SETUP, "llamacpp")) as worker:
        assert "exit code 1" in worker.first["error"] and "no such model" in worker.first["error"]


@pytest.mark.parametrize(("name", "module"), [("vllm", "vllm"), ("openvino", "openvino_genai")])
def test_a_missing_environment_is_named_with_the_command_that_makes_it(name, module):
    peer = peers.create(name)
    assert module in peer.missing(SETUP) and f"{name}:python=PATH" in peer.missing(SETUP) and "pip install" in peer.install
    nowhere = peers.create(f"{name}:python=/nowhere/python").missing(SETUP)
    assert "/nowhere/python" in nowhere


def test_vllm_speculates_as_asked():
    peer = peers.create("vllm:draft_tokens=3,ngram_tokens=6")
    plain, draft, ngram = (peer.command(SETUP, variant) for variant in peer.variants)
    assert "--speculate" not in plain and after(plain, "--dtype") == "bfloat16"
    assert json.loads(after(draft, "--speculate")) == {"method": "draft_model", "model": "draft-folder", "num_speculative_tokens": 3}
    assert json.loads(after(ngram, "--speculate"))["num_speculative_tokens"] == 6
    with pytest.raises(ValueError, match="vllm-draft needs a draft model"):
        peer.command(SETUP._replace(draft=None), "vllm-draft")


def test_vllm_counts_one_answer_only(env, tmp_path):
    with Talk(peers.create(f"vllm:target={tmp_path}/target-folder").command(SETUP, "vllm-ngram"), env) as worker:
        assert worker.first["ready"]["precision"] == "bf16" and worker.first["ready"]["max_length"] == SETUP.max_context + 32
        for _ in range(2):
            said = worker.ask(max_tokens=7)
            assert said["tokens"] == [21, 22, 23, 24, 25, 26, 9] and said["finish_reason"] == "stop"
            assert [n for _, n in said["arrivals"]] == [1, 3, 3] and said["origins"] == "tddtddt"
            assert (said["accepted"], said["drafted"], said["passes"]) == (4, 10, 3)
        assert worker.ask(max_tokens=6)["finish_reason"] == "length"


def test_vllm_plain(env):
    with Talk(peers.create("vllm").command(SETUP, "vllm"), env) as worker:
        assert worker.ask() | {"seconds": 0, "arrivals": 0} == {
            "tokens": [21, 22, 9],
            "seconds": 0,
            "arrivals": 0,
            "origins": "ttt",
            "finish_reason": "stop",
            "accepted": 0,
            "drafted": 0,
            "passes": 3,
        }


def test_openvino_is_called_by_what_its_export_says(export):
    assert weights(export) == "int4" and weights(None) is None and weights("nowhere") is None
    peer = peers.create(f"openvino:target={export},draft={export}")
    assert peer.variants == ("openvino-int4", "openvino-int4-draft", "openvino-int4-lookup")
    assert peers.create(f"openvino:target={export},label=mine").variants[0] == "openvino-mine"
    plain, draft, lookup = (peer.command(SETUP, variant) for variant in peer.variants)
    assert "--draft" not in plain + lookup and after(draft, "--draft") == export and after(lookup, "--lookup") == "3"
    with pytest.raises(ValueError, match="needs the draft model as an export"):
        peers.create(f"openvino:target={export}").command(SETUP, "openvino-int4-draft")


def test_openvino_without_an_export(env, export, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", env["PYTHONPATH"])
    assert peers.create(f"openvino:target={export}").missing(SETUP) is None
    assert "openvino:target=FOLDER" in peers.create("openvino").missing(SETUP) and "optimum-cli export openvino" in peers.create("openvino").install
    assert "absent" in peers.create(f"openvino:target={export},draft=absent").missing(SETUP)


@pytest.mark.parametrize(
    ("way", "sizes", "counted"),
    [("", [1, 1, 1, 1], {"passes": 4}), ("-draft", [1, 2, 1], {"passes": 3, "accepted": 1, "drafted": 5}), ("-lookup", [1, 2, 1], {"passes": 3})],
)
def test_openvino_answers(env, export, way, sizes, counted):
    peer = peers.create(f"openvino:target={export},draft={export}")
    with Talk(peer.command(SETUP, f"openvino-int4{way}"), env) as worker:
        assert worker.first["ready"]["precision"] == "int4/bf16"
        said = worker.ask(max_tokens=4)
        assert said["tokens"] == [31, 32, 33, 34] and said["finish_reason"] == "length"
        assert [n for _, n in said["arrivals"]] == sizes
        assert {key: said[key] for key in ("passes", "accepted", "drafted") if key in said} == counted
        assert worker.ask(max_tokens=4, stop_ids=[34])["finish_reason"] == "stop"


def test_our_own_engine_beside_itself(gguf):
    target = gguf / "target.gguf"
    peer = peers.create(f"draftwise:name=gguf,backend=[llamacpp:threads=2],target={target},quantize=draft=int8,[plain],[fixed:n=3],[plain]")
    assert peer.variants == ("gguf/plain", "gguf/fixed:n=3")
    argv = peer.command(SETUP, "gguf/plain")
    options = dict(zip(argv[3::2], argv[4::2], strict=True))
    assert options["--backend"] == "llamacpp:threads=2" and options["--quantize"] == "draft=int8" and options["--prefix"] == "gguf/"
    assert options["--target"].endswith("target.gguf") and options["--draft"] == "draft-folder"
    assert "there is no 'absent'" in (peers.create("draftwise:target=absent,[plain]").missing(SETUP) or "")
    with pytest.raises(ValueError, match="did you mean 'breakeven'"):
        peers.create("draftwise:[breakevn]")
