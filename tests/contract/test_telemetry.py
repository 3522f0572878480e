# SPDX-License-Identifier: Apache-2.0
"""Operations are reported to OpenTelemetry only if the application uses it; otherwise nothing is imported."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import opentelemetry.context  # noqa: F401 - so that this process is one that uses it
import pytest

from inference_bridge import _telemetry, observability
from inference_bridge.availability import install_command
from tests.parts.models.tiny import Words


def run(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parents[2],
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout.strip()


def test_opentelemetry_is_not_imported_if_the_application_does_not_use_it(demo_model_path: Path) -> None:
    program = f"""
import asyncio, sys
from inference_bridge import load_model
with load_model({str(demo_model_path)!r}, backend="llama_cpp", context_length=256, threads=1) as model:
    assert model.generate("a", max_tokens=2).text()
    assert model.batch_generate(["a"], max_tokens=2)[0].text
    assert asyncio.run(model.agenerate("a", max_tokens=2).text())
print([name for name in sys.modules if name.startswith(("opentelemetry", "inference_bridge.observability.otel"))])
"""
    assert run(program) == "[]"


PRINTS = """
import sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, ConsoleSpanExporter
from tests.parts.models.tiny import Waits
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=lambda span: span.name + "\\n")))
trace.set_tracer_provider(provider)
model = Waits()
stream = model.generate("a b")
print(next(stream).text, flush=True)
"""


def test_spans_are_exported_without_further_setup() -> None:
    assert run(PRINTS + "stream.close()").split("\n") == ["a", "text_completion tiny"]


def test_a_program_with_an_open_stream_exits_without_errors() -> None:
    assert run(PRINTS).split("\n")[0] == "a"


@pytest.mark.parametrize("disabled", ["inference_bridge", "httpx, inference_bridge", "*"])
def test_tracing_is_disabled_by_the_standard_variable_of_instrumentations(disabled: str) -> None:
    assert run(PRINTS + "stream.close()", OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=disabled) == "a"


def test_an_incompatible_opentelemetry_api_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "inference_bridge.observability.otel", None)
    monkeypatch.delattr(observability, "otel", raising=False)
    _telemetry._load.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, "inference_bridge"):
            assert Words().batch_generate(["a", "b"])[1].text == "b"
        (record,) = caplog.records
        assert install_command("otel") in record.getMessage()
    finally:
        _telemetry._load.cache_clear()
