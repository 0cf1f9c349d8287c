"""Worker of the peer llama.cpp: starts one `llama-server` and asks it over its own HTTP interface. Only the standard library is used.

The server tells with every token how long it has generated, measured once in a decode, and how many drafted tokens it has accepted. So the
tokens of one decode are known as such, however the network groups them.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

import lines  # type: ignore[import-not-found,unused-ignore]

START_S = 300.0
POLL_S = 0.1


class Group(NamedTuple):
    """The tokens of one decode: when the last of them came (s), how many, and how many of these had been drafted."""

    seconds: float
    size: int
    accepted: int


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--speculate", default="none", help="a --spec-type of llama-server")
    parser.add_argument("--draft", help="GGUF of the draft model")
    parser.add_argument("--draft-tokens", type=int, help="at most this many in a round; llama.cpp's default where not given")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    return parser.parse_args(argv)


def server_argv(args: argparse.Namespace, port: int) -> list[str]:
    """One slot, no cache from request to request, the same threads everywhere."""
    n = str(args.threads)
    argv = [args.server, "-m", args.model, "-c", str(args.context), "--host", "127.0.0.1", "--port", str(port), "--parallel", "1", "-t", n, "-tb", n]
    argv += ["--threads-http", "2", "--no-cache-prompt", "--cache-ram", "0", "--ctx-checkpoints", "0", "--no-context-shift", "--fit", "off"]
    if args.speculate != "none":
        argv += ["--spec-type", args.speculate]
    if args.draft:
        argv += ["-md", args.draft, "-td", n, "-tbd", n]
    if args.draft and args.draft_tokens:
        argv += ["--spec-draft-n-max", str(args.draft_tokens)]
    return argv


class Server:
    """A running llama-server. It is killed with this process."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.port = free_port()
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the server
        clean = {key: value for key, value in os.environ.items() if not key.startswith("LLAMA_ARG_")}
        argv = server_argv(args, self.port)
        self.process = subprocess.Popen(argv, stdout=self.log, stderr=self.log, env=clean, preexec_fn=lines.die_with_parent)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if (code := self.process.poll()) is not None:
                raise ValueError(f"llama-server ended with exit code {code} before it was ready: {last_words(self.log)}")
            try:
                if call(self.port, "GET", "/health").get("status") == "ok":
                    return
            except (OSError, ValueError):  # it does not listen yet, or still loads
                pass
            time.sleep(POLL_S)
        raise ValueError(f"llama-server was not ready after {START_S:.0f} s: {last_words(self.log)}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def last_words(log: IO[bytes]) -> str:
    """The last line that speaks of an error or a failure, otherwise the last one."""
    log.seek(0)
    said = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    bad = [line for line in said if re.search(r"error|fail|invalid|unable", line, re.IGNORECASE)]
    return (bad or said or ["it said nothing"])[-1]


def call(port: int, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """One request and its whole JSON answer. Raises ValueError with the server's message."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return checked(json.loads(response.read()))
    finally:
        connection.close()


def stream(port: int, body: dict[str, Any]) -> Iterator[tuple[float, dict[str, Any]]]:
    """The server-sent events of one completion, each with the seconds since the request was sent."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        text = json.dumps(body)
        begin = time.perf_counter()
        connection.request("POST", "/completion", text, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            checked(json.loads(response.read()))
        for line in response:
            head, _, data = line.partition(b":")
            if head in (b"data", b"error"):
                yield time.perf_counter() - begin, checked(json.loads(data))
    finally:
        connection.close()


def checked(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        error = answer["error"]
        raise ValueError(f"llama-server refused: {error.get('message', error) if isinstance(error, dict) else error}")
    return answer


def completion(request: dict[str, Any]) -> dict[str, Any]:
    """What is asked of /completion. Temperature before top-p, as transformers has it, and no other sampler."""
    return {
        "prompt": request["ids"],
        "n_predict": request["max_tokens"],
        "temperature": request.get("temperature", 0.0),
        "top_p": request.get("top_p", 1.0),
        "top_k": 0,
        "min_p": 0.0,
        "seed": request.get("seed", 0),
        "samplers": ["temperature", "top_p"],
        "cache_prompt": False,
        "return_tokens": True,
        "timings_per_token": True,
        "stream": True,
    }


def groups(events: Iterable[tuple[float, dict[str, Any]]]) -> tuple[list[int], list[Group], dict[str, Any]]:
    """The ids that were sent, the decodes they came from, and the last event. A token that ends inside a character is counted by the server
    but not sent, so there may be fewer ids than the sizes say."""
    tokens: list[int] = []
    found: list[Group] = []
    moment, seen, accepted = -1.0, 0, 0
    event: dict[str, Any] = {}
    for seconds, event in events:
        tokens += event.get("tokens", [])
        new, timings = event["tokens_predicted"] - seen, event["timings"]
        if new and timings["predicted_ms"] == moment:
            found[-1] = found[-1]._replace(seconds=seconds, size=found[-1].size + new)
        elif new:
            total = timings.get("draft_n_accepted", 0)
            found.append(Group(seconds, new, total - accepted))
            moment, accepted = timings["predicted_ms"], total
        seen = event["tokens_predicted"]
    return tokens, found, event


def answer(port: int, request: dict[str, Any]) -> dict[str, Any]:
    """One answer in the bench's words. Where the stream left ids out, the same request is made again, unmeasured and not streamed."""
    tokens, decodes, last = groups(stream(port, completion(request)))
    sent = len(tokens) == last["tokens_predicted"]
    if not sent:
        whole = call(port, "POST", "/completion", completion(request) | {"stream": False})["tokens"]
        if not in_order(tokens, whole) or len(whole) != last["tokens_predicted"]:
            raise ValueError("llama-server streamed an answer without some of its ids, and gave another one when asked for all of them")
        tokens = whole
    stops = set(request.get("stop_ids", []))
    end = next((i + 1 for i, token in enumerate(tokens) if token in stops), len(tokens))
    decodes = cut(decodes, end)
    stopped = end < len(tokens) or last["stop_type"] == "eos" or bool(tokens and tokens[-1] in stops)
    said = {
        "tokens": tokens[:end],
        "seconds": decodes[-1].seconds if decodes else 0.0,
        "arrivals": [[group.seconds, group.size] for group in decodes],
        "finish_reason": "stop" if stopped else "length",
        "accepted": last["timings"].get("draft_n_accepted", 0),
        "drafted": last["timings"].get("draft_n", 0),
    }
    if sent:  # otherwise tokens were seen with the decode after theirs
        origins = "".join("d" * group.accepted + "t" * (group.size - group.accepted) for group in decodes)
        said |= {"origins": origins, "passes": len(decodes)}
    return said


def in_order(some: list[int], whole: list[int]) -> bool:
    """Whether `some` is `whole` with tokens left out."""
    rest = iter(whole)
    return all(token in rest for token in some)


def cut(decodes: list[Group], end: int) -> list[Group]:
    """The decodes of the first `end` tokens. llama.cpp knows the stop tokens of its file only; what it wrote after another one is dropped."""
    kept: list[Group] = []
    for group in decodes:
        count = min(group.size, end)
        if count:
            kept.append(group._replace(size=count, accepted=min(group.accepted, count)))
        end -= count
    return kept


def precision(ftype: str) -> str:
    """The server's words for a file type as files are named: 'Q4_K - Medium' -> 'Q4_K_M'."""
    return re.sub(r" - (\w)\w*", r"_\1", ftype.replace("(guessed)", "").replace("all ", "")).strip()


def ready(server: Server, threads: int) -> dict[str, Any]:
    meta = call(server.port, "GET", "/v1/models")["data"][0]["meta"]
    build = call(server.port, "GET", "/props").get("build_info", "")
    facts = {"precision": precision(meta["ftype"]), "engine": "llamacpp", "versions": {"llama.cpp": build}, "threads": threads}
    return facts | {"vocab_size": meta["n_vocab"], "max_length": meta["n_ctx"]}


def main() -> None:
    args = arguments()
    running: list[Server] = []

    def start() -> tuple[dict[str, Any], lines.Answer]:
        running.append(Server(args))
        port = running[0].port
        return ready(running[0], args.threads), lambda request: answer(port, request)

    try:
        lines.run(start)
    finally:
        for server in running:
            server.close()


if __name__ == "__main__":
    main()
