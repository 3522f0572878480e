# SPDX-License-Identifier: Apache-2.0
"""Images, on the real llama-server: a managed one, and one used by its address.

Both have the same random model and projector. Their answers agree with libmtmd in this process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import inference_bridge as ib
from inference_bridge import Attachment, TextModel, UnsupportedError
from inference_bridge.backends.http.detection import server_info
from inference_bridge.backends.llama_server.model import ServerModel

from ...parts.models.seeing import CLOSE, LENGTH, WEATHER, Seeing, Seer, asked, image, likeliest
from ...parts.models.tiny_gguf import WIDTH, write_llama
from ...parts.models.tiny_vision import RED, write_projector
from ...parts.servers.processes import llama_server

pytestmark = pytest.mark.usefixtures("short_runtime_directory")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and its projector."""
    directory = tmp_path_factory.mktemp("model")
    return write_llama(directory / "tiny.gguf", 2048), write_projector(directory / "mmproj-tiny.gguf")


@contextmanager
def loaded(backend: str, files: tuple[Path, Path]) -> Iterator[TextModel]:
    path, projector = files
    with ExitStack() as made:
        if backend == "http":
            address = made.enter_context(llama_server(path, slots=2, length=LENGTH, exact=True, projector=projector))
            yield made.enter_context(ib.load_model(address))
        else:
            extra = ["--flash-attn", "off", "--no-repack"]
            settings: dict[str, Any] = {"context_length": LENGTH, "parallel_slots": 2, "threads": 1, "extra": extra}
            yield made.enter_context(ib.load_model(path, backend=backend, mmproj=projector, **settings))


@pytest.fixture(scope="module", params=["llama_server", "http"])
def model(request: pytest.FixtureRequest, files: tuple[Path, Path]) -> Iterator[TextModel]:
    with loaded(request.param, files) as model:
        yield model


@pytest.fixture(scope="module")
def managed(files: tuple[Path, Path]) -> Iterator[TextModel]:
    with loaded("llama_server", files) as model:
        yield model


@pytest.fixture(scope="module")
def seer(files: tuple[Path, Path]) -> Iterator[Seer]:
    with ExitStack() as made:
        yield Seer(*files, made)


class TestOnAServer(Seeing):
    pass


@contextmanager
def gallery() -> Iterator[str]:
    """The address of a picture on a server."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(RED)))
            self.end_headers()
            self.wfile.write(RED)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/red.png"
        finally:
            server.shutdown()
            thread.join()


def test_an_image_by_its_url_is_fetched_by_the_server(model: TextModel) -> None:
    with gallery() as url:
        there = Attachment("image/png", url=url)
        found = likeliest(asked(model, "a", there).tokens[0])
        assert found == pytest.approx(likeliest(asked(model, "a", image()).tokens[0]), abs=CLOSE)
        with pytest.raises(UnsupportedError, match="tools with attachments: .* send images as data"):
            asked(model, "a", there, tools=[WEATHER])
    with pytest.raises(ib.ServerError):
        asked(model, "a", there)


def test_tools_that_can_not_be_forced_together_are_refused(model: TextModel) -> None:
    """With and without an image: neither the grammar nor the template can force the second call."""
    tools = [
        {"name": name, "parameters": {"type": "object", "$defs": {"a": {"type": kind}}, "properties": {}}}
        for name, kind in (("one", "string"), ("two", "integer"))
    ]
    with pytest.raises(UnsupportedError, match="forcing one of these tools: .* different definitions of the same name"):
        asked(model, "a", tools=tools, tool_choice="required")


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("data", [b"", b"no image", RED[:40], RED[:-30]], ids=["empty", "text", "header", "cut"])
def test_a_damaged_image_is_refused(data: bytes, model: TextModel) -> None:
    with pytest.raises(ib.ServerError, match="400 Bad Request: Failed to load image") as caught:
        asked(model, "What is this?", image(data))
    assert caught.value.status == 400
    assert asked(model, "a", image()).text


def test_a_model_of_text_alone_refuses_before_any_work(files: tuple[Path, Path]) -> None:
    with ib.load_model(files[0], backend="llama_server", context_length=512) as model:
        assert isinstance(model, ServerModel)
        assert "images" not in model.capabilities
        with pytest.raises(UnsupportedError, match="llama_server does not support image/png attachments"):
            asked(model, "a", image())
        assert model.process.pid is None


def test_info_before_the_start_agrees_with_the_running_server(managed: TextModel) -> None:
    assert isinstance(managed, ServerModel)
    assert "images" in managed.capabilities
    assert "audios" not in managed.capabilities
    said = server_info.ask(managed.process.connect())
    assert (managed.capabilities, managed.facts.takes_media) == (said.capabilities, said.takes_media)
    with pytest.raises(UnsupportedError, match="audio/wav"):
        asked(managed, "a", Attachment("audio/wav", data=b"RIFF"))


def test_a_projector_of_another_model(files: tuple[Path, Path], tmp_path: Path) -> None:
    other = write_projector(tmp_path / "mmproj.gguf", width=WIDTH + 32)
    with (
        ib.load_model(files[0], backend="llama_server", mmproj=other, context_length=512) as model,
        pytest.raises(ib.ModelLoadError, match="mismatch between text model"),
    ):
        asked(model, "a", image())
