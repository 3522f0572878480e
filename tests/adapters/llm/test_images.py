# SPDX-License-Identifier: Apache-2.0
"""llm's command line with pictures: a model that lies beside its projector, on a real llama-server and in process."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference_bridge import Attachment, Message, load_model

from ...parts.models.tiny_gguf import write_llama
from ...parts.models.tiny_vision import BLUE, IMAGE_TOKENS, RED, bmp, write_projector
from ...parts.servers.managed import short_directory
from .test_cli import assert_one_line, logged, run

MODELS = ["llama_server:sees", "llama_cpp:sees"]
CLOSED = "http://127.0.0.1:9/red.png"
"""The port of an obsolete protocol, on which no server listens."""

LOOK = f"""
import llm

def look() -> llm.ToolOutput:
    return llm.ToolOutput("there", attachments=[llm.Attachment(url={CLOSED!r})])
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its projector, one without, and two pictures."""
    path = tmp_path_factory.mktemp("models")
    for name in ("sees", "blind"):
        (path / name).mkdir()
        write_llama(path / name / f"{name}.gguf", 2048)
    write_projector(path / "sees" / "mmproj-sees.gguf")
    (path / "red.png").write_bytes(RED)
    (path / "blue.png").write_bytes(BLUE)
    return path


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def asked(model: str) -> list[str]:
    return ["-m", model, "-o", "temperature", "0", "-o", "max_tokens", "8"]


@pytest.fixture(scope="module")
def answers(model: str, directory: Path) -> dict[str, str]:
    """The model's answer to each picture, from Python."""
    with short_directory() as runtime, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))
        projector = directory / "sees" / "mmproj-sees.gguf"
        backend = model.partition(":")[0]
        with load_model(directory / "sees" / "sees.gguf", backend=backend, mmproj=projector) as loaded:
            return {
                name: loaded.chat(
                    [Message("user", ["a", Attachment("image/png", path=str(directory / f"{name}.png"))])], max_tokens=8
                ).text()
                for name in ("red", "blue")
            }


@pytest.fixture(autouse=True)
def _found(directory: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("INFERENCE_BRIDGE_MODELS", str(directory))
    with short_directory() as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        yield


def test_a_picture_is_seen_and_logged(asked: list[str], directory: Path, answers: dict[str, str]) -> None:
    done = run(*asked, "-a", str(directory / "red.png"), "a")
    assert (done.returncode, done.stdout) == (0, answers["red"] + "\n")
    shown = run("logs")
    assert re.search(r"Attachments\n\n1\. \*\*image/png\*\*: `.*/red\.png`", shown.stdout)


def test_a_picture_in_another_format_gives_the_same_answer(
    asked: list[str], answers: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "red.bmp").write_bytes(bmp(220, 30, 30))
    done = run(*asked, "-a", str(tmp_path / "red.bmp"), "a")
    assert (done.returncode, done.stdout) == (0, answers["red"] + "\n")


def test_a_format_that_llama_cpp_does_not_read_is_refused_by_its_name(
    model: str, asked: list[str], tmp_path: Path
) -> None:
    """In older versions of llm the engine reports the supported formats."""
    (tmp_path / "red.webp").write_bytes(b"RIFF\x24\x00\x00\x00WEBPVP8 " + bytes(28))
    done = run(*asked, "-a", str(tmp_path / "red.webp"), "a")
    engine = "it is not a PNG, JPEG, GIF or BMP" if model.startswith("llama_cpp") else "Failed to load image"
    assert_one_line(done, "image/webp" if "image/webp" in done.stderr else engine)


def test_a_picture_of_a_stated_type_stays_in_the_conversation(
    asked: list[str], directory: Path, answers: dict[str, str]
) -> None:
    done = run(*asked, "--async", "--at", str(directory / "blue.png"), "image/png", "a")
    assert (done.returncode, done.stdout) == (0, answers["blue"] + "\n")
    again = run("-c", "-o", "temperature", "0", "-o", "max_tokens", "8", "b")
    assert again.returncode == 0, again.stderr
    first, second = sorted(logged(2), key=lambda row: int(row["input_tokens"]))
    assert [one["path"] for one in first["attachments"]] == [str(directory / "blue.png")]
    assert first["input_tokens"] == 1 + len("<user>a\n<assistant>") + IMAGE_TOKENS
    assert second["conversation_id"] == first["conversation_id"]
    assert second["input_tokens"] > first["input_tokens"] + first["output_tokens"]


def test_vision_models_are_listed_with_their_media_types(model: str) -> None:
    done = run("models", "--options", "-m", model)
    assert "Attachment types:\n    image/bmp, image/gif, image/jpeg, image/png, image/x-ms-bmp\n" in done.stdout
    done = run("models", "--json")
    types = {model["model_id"]: model["attachment_types"] for model in json.loads(done.stdout)}
    assert types[model]
    assert types[model.replace("sees", "blind")] == []


def test_an_image_for_a_text_only_model_is_an_error(model: str, directory: Path) -> None:
    """Without a projector. llm's older versions leave it to us."""
    done = run("-m", model.replace("sees", "blind"), "-a", str(directory / "red.png"), "a")
    assert_one_line(done, "attachments")
    assert re.search(r"does not support (image/png )?attachments$", done.stderr.strip())


def test_the_error_for_an_invalid_picture_is_one_line(model: str, asked: list[str], tmp_path: Path) -> None:
    cut = tmp_path / "cut.png"
    cut.write_bytes(RED[:-30])
    here = model.startswith("llama_cpp")
    told = "image 1 of 1 can't be read: it is damaged" if here else "Failed to load image"
    assert_one_line(run(*asked, "-a", str(cut), "a"), told)
    told = "nothing is fetched in this process" if here else "cannot make GET request"
    assert_one_line(run(*asked, "--at", CLOSED, "image/png", "a"), told)


@pytest.mark.parametrize("command", ["prompt", "chat"])
def test_the_error_for_an_unreachable_url_is_one_line(command: str) -> None:
    """llm asks what type it has as soon as -a names it; that of a tool's result it leaves to us."""
    options = [
        "-m",
        "llama_cpp:sees",
        "--functions",
        LOOK,
        "-o",
        "tool_choice",
        "look",
        "-o",
        "temperature",
        "0",
        "-o",
        "max_tokens",
        "200",
    ]
    arguments, typed = (["a"], "") if command == "prompt" else ([], "a\n")
    done = run(command, *options, *arguments, typed=typed)
    assert_one_line(done, f"the type of the attachment {CLOSED} is not set, and can't be found out: ")
