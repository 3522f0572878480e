# SPDX-License-Identifier: Apache-2.0
"""`inference-bridge pull`, in separate processes, from a server with the hub's protocol."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from inference_bridge.cli.models.pull import _check, _File, _told
from inference_bridge.cli.models.recommended import RECOMMENDED

from ..parts.models.gguf_files import write_checkpoint, write_model, write_projector
from ..parts.servers.hub_server import Hub, serving

REPO = "someone/Small-GGUF"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A valid GGUF file."""
    return write_model(tmp_path_factory.mktemp("files") / "small.gguf").read_bytes()


@pytest.fixture
def hub(model: bytes) -> Iterator[Hub]:
    with serving() as hub:
        hub.repos[REPO] = {"small-Q4_0.gguf": model, "small-Q8_0.gguf": model + b"\0", "config.json": b"{}"}
        yield hub


def pull(hub: Hub, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "inference_bridge.cli", "pull", *arguments],
        env=os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "INFERENCE_BRIDGE_LOAD_PLUGINS": ""} | more,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def assert_told(done: subprocess.CompletedProcess[str], *told: str) -> None:
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr
    for text in told:
        assert text in done.stderr


def test_a_download_is_resumed_and_checked_and_its_use_is_printed(hub: Hub, model: bytes, home: Path) -> None:
    model += bytes(24 << 20)  # huggingface_hub writes 10 MiB at a time
    hub.repos[REPO]["small-Q4_0.gguf"] = model
    hub.cut = {"small-Q4_0.gguf"}
    done = pull(hub, f"{REPO}:q4_0")
    assert (done.returncode, done.stdout) == (0, "llama_cpp:small-Q4_0\n"), done.stderr
    assert "small-Q4_0.gguf (" in done.stderr
    assert hub.sent == [("small-Q4_0.gguf", 0), ("small-Q4_0.gguf", 10 << 20)]
    (path,) = (home / ".cache" / "huggingface" / "hub").glob("models--*/snapshots/*/small-Q4_0.gguf")
    assert path.read_bytes() == model

    again = pull(hub, f"https://huggingface.co/{REPO}/blob/main/small-Q4_0.gguf")
    assert (again.returncode, again.stdout) == (0, "llama_cpp:small-Q4_0\n")
    assert len(hub.sent) == 2


def test_a_download_whose_command_was_interrupted_is_continued_by_the_next(hub: Hub, model: bytes, home: Path) -> None:
    model += bytes(45 << 20)
    hub.repos[REPO]["small-Q4_0.gguf"] = model
    hub.stops = {"small-Q4_0.gguf": 25 << 20}
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "inference_bridge.cli", "pull", f"{REPO}:q4_0"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert hub.stopped.wait(60)
        (partial,) = (home / ".cache" / "huggingface" / "hub").glob("models--*/blobs/*.incomplete")
        while partial.stat().st_size < 20 << 20:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the same command continues the download" in told
    kept = partial.stat().st_size
    hub.stops.clear()
    done = pull(hub, f"{REPO}:q4_0")
    assert (done.returncode, done.stdout) == (0, "llama_cpp:small-Q4_0\n"), done.stderr
    assert "already downloaded" in done.stderr
    assert hub.sent == [("small-Q4_0.gguf", 0), ("small-Q4_0.gguf", kept)]
    (path,) = (home / ".cache" / "huggingface" / "hub").glob("models--*/snapshots/*/small-Q4_0.gguf")
    assert path.read_bytes() == model
    assert not partial.exists()


def test_a_recommended_model_is_fetched_by_its_short_name(hub: Hub, model: bytes) -> None:
    one = RECOMMENDED[0]
    hub.repos[one.repo] = {"another.gguf": model + b"\0", one.file: model}
    done = pull(hub, one.name)
    assert (done.returncode, done.stdout) == (0, f"llama_cpp:{one.file.removesuffix('.gguf')}\n"), done.stderr
    assert hub.sent == [(one.file, 0)]
    assert f"Run: llm -m {one.file.removesuffix('.gguf')} 'Hello'" in done.stderr
    wrong = pull(hub, "chatt")
    assert wrong.returncode == 2
    assert "did you mean 'chat'?" in wrong.stderr


def test_pull_without_a_name_lists_the_recommended_models(hub: Hub) -> None:
    done = pull(hub)
    head, *rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert (done.returncode, head[0]) == (0, "NAME")
    assert [row[0] for row in rows] == [one.name for one in RECOMMENDED]
    assert "inference-bridge pull chat" in done.stderr
    assert [one["repo"] for one in json.loads(pull(hub, "--json").stdout)] == [one.repo for one in RECOMMENDED]


def test_the_table_of_recommended_models_is_well_formed() -> None:
    names = [one.name for one in RECOMMENDED]
    assert 5 <= len(names) <= 8
    assert len(set(names)) == len(names)
    assert {"chat", "tools", "code", "embeddings", "vision"} <= set(names)
    for one in RECOMMENDED:
        assert re.fullmatch(r"[a-z]+", one.name)
        assert re.fullmatch(r"[\w.-]+/[\w.-]+-GGUF", one.repo)
        assert re.fullmatch(r"[\w.-]+\.gguf", one.file)
        assert 1e8 < one.size < one.memory
        assert one.licence in {"Apache-2.0", "MIT"}  # others have terms that a user must agree to
        assert one.purpose


def test_a_damaged_download_is_deleted(hub: Hub, home: Path) -> None:
    hub.damaged = {"small-Q4_0.gguf"}
    done = pull(hub, REPO, "--file", "Q4_0")
    assert done.returncode == 1
    assert "Error: small-Q4_0.gguf arrived damaged" in done.stderr
    assert not list((home / ".cache" / "huggingface" / "hub").glob("models--*/snapshots/*/*.gguf"))
    hub.damaged = set()
    assert pull(hub, REPO, "--file", "Q4_0").returncode == 0


def test_a_failed_download_is_an_error_of_one_line(hub: Hub) -> None:
    assert_told(pull(hub, REPO), "has 2 files: say which with --file", "  small-Q4_0.gguf  ", "  small-Q8_0.gguf  ")
    assert_told(pull(hub, REPO, "--file", "Q5"), "no file like 'Q5'", "small-Q8_0.gguf")
    assert_told(pull(hub, "someone/nothing"), "the hub has no repository someone/nothing", "HF_TOKEN")
    hub.sizes["small-Q8_0.gguf"] = 10**15
    assert_told(pull(hub, REPO, "--file", "Q8_0"), "the download takes 1000 TB")
    page = f"https://huggingface.co/{REPO}/tree/no-such-branch"
    assert_told(pull(hub, page), f"{REPO} has no such branch, tag or commit")
    assert_told(pull(hub, REPO, HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE is set, so nothing can be downloaded: unset it")
    hub.failing = {REPO}
    assert_told(pull(hub, REPO), f"{REPO} could not be downloaded", "The part that has arrived is kept")
    hub.failing, hub.gated = set(), {REPO}
    assert_told(pull(hub, REPO), "is gated: ask for access")
    assert hub.sent == []
    assert_told(pull(Hub(url="http://127.0.0.1:9"), REPO), "could not be downloaded")
    assert pull(hub, "nothing").returncode == 2


def test_pull_without_huggingface_hub_names_the_package_to_install(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "huggingface_hub.py").write_text("raise ModuleNotFoundError(name='huggingface_hub')")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    assert_told(pull(hub, REPO, PYTHONPATH=path), "pull needs the package huggingface_hub. Run: pip install")


def test_other_errors_are_not_reported_as_errors_of_the_hub() -> None:
    with pytest.raises(ZeroDivisionError), _told(REPO):
        _ = 1 / 0


def test_a_damaged_file_is_deleted_where_the_cache_has_no_links(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(b"other bytes")
    with pytest.raises(click.ClickException, match="arrived damaged"):
        _check(str(path), _File("small.gguf", 11, "0" * 64))
    assert not path.exists()


def test_a_download_without_a_usable_model_is_reported(hub: Hub, tmp_path: Path) -> None:
    projector = write_projector(tmp_path / "mmproj-F16.gguf").read_bytes()
    hub.repos["a/odd"] = {"mmproj-F16.gguf": projector, "cut.gguf": write_model(tmp_path / "cut", cut=9).read_bytes()}
    done = pull(hub, "a/odd", "--file", "mmproj-F16")
    assert (done.returncode, done.stdout) == (0, "")
    assert "It is not a model by itself" in done.stderr
    done = pull(hub, "a/odd", "--file", "cut", "--no-mmproj")
    assert (done.returncode, done.stdout) == (0, "")
    assert "It can't be used yet: it ends at byte" in done.stderr


def test_a_vision_model_and_a_split_model_are_downloaded_whole(hub: Hub, model: bytes) -> None:
    parts = {f"deep/big-Q4_0-0000{part}-of-00002.gguf": model + bytes(part) for part in (1, 2)}
    hub.repos["a/sees"] = {
        **parts,
        "mmproj-BF16.gguf": b"b",
        "mmproj-F16.gguf": b"f",
        "mmproj-F32.gguf": b"ff",
        "big-Q8_0.gguf": model,
    }
    pull(hub, "a/sees", "--file", "big-Q4_0")
    assert [name for name, _ in hub.sent] == [*parts, "mmproj-F16.gguf"]
    hub.sent.clear()
    pull(hub, "a/sees", "--file", "*q8*", "--no-mmproj")
    assert [name for name, _ in hub.sent] == ["big-Q8_0.gguf"]


def test_an_mlx_model_is_downloaded_without_files_of_code(hub: Hub, tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "mlx")
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    hub.repos["mlx/Small"] = files | {
        "tokenizer.json": b"{}",
        "pytorch_model.bin": b"pickle",
        "modeling.py": b"code",
        "README.md": b"read",
        "onnx/model.onnx": b"onnx",
    }
    done = pull(hub, "mlx/Small")
    assert done.returncode == 0, done.stderr
    assert {name for name, _ in hub.sent} == {*files, "tokenizer.json"}
    hub.repos["mlx/Embeds"] = {
        **hub.repos["mlx/Small"],
        "modules.json": b"[]",
        "1_Pooling/config.json": b"pooling",
        "2_Dense/model.safetensors": b"dense",
        "2_Dense/pytorch_model.bin": b"pickle",
    }
    hub.sent.clear()
    assert pull(hub, "mlx/Embeds").returncode == 0
    parts = {"modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors"}
    assert {name for name, _ in hub.sent} == {*files, "tokenizer.json", *parts}
    assert_told(pull(hub, "mlx/Small:4bit"), "has no GGUF files to choose from: leave --file out")
    hub.repos["a/pickles"] = {"pytorch_model.bin": b"pickle", "config.json": b"{}"}
    assert_told(pull(hub, "a/pickles"), "no GGUF or safetensors files")
