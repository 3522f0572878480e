# SPDX-License-Identifier: Apache-2.0
"""A server that answers at once, to measure a client's own cost.

It streams prepared answers of TOKENS tokens in llama-server's events. Run as a program with the argument TOKENS, it
prints its address, and ends when its standard input ends.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.parts.servers.processes import running

PROPS = {"default_generation_settings": {"n_ctx": 1 << 20}, "total_slots": 4, "chat_template": ""}
MODELS = {"object": "list", "data": [{"id": "instant", "object": "model", "owned_by": "llamacpp", "meta": {}}]}


@contextmanager
def instant_server(tokens: int) -> Iterator[str]:
    """Run this server in a separate process, and yield its address."""
    with running("benchmarks.baselines.instant_server", str(tokens)) as address:
        yield address


def chat_events(tokens: int) -> bytes:
    """Return an answer of /v1/chat/completions."""
    head = {"created": 1, "id": "chatcmpl-1", "model": "instant", "system_fingerprint": "b1"}
    head["object"] = "chat.completion.chunk"
    events: list[Any] = [{"choices": [{"finish_reason": None, "index": 0, "delta": {"role": "assistant"}}], **head}]
    for number in range(tokens):
        delta = {"content": f" word{number % 10}"}
        events.append({"choices": [{"finish_reason": None, "index": 0, "delta": delta}], **head})
    events.append({"choices": [{"finish_reason": "stop", "index": 0, "delta": {}}], **head})
    events.append(
        {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5}, **head}
    )
    return _stream(events) + b"data: [DONE]\n\n"


def completion_events(tokens: int) -> bytes:
    """Return an answer of /completion."""
    events: list[Any] = []
    for number in range(1, tokens + 1):
        events.append(
            {
                "index": 0,
                "content": f" word{number % 10}",
                "tokens": [number % 10],
                "stop": False,
                "id_slot": -1,
                "tokens_predicted": number,
                "tokens_evaluated": 5,
            }
        )
    timings = {"cache_n": 0, "prompt_n": 5, "prompt_ms": 1.0, "predicted_n": tokens, "predicted_ms": 1.0}
    events.append({"content": "", "tokens": [], "stop": True, "stop_type": "eos", "timings": timings})
    return _stream(events)


def _stream(events: list[Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n" for event in events)


def main() -> None:
    tokens = int(sys.argv[1])
    answers = {"/v1/chat/completions": chat_events(tokens), "/completion": completion_events(tokens)}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer = {"/props": PROPS, "/v1/models": MODELS}.get(self.path)
            self._send(404 if answer is None else 200, "application/json", json.dumps(answer).encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answer = answers.get(self.path)
            self._send(404 if answer is None else 200, "text/event-stream", answer or b"{}")

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    import threading

    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
