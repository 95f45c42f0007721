"""Responses of an endpoint: a small server speaks chat completions over HTTP, and is slow, wrong or gone at will."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from align.cli import main
from align.core.config import BadInput, build
from align.core.http import retry_after
from align.core.run_record import RunRecord, read_run
from align.generate.completions import failure_text, refused_field, request_body, sample_of
from align.generate.endpoint import Endpoint, _ServerAnswer
from align.generate.run import SampleConfig, sample
from align.generate.sampler import Request, Sample
from annotation.campaign.candidates import read_candidates

KEY = "sk-secret-7f3a"
MODEL = "tiny-chat"


class Completions(ThreadingHTTPServer):
    """``faults`` are met by the next requests, one each (bytes are the whole answer); ``several`` is what becomes of
    ``n``; ``seen`` are bodies."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults: list[str | bytes] = []
        self.headers: dict[str, str] = {}  # of answers that are bytes
        self.several = "taken"
        self.refuses: set[str] = set()
        self.seen: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.guard = threading.Lock()
        self.awaited = threading.Event()  # some request is being waited with
        self.refused = threading.Event()  # a request came that is to be refused
        self.ended = threading.Event()  # the client asks nothing more

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Completions
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.guard:
            fault = self.server.faults.pop(0) if self.server.faults else ""
            self.server.times.append(time.monotonic())
        asked = body["messages"][-1]["content"]
        if isinstance(fault, bytes):
            return self._reply(200, fault, self.server.headers)
        if fault == "endless":
            return self._go_on()
        if fault == "hang up":
            self.close_connection = True
            return self.connection.close()
        if fault == "page":
            return self._reply(200, b"<html>hello</html>")
        if fault.isdigit():
            return self._error(int(fault), f"failed for {self.headers.get('Authorization')}")
        if fault == "wait":
            return self._error(429, "slow down", {"Retry-After": "0.7"})
        if fault == "401 then":
            self.server.refused.set()
            self.server.awaited.wait(60)
            return self._error(401, "no such key")
        if fault == "held":  # and answered then
            self.server.ended.wait(60)
        if fault == "later":
            self.server.refused.wait(60)
            return self._error(503, "come back", {"Retry-After": "60"})
        if fault == "quota":
            return self._error(429, "pay first", code="insufficient_quota")
        if fault == "hidden":
            return self._reply(200, json.dumps({"error": {"message": "overloaded", "code": 502}}).encode())
        if fault == "elsewhere":
            return self._reply(301, b"", {"Location": f"https://api.example.com/v2?key={KEY}"})
        if self.path != "/v1/chat/completions":
            return self._reply(404, b'{"detail": "Not Found"}')
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            return self._error(401, f"Incorrect API key provided: {self.headers.get('Authorization')}")
        if body["model"] != MODEL:
            return self._error(404, f"The model `{body['model']}` does not exist.")
        for field in self.server.refuses & body.keys():
            return self._error(400, f"Unsupported parameter: '{field}' is not supported with this model.")
        if body.get("n", 1) > 1 and self.server.several == "refused":
            return self._error(400, "Only one completion choice is allowed")
        if "forbidden" in asked:
            return self._error(400, f"flagged after {len(asked)} characters", code="content_filter")
        with self.server.guard:
            self.server.seen.append(body)
        n = body.get("n", 1) if self.server.several == "taken" else 1
        choices = [self._choice(asked, body.get("seed"), i) for i in range(n)]
        usage = {"prompt_tokens": 5, "completion_tokens": 3 * n}
        answer = {"object": "chat.completion", "model": f"{MODEL}-2026", "choices": choices, "usage": usage}
        return self._reply(200, json.dumps(answer).encode())

    def _choice(self, asked: str, seed: int | None, index: int) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": f"{asked}: {seed}.{index}"}
        reason = "length" if "long" in asked else "stop"
        if "tool" in asked:
            call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"word": "sky"}'}}
            message, reason = {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls"
        if "think" in asked:
            message["reasoning_content"] = "let me see"
        if "filtered" in asked and index == 0:
            reason = "content_filter"
        if "broken off" in asked and index == 0:
            reason = "error"
        if "key" in asked:
            message |= {"content": f"{asked}: {KEY} or {seed}.{index}", "reasoning_content": f"they gave me {KEY}"}
        if "silent" in asked:
            message["content"] = " "
        return {"index": index, "message": message, "finish_reason": reason}

    def _error(self, status: int, text: str, headers: dict[str, str] | None = None, code: str | None = None) -> None:
        self._reply(status, json.dumps({"error": {"message": text, "code": code}}).encode(), headers)

    def _reply(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _go_on(self) -> None:
        """An answer without an end."""
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b" " * 4096)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Completions]:
    monkeypatch.setenv("ALIGN_ENDPOINT_KEY", KEY)
    monkeypatch.setattr("align.generate.endpoint.SHORTEST_PAUSE", 0.02)
    found = Completions()
    threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def prompts(folder: Path, *texts: str) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text, "split": "train"}) + "\n" for text in texts))
    return file


def run(folder: Path, url: str, file: Path, **changes: Any) -> tuple[RunRecord, list[dict[str, Any]]]:
    given = {"run": folder, "endpoint": url, "model": MODEL, "prompts": file, "k": 3} | changes
    record = sample(build(SampleConfig, given, "test"))
    return record, [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]


def test_reasoning_between_marks_is_parted_from_the_answer() -> None:
    """Servers without a parser of reasoning send it as content."""
    choice = {"message": {"content": "<think>\nlet me see\n</think>\n\nblue"}, "finish_reason": "stop"}
    assert sample_of(choice).message == {"role": "assistant", "content": "blue", "reasoning_content": "let me see"}
    cut = {"message": {"content": "<think>\nlet me"}, "finish_reason": "length"}
    message = {"role": "assistant", "content": "", "reasoning_content": "let me"}
    assert sample_of(cut) == Sample(message, ended=False, ids=None, logprobs=None)


def test_responses_come_as_candidates_with_what_they_hold(tmp_path: Path, server: Completions) -> None:
    file = prompts(
        tmp_path, "hello", "hello", "a long one", "use a tool", "think first", "filtered", "silent", "broken off"
    )
    record, rows = run(tmp_path / "run", server.url + "/", file, temperature=0.7, max_new_tokens=9)
    assert [row["prompt"][0]["content"] for row in rows] == [
        "hello", "a long one", "use a tool", "think first", "filtered", "broken off",
    ]  # fmt: skip
    plain, long, tool, think, filtered, broken = (row["responses"] for row in rows)
    assert len({r["messages"][0]["content"] for r in plain}) == 3 and all(r["ended"] for r in plain)
    assert {r["origin"] for r in plain} == {MODEL}
    assert not any(r["ended"] for r in long)
    assert tool[0]["messages"][0]["tool_calls"][0]["function"] == {"name": "look_up", "arguments": {"word": "sky"}}
    assert think[0]["messages"][0]["reasoning_content"] == "let me see"
    assert len(filtered) == len(broken) == 2
    assert len(server.seen) == 7 and {body["n"] for body in server.seen} == {3}
    assert {(body["temperature"], body["max_tokens"]) for body in server.seen} == {(0.7, 9)}
    assert record.dropped == {
        "repeated prompt": 1,
        "response withheld by the endpoint": 2,
        "empty response": 3,
        "prompt with empty responses only": 1,
    }
    assert record.headline["served_by"] == [f"{MODEL}-2026"]
    assert (record.headline["prompt_tokens"], record.headline["completion_tokens"]) == (35, 63)
    read = read_candidates([tmp_path / "run"], lambda reason, count: None, keep_unended=False, at_least=2)
    assert len(read) == 4, "cut responses, and equal ones, are nothing to compare"


@pytest.mark.parametrize("several", ["refused", "ignored"])
def test_where_one_request_gives_one_response_each_has_its_own_seed(
    tmp_path: Path, server: Completions, several: str
) -> None:
    server.several = several
    file = prompts(tmp_path, *(f"question {i}" for i in range(6)))
    _, first = run(tmp_path / "a", server.url, file)
    assert len(server.seen) == 18
    seeds = [body["seed"] for body in server.seen]
    assert len(set(seeds)) == 18 and all(0 <= seed < 2**31 for seed in seeds)
    assert sum("n" in body for body in server.seen) <= 4, "asked for several only until it was known"
    assert run(tmp_path / "b", server.url, file)[1] == first
    assert run(tmp_path / "c", server.url, file, seed=1)[1] != first


def test_fields_that_a_server_does_not_take_are_left_out(tmp_path: Path, server: Completions) -> None:
    server.refuses = {"seed", "max_tokens"}
    record, rows = run(tmp_path / "run", server.url, prompts(tmp_path, "one", "use a tool"), max_new_tokens=7)
    assert len(rows) == 2
    assert all(body["max_completion_tokens"] == 7 and "seed" not in body for body in server.seen)
    assert [("takes no seeds" in note, "wrote the same" in note) for note in record.notes] == [(True, False)]


def test_a_server_that_does_not_sample_is_told_of(tmp_path: Path, server: Completions) -> None:
    record, _ = run(tmp_path / "run", server.url, prompts(tmp_path, "use a tool", "use another tool"))
    assert ["wrote the same 3 times to every prompt" in note for note in record.notes] == [True]


def test_every_prompt_is_answered_once_through_faults(
    tmp_path: Path, server: Completions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endpoint(url: str, model: str) -> Endpoint:
        made = Endpoint(url, model)
        made._patience.has_answered = True  # whichever of several requests at once is answered first
        return made

    monkeypatch.setattr("align.generate.endpoint.Endpoint", endpoint)
    texts = [f"question {i}" for i in range(12)]
    server.faults = ["503", "", "hang up", "hidden", "wait", "", "page", "500", "hang up", "", "408"]
    _, rows = run(tmp_path / "run", server.url, prompts(tmp_path, *texts))
    assert [row["prompt"][0]["content"] for row in rows] == texts
    assert Counter(body["messages"][0]["content"] for body in server.seen) == Counter(texts)


def test_a_server_that_wants_to_be_left_alone_is(tmp_path: Path, server: Completions) -> None:
    server.faults = ["wait"]
    run(tmp_path / "run", server.url, prompts(tmp_path, "one"))
    assert server.times[1] - server.times[0] >= 0.7
    assert 58 < (retry_after(time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))) or 0) <= 60
    assert retry_after("soon") is None


@pytest.mark.parametrize(
    "value",
    ["0", "-1", "nan", "inf", "1e999", "soon", "", "Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 01 Jan 99999 0:0:0 GMT"],
)
def test_a_server_that_asks_for_no_wait_shortens_no_pause(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert retry_after(value) is None
    pauses = waits(value, monkeypatch)
    assert pauses[0] >= 0.5 and all(later > 1.3 * sooner for sooner, later in pairwise(pauses[:5])), pauses


@pytest.mark.parametrize("value", ["1e9", "100000", "Fri, 01 Jan 2999 00:00:00 GMT"])
def test_a_server_that_asks_for_a_long_wait_is_asked_again_after_a_minute(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert waits(value, monkeypatch) == [60.0] * 5, "five minutes of patience"


def waits(value: str, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long an endpoint waits for a server that is busy for good and names a time in ``Retry-After``."""
    pauses: list[float] = []

    class Clock:
        """Time that passes by waiting alone."""

        time = staticmethod(time.time)

        @staticmethod
        def monotonic() -> float:
            return sum(pauses)

    class Stop:
        def wait(self, seconds: float) -> bool:
            pauses.append(seconds)
            return False

        def is_set(self) -> bool:
            return False

    monkeypatch.setattr("align.core.http.time", Clock)
    monkeypatch.setattr("align.core.http.random.uniform", lambda low, high: low)
    endpoint = Endpoint("http://127.0.0.1:9/v1", "m")
    reply = _ServerAnswer(429, httpx.Headers({"Retry-After": value}), {"error": {"message": "slow down"}}, False)
    monkeypatch.setattr(endpoint, "_exchange", lambda content: reply)
    monkeypatch.setattr(endpoint._patience, "stop", Stop())
    with pytest.raises(BadInput, match="no usable answer for"):
        endpoint.ask(Request("p", ("key",), []))
    return pauses


def test_who_waits_is_woken_when_the_run_ends(
    tmp_path: Path, server: Completions, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[bool] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            server.awaited.set()
            waits.append(super().wait(timeout))
            return waits[-1]

    def endpoint(url: str, model: str) -> Endpoint:
        made = Endpoint(url, model)
        made._patience.stop = Stop()
        return made

    monkeypatch.setattr("align.generate.endpoint.Endpoint", endpoint)
    server.faults = ["", "", "later", "401 then"]
    with pytest.raises(BadInput, match="refuses the key"):
        run(tmp_path / "run", server.url, prompts(tmp_path, *(f"question {i}" for i in range(4))))
    assert waits and all(waits), "no pause lasted to its end"


def test_an_interrupted_run_goes_on_where_it_was(
    tmp_path: Path, server: Completions, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(threading.Event):
        def set(self) -> None:
            super().set()
            server.ended.set()

    def endpoint(url: str, model: str) -> Endpoint:
        made = Endpoint(url, model)
        made._patience.stop = Stop()
        return made

    monkeypatch.setattr("align.generate.endpoint.Endpoint", endpoint)
    texts = [f"question {i}" for i in range(20)]
    file = prompts(tmp_path, *texts, "forbidden")
    server.faults = [""] * 9 + ["401"] + ["held"] * 20
    with pytest.raises(BadInput, match="refuses the key"):
        run(tmp_path / "run", server.url, file)
    answered = [body["messages"][0]["content"] for body in server.seen]
    server.faults = []
    assert 9 <= len(answered) < 20, "answers under way are kept, the rest is not asked"
    part = tmp_path / "run" / "checkpoints" / "replies.jsonl"
    assert len(part.read_text().splitlines()) == len(answered)
    beyond = json.loads(part.read_text().splitlines()[0]) | {"step": 21}
    with open(part, "a") as file_:  # a number there is no prompt of, a row of other code, and half a line
        file_.write(json.dumps(beyond) + '\n{"step": 17, "text": "other keys"}\n{"step": 17, "id": "half a li')
    record, rows = run(tmp_path / "run", server.url, file)
    assert [row["prompt"][0]["content"] for row in rows] == texts
    assert Counter(body["messages"][0]["content"] for body in server.seen) == Counter(texts)
    assert record.dropped == {"prompt refused by the endpoint: flagged after N characters": 1}
    assert record.headline["responses"] == 60 and not part.exists()
    lost = f"2 answers could not be read and are asked for again (line {len(answered) + 3} (not JSON))"
    assert any(note.endswith(lost) for note in record.notes)


@pytest.mark.parametrize(
    ("faults", "changes", "problem"),
    [
        (["401"], {}, "refuses the key (status 401"),
        ([], {"model": "gpt-9"}, "has no model 'gpt-9' (The model `gpt-9` does not exist.)"),
        ([], {"endpoint": "URL/wrong"}, "no chat completions there (status 404: Not Found)"),
        (["page"], {}, "no chat completions there (status 200: a page and not data)"),
        (["quota"], {}, "the account's quota is used up (pay first)"),
        (["elsewhere"], {}, "sends elsewhere (https://api.example.com/v2)"),
        ([], {"endpoint": "http://127.0.0.1:9/v1"}, "no usable answer"),
        ([], {"prompts": "forbidden"}, "refused all of 1 prompts"),
    ],
)
def test_a_fault_that_cannot_be_waited_for_is_one_line_without_the_key(
    tmp_path: Path,
    server: Completions,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    faults: list[str],
    changes: dict[str, str],
    problem: str,
) -> None:
    monkeypatch.setattr("align.generate.endpoint.FIRST_PATIENCE", 0.1)
    server.faults = faults
    words = {"endpoint": server.url, "model": MODEL, "prompts": str(prompts(tmp_path, "hello")), **changes}
    words["endpoint"] = words["endpoint"].replace("URL", server.url)
    if "prompts" in changes:
        words["prompts"] = str(prompts(tmp_path, changes["prompts"]))
    code = main.run(["sample", *(w for k, v in words.items() for w in (f"--{k}", v)), "--run", str(tmp_path / "run")])
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("align: ")]
    assert code == 2 and len(lines) == 1 and problem in lines[0]
    assert read_run(tmp_path / "run").status == "failed"
    left = [path.read_text() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert left and not any(KEY in text for text in [*left, *lines])


def test_a_server_that_never_answers_is_waited_for_and_named(
    tmp_path: Path, server: Completions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("align.generate.endpoint.Endpoint", lambda url, model: Endpoint(url, model, patience=0.3))
    server.faults = ["500"] * 99
    with pytest.raises(BadInput, match=r"no usable answer.*status 500.*what was answered is kept") as problem:
        run(tmp_path / "run", server.url, prompts(tmp_path, "hello"))
    assert KEY not in str(problem.value) and "[key]" in str(problem.value)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"endpoint": f"https://me:{KEY}@host/v1", "model": MODEL}, "holds a user name, password or parameters"),
        ({"endpoint": f"https://host/v1?key={KEY}", "model": MODEL}, "holds a user name, password or parameters"),
        ({"endpoint": "host:8000", "model": MODEL}, "is no address of a server"),
        ({"endpoint": "http://host/v1"}, "go together"),
        ({"endpoint": "http://host/v1", "model": MODEL, "policy": "run"}, "one of the two"),
        ({}, "one of the two"),
    ],
)
def test_a_source_that_cannot_be_is_refused_by_the_config(tmp_path: Path, given: dict[str, str], problem: str) -> None:
    with pytest.raises(BadInput, match=problem) as error:
        build(SampleConfig, {"run": tmp_path / "run", "prompts": prompts(tmp_path, "hello"), **given}, "test")
    assert KEY not in str(error.value)


def test_tool_calls_of_a_prompt_are_sent_as_the_protocol_wants_them() -> None:
    call = {"function": {"name": "look_up", "arguments": {"word": "ciel é"}}}
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    request = Request("p", ("key",), messages, [{"type": "function"}], {"think": False})
    body = request_body(request, "m", 1, 4, ())
    sent = body["messages"][1]["tool_calls"][0]
    assert sent == {"type": "function", "function": {"name": "look_up", "arguments": '{"word": "ciel é"}'}}
    assert body["tools"] == [{"type": "function"}] and body["chat_template_kwargs"] == {"think": False}
    assert "n" not in body and call["function"]["arguments"] == {"word": "ciel é"}, "the prompt itself stays"


def completion(**message: Any) -> dict[str, Any]:
    """A chat completion whose one message has these fields."""
    return {"choices": [{"message": {"role": "assistant", "content": "fine", **message}, "finish_reason": "stop"}]}


ODD: dict[str, tuple[Any, str]] = {
    "no choices": ({"object": "chat.completion"}, "'choices' is missing, expected a list"),
    "choices are an object": ({"choices": {"0": 1}}, "'choices' is an object"),
    "a choice is text": ({"choices": ["fine"]}, "'choices[0].message' is missing"),
    "content is a number": (completion(content=5), "'choices[0].message.content' is a number, expected text"),
    "content is parts": (completion(content=[{"type": "text"}]), "'choices[0].message.content' is a list"),
    "reasoning is an object": (completion(reasoning={}), "'choices[0].message.reasoning' is an object"),
    "calls are a number": (completion(tool_calls=5), "tool_calls' is a number"),
    "a call of nothing": (completion(tool_calls=[{"function": {"name": None}}]), "without the name of a function"),
    "a list": ([1], "no chat completions there"),
    "deep": (b'{"choices":' + b"[" * 9000 + b"]" * 9000 + b"}", "no chat completions there"),
    "cut": (b'{"choices": [{"mess', "no chat completions there"),
    "latin": ('{"choices": "é"}'.encode("latin-1"), "no chat completions there"),
    "no gzip": (b"no gzip", "no usable answer (DecodingError"),
    "too much": (gzip.compress(b" " * 5000), "an answer went on beyond 4 KiB or 30 minutes"),
}


@pytest.mark.parametrize("name", [*ODD, "endless"])
def test_an_odd_answer_is_a_fault_of_the_endpoint_and_one_line(
    name: str, tmp_path: Path, server: Completions, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("align.generate.endpoint.FIRST_PATIENCE", 0.05)
    monkeypatch.setattr("align.generate.endpoint.MOST_ANSWER", 4096 if name == "too much" else 1 << 16)
    answer, problem = ODD.get(name, (None, "an answer went on beyond 64 KiB"))
    if name == "endless":
        server.faults = ["endless"]
    else:
        server.faults = [answer if isinstance(answer, bytes) else json.dumps(answer).encode()] * 9
    if name in ("no gzip", "too much"):
        server.headers = {"Content-Encoding": "gzip"}
    words = ["sample", "--endpoint", server.url, "--model", MODEL, "--prompts", str(prompts(tmp_path, "hello"))]
    code = main.run([*words, "--run", str(tmp_path / "run")])
    lines = capfd.readouterr().err.splitlines()
    assert code == 2 and not any("Traceback" in line for line in lines)
    assert [problem in line for line in lines if line.startswith("align: ")] == [True], lines


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"detail": [{"loc": ["body", "n"], "msg": "too many"}]}, "'n': too many"),
        ({"error": [{"loc": 5, "msg": {}}, "x", {"loc": []}]}, "'5': {}; x; '?': None"),
        ({"error": {"message": ["odd"]}}, "odd"),
        ({"error": 7}, "7"),
        ([7], "a page and not data"),
    ],
)
def test_a_refusal_is_read_whatever_its_form(data: Any, problem: str) -> None:
    assert failure_text(data) == problem
    assert refused_field(data) == ("n" if "'n'" in problem else None)


@pytest.mark.parametrize(
    "usage", [None, {}, 5, [1], {"prompt_tokens": "5", "completion_tokens": -1}, {"prompt_tokens": float("nan")}]
)
def test_tokens_that_were_not_counted_are_no_number(tmp_path: Path, server: Completions, usage: Any) -> None:
    server.faults = [json.dumps({**completion(content=None), "usage": usage}).encode()]
    server.faults += [json.dumps({**completion(), "usage": usage}).encode()] * 2
    record, rows = run(tmp_path / "run", server.url, prompts(tmp_path, "hello"))
    assert [len(row["responses"]) for row in rows] == [2] and record.dropped == {"empty response": 1}
    assert record.headline["prompt_tokens"] is record.headline["completion_tokens"] is None
    assert any("did not count the tokens" in note for note in record.notes)


def test_a_key_that_an_answer_repeats_is_written_nowhere(
    tmp_path: Path, server: Completions, capfd: pytest.CaptureFixture[str]
) -> None:
    record, rows = run(tmp_path / "run", server.url, prompts(tmp_path, "the key", "hello"), k=2)
    shown = rows[0]["responses"][0]["messages"][0]
    assert shown["content"].startswith("the key: [key] or ") and shown["reasoning_content"] == "they gave me [key]"
    assert [note for note in record.notes if "1 answers repeated the key" in note]
    left = [path.read_text() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not any(KEY in text for text in [*left, *capfd.readouterr()])
