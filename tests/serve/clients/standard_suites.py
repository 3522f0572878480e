# SPDX-License-Identifier: Apache-2.0
"""Run LangChain's standard suites with ChatOpenAI and ChatAnthropic, on `serve` and on llama-server.

    python -m tests.serve.clients.standard_suites                       every suite, then a table of what passed where
    python -m tests.serve.clients.standard_suites -k TestOpenAIOnServe  these; arguments are handed to pytest

Both servers run the same weights, with the same options of each client. The exit status is 1 where a test passes on
llama-server and fails on `serve`. It takes minutes, so the test suite does not run it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

import inference_bridge as ib

from ...parts.models.contract_models import DEMO_MODEL
from ...parts.servers.processes import llama_server
from ..conftest import running

LENGTH = 2048
SLOTS = 4
LONG = "A list of twenty animals, each with a colour: " + "the cat is black, " * 20
_COMMON: dict[str, Any] = {"model": "small", "api_key": "none", "max_retries": 0, "max_tokens": 160}

Start = Callable[[], AbstractContextManager[str]]


@contextmanager
def serve() -> Iterator[str]:
    with (
        ib.load_model(DEMO_MODEL, context_length=LENGTH, parallel_slots=SLOTS, threads=1) as model,
        running({"small": model}) as address,
    ):
        yield address


@contextmanager
def reference() -> Iterator[str]:
    with llama_server(DEMO_MODEL.removeprefix("llama_cpp:"), slots=SLOTS, length=LENGTH) as address:
        yield address


class Standard(ChatModelIntegrationTests):
    """The tests of one client on one server. `start` runs the server, `options` are the client's."""

    start: Start
    options: dict[str, Any]
    url_path = ""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _server(cls) -> Iterator[None]:
        with cls.start() as address:
            cls.options = cls.options | {"base_url": address + cls.url_path}
            yield

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return self.options

    supports_json_mode = False

    @property
    def supported_usage_metadata_details(self) -> Any:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        chat = self.chat_model_class(**self.chat_model_params)
        chat.invoke(LONG, max_tokens=4)
        if not stream:
            answer = chat.invoke(LONG, max_tokens=4)
        else:
            first, *others = chat.stream(LONG, max_tokens=4)
            answer = first.__add__(others)
        assert isinstance(answer, AIMessage)
        return answer


class OpenAI(Standard):
    chat_model_class = ChatOpenAI
    options = _COMMON | {"temperature": 0, "presence_penalty": 0.3, "stream_usage": True}
    url_path = "/v1"
    supports_json_mode = True
    model_override_value = "small"


class Anthropic(Standard):
    chat_model_class = ChatAnthropic
    options = _COMMON | {"model_kwargs": {"extra_body": {"temperature": 0}}}
    model_override_value = "small"
    supports_anthropic_inputs = True


class TestOpenAIOnServe(OpenAI):
    start = staticmethod(serve)


class TestOpenAIOnLlamaServer(OpenAI):
    start = staticmethod(reference)


class TestAnthropicOnServe(Anthropic):
    start = staticmethod(serve)


class TestAnthropicOnLlamaServer(Anthropic):
    start = staticmethod(reference)


class Outcomes:
    """The outcome of each test, by client and server."""

    def __init__(self) -> None:
        self.of: dict[tuple[str, str], dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        _, suite, test = report.nodeid.split("::", 2)
        client, _, server = suite.removeprefix("Test").partition("On")
        self.of.setdefault((client, test), {})[server] = report.outcome

    def table(self) -> str:
        lines = []
        for client in sorted({client for client, _ in self.of}):
            rows = {test: servers for (one, test), servers in self.of.items() if one == client}
            for server in ("Serve", "LlamaServer"):
                ran = [servers[server] for servers in rows.values() if server in servers]
                lines.append(f"{client} on {server}: {ran.count('passed')} passed, {ran.count('failed')} failed")
            lines += [
                f"  {test:<70} " + "  ".join(f"{server}: {outcome}" for server, outcome in sorted(servers.items()))
                for test, servers in rows.items()
                if "failed" in servers.values()
            ]
        return "\n".join(lines)

    def worse(self) -> bool:
        return any(
            servers.get("Serve") == "failed" and servers.get("LlamaServer") == "passed" for servers in self.of.values()
        )


def main(arguments: list[str]) -> int:
    outcomes = Outcomes()
    # the clients keep their connections between tests, and these belong to one event loop
    one_loop = ["-o", "asyncio_default_test_loop_scope=session"]
    pytest.main([__file__, "-q", "-p", "no:cacheprovider", "-W", "ignore", *one_loop, *arguments], plugins=[outcomes])
    sys.stdout.write(outcomes.table() + "\n")
    return int(outcomes.worse())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
