# SPDX-License-Identifier: Apache-2.0
"""Answers that differ from OpenAI's in their form: what is understood, and what is an error."""

from __future__ import annotations

import asyncio
import email.utils
import gzip
import json
import time
from typing import Any

import pytest

from inference_bridge import GenerateResult, ServerError, TextModel
from inference_bridge.backends.http.transport import transfer
from inference_bridge.backends.http.transport.errors import of_status

from ....parts.servers.fault_server import HEAD, Answer, events, finish, raw, status, stream
from ....parts.servers.recorded import CHAT, USER, recorded

MODELS = {"data": [{"id": "m", "object": "model"}]}


def said(reason: Any = None, *, index: Any = 0, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": reason}]}


def whole(body: Any, kind: str = "application/json") -> Answer:
    """An answer that is not streamed."""
    return status(200, body if isinstance(body, bytes) else json.dumps(body).encode(), Content_Type=kind)


def message(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", **fields}, "finish_reason": "stop"}]}


def chunked(content: bytes, end: bytes = b"") -> Answer:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = [content[:30], content[30:]]
    body = b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in pieces)
    return raw(head + body + b"0\r\n" + end + b"\r\n")


def compressed(content: bytes) -> Answer:
    return raw(HEAD[:-2] + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(content))


@pytest.fixture(params=["sync", "async"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def result_of(model: TextModel, mode: str) -> GenerateResult:
    if mode == "sync":
        return model.chat(USER).result()

    async def main() -> GenerateResult:
        try:
            return await model.achat(USER).result()
        finally:
            await model.aclose()

    return asyncio.run(main())


HI, END = said(content="Hi"), said("stop")
GOOD = events(HI, END)
USAGE = {"prompt_tokens": 3, "completion_tokens": 1}

UNDERSTOOD: dict[str, Answer] = {
    "usage with empty choices": stream(HI, END, {"choices": [], "usage": USAGE}),
    "usage with null choices": stream(HI, END, {"choices": None, "usage": USAGE}),
    "usage without choices": stream(HI, END, {"usage": USAGE}),
    "filters first": stream({"choices": [], "prompt_filter_results": [{}]}, HI, END),
    "a role first": stream(said(role="assistant"), said(role="assistant", content=""), HI, END),
    "nulls": stream(said(content="Hi", tool_calls=None, function_call=None, refusal=None, reasoning=None), END),
    "an empty finish reason": stream(said("", content="Hi"), END),
    "another finish reason": stream(HI, said("end_turn")),
    "no index": stream(said(index=None, content="Hi"), {"choices": [{"delta": {}, "finish_reason": "stop"}]}),
    "content in parts": stream(said(content=[{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]), END),
    "no [DONE]": stream(HI, END, done=False),
    "[DONE] and a space": raw(HEAD, events(HI, END, done=False), b"data: [DONE] \n\n"),
    "CRLF": raw(HEAD, GOOD.replace(b"\n", b"\r\n")),
    "a byte order mark": raw(HEAD, b"\xef\xbb\xbf" + GOOD),
    "comments": raw(HEAD, b": a\n\n:\n\ndata:\n\n" + GOOD.replace(b"\n\n", b"\n\n: ping\n\n")),
    "other fields": raw(HEAD, GOOD.replace(b"data:", b"event: message\nid: 1\nretry: 5\ndata:")),
    "pings": raw(HEAD, b'event: ping\ndata: {"type":"ping"}\n\n' + GOOD),
    "chunks": chunked(GOOD),
    "trailers": chunked(GOOD, b"X-Checksum: 1\r\nServer-Timing: x\r\n"),
    "gzip": compressed(GOOD),
    "a message in an event": stream(message(content="Hi")),
    "a whole answer": whole(message(content="Hi") | {"usage": USAGE}),
    "a whole answer, indented": whole(json.dumps(message(content="Hi"), indent=1).encode()),
}


@pytest.mark.parametrize("form", UNDERSTOOD)
def test_an_answer_of_another_form_is_understood(form: str, mode: str) -> None:
    with recorded(MODELS, {CHAT: UNDERSTOOD[form]}) as (_, model):
        result = result_of(model, mode)
        assert (result.text, result.reasoning, result.finish_reason) == ("Hi", "", "stop")
        if "usage" in form:
            assert result.metrics.prompt_tokens == 3


@pytest.mark.parametrize(
    "parts",
    [
        [said(thinking="Hm"), HI],
        [said(reasoning="Hm", reasoning_content="Hm"), HI],
        [said(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}]), HI],
        [said(content=[{"type": "thinking", "thinking": "Hm"}, {"type": "text", "text": "Hi"}])],
        [said(reasoning_content="Hm", content=""), said(reasoning_content="", content="Hi")],
    ],
)
def test_reasoning_has_several_names(parts: list[Any], mode: str) -> None:
    with recorded(MODELS, {CHAT: stream(*parts, END)}) as (_, model):
        result = result_of(model, mode)
        assert (result.text, result.reasoning) == ("Hi", "Hm")


@pytest.mark.parametrize("reason", ["length", "max_tokens", "MAX_TOKENS", "model_length", "max_new_tokens"])
def test_the_limit_has_several_names(reason: str) -> None:
    with recorded(MODELS, {CHAT: stream(HI, said(reason))}) as (_, model):
        assert result_of(model, "sync").finish_reason == "length"


SO = "So it is"
BEGUN = HEAD + events(HI, done=False)
FAILED = {"index": 0, "delta": {}, "finish_reason": "error", "error": {"message": SO}}

BROKEN: dict[str, tuple[Answer, str, str]] = {
    "an error as the whole answer": (whole({"error": {"message": SO, "code": 429}}), SO, ""),
    "a detail as the whole answer": (whole({"detail": SO}), SO, ""),
    "a sentence as the whole answer": (whole(SO.encode(), "text/plain"), SO, ""),
    "a page as the whole answer": (whole(b"<html><body>So it is</body></html>", "text/html"), SO, ""),
    "an error event": (raw(BEGUN, b'event: error\ndata: {"message":"So it is"}\n\n'), SO, "Hi"),
    "an error event of text": (raw(BEGUN, b"event: error\ndata: So it is\n\n"), SO, "Hi"),
    "an error outside of events": (raw(BEGUN, b'{"error":"So it is"}\n'), SO, "Hi"),
    "an error of a choice": (stream(HI, {"choices": [FAILED]}), SO, "Hi"),
    "a filter": (stream(HI, said("content_filter")), "content filter", "Hi"),
    "a server that gives up": (stream(HI, said("insufficient_system_resource")), "gave the answer up", "Hi"),
    "a refusal": (stream(said(refusal="I can't "), said(refusal="say."), END), "refused", "I can't say."),
    "several answers in turn": (stream(HI, said(index=1, content="Yo"), END), "several answers", "Hi"),
    "several answers in an event": (stream({"choices": [*HI["choices"], FAILED]}), "several answers", ""),
    "[DONE] alone": (stream(), "broke off", ""),
    "nothing": (whole(b""), "broke off", ""),
}


@pytest.mark.parametrize("form", BROKEN)
def test_an_answer_that_is_not_whole_is_an_error(form: str, mode: str) -> None:
    answer, match, text = BROKEN[form]
    with recorded(MODELS, {CHAT: answer}) as (_, model), pytest.raises(ServerError, match=match) as caught:
        result_of(model, mode)
    assert caught.value.partial is not None
    assert caught.value.partial.text == text


def test_what_comes_outside_of_events_quotes_no_key() -> None:
    key = "sk-0123456789abcdef"
    with (
        recorded(MODELS, {CHAT: whole(f"wrong: {key}".encode(), "text/plain")}, api_key=key) as (_, model),
        pytest.raises(ServerError, match="wrong") as caught,
    ):
        result_of(model, "sync")
    assert key not in str(caught.value)


@pytest.mark.parametrize("form", ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "0", "soon", "-5"])
def test_a_busy_server_is_asked_again(form: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9110, 10.2.3: seconds, or a date. What is neither is ignored."""
    monkeypatch.setattr(transfer, "FIRST_PAUSE", 0.01)
    with recorded(MODELS, {}) as (server, model):
        server.answers[CHAT] = [status(429, b"{}", Retry_After=form), stream(HI, finish())]
        assert result_of(model, mode).text == "Hi"


def test_a_date_to_wait_for_is_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    date = email.utils.formatdate(time.time() + 3600, usegmt=True)
    forms = (date, date.replace(" GMT", ""), date.replace("GMT", "-0000"))
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        time.tzset()
        waits = [of_status("http://h/x", 429, {"retry-after": form}, b"").wait for form in forms]
    time.tzset()
    assert waits == [pytest.approx(3600, abs=100)] * len(forms)
