# SPDX-License-Identifier: Apache-2.0
"""The real `llm` command with the small real model. Each call is a separate process."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import inference_bridge as ib

from ...parts.models.gguf_files import write_checkpoint, write_model

MODEL = "llama_cpp:SmolLM2-135M-Instruct.Q4_1"
QUESTION = "What is the capital of France? Answer in one sentence."
ENGINES = {"jinja2", "llama_cpp", "llguidance", "mlx", "mlx_lm", "numpy", "psutil"}

# A shell without job control starts background processes that ignore Ctrl-C.
LISTENING = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("llm", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    try:
        importlib.metadata.distribution("inference-bridge")
    except importlib.metadata.PackageNotFoundError:
        pytest.fail("llm finds plugins by their installed metadata: install inference-bridge here (`make test` does)")


@pytest.fixture(scope="module")
def reference(demo_model_path: Path) -> Iterator[ib.TextModel]:
    """The same model in this process, for the expected output of llm."""
    with ib.load_model(demo_model_path, backend="llama_cpp") as model:
        yield model


def environment(**more: str) -> dict[str, str]:
    # Without other plugins: some import an engine as soon as they are found.
    return os.environ | {"LLM_LOAD_PLUGINS": "inference-bridge"} | more


def run(*arguments: str, typed: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llm", *arguments],
        input=typed,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def logged(count: int = 1) -> list[dict[str, Any]]:
    done = run("logs", "--json", "-n", str(count))
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def assert_one_line(done: subprocess.CompletedProcess[str], told: str) -> None:
    """llm reported an error in its own form."""
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert told in done.stderr


# ---------------------------------------------------------------- prompts


def test_a_prompt_its_usage_its_log_and_the_next_turn(reference: ib.TextModel) -> None:
    asked = [ib.Message("system", "You are terse."), ib.Message("user", QUESTION)]
    expected = reference.chat(asked, max_tokens=24)
    answer = expected.text()
    done = run("-m", MODEL, "-o", "temperature", "0", "-o", "max_tokens", "24", "-s", "You are terse.", "-u", QUESTION)
    assert (done.returncode, done.stdout) == (0, answer + "\n")
    counts = expected.metrics.prompt_tokens, expected.metrics.generated_tokens
    assert "Token usage: {} input, {} output".format(*counts) in done.stderr

    asked += [ib.Message("assistant", answer), ib.Message("user", "And of Italy?")]
    done = run("-c", "--no-stream", "-o", "temperature", "0", "-o", "max_tokens", "8", "And of Italy?")
    assert done.returncode == 0
    assert done.stdout == reference.chat(asked, max_tokens=8).text() + "\n"

    first, second = logged(2)
    assert (first["model"], first["response"]) == (MODEL, answer)
    assert (first["input_tokens"], first["output_tokens"]) == counts
    assert first["conversation_id"] == second["conversation_id"]


def test_async(reference: ib.TextModel) -> None:
    done = run("-m", MODEL, "--async", "-o", "temperature", "0", "-o", "max_tokens", "24", QUESTION)
    assert done.returncode == 0, done.stderr
    assert done.stdout == reference.chat([ib.Message("user", QUESTION)], max_tokens=24).text() + "\n"


def test_an_answer_without_options_is_complete() -> None:
    done = run("-m", MODEL, "--no-log", "-o", "temperature", "0", QUESTION)
    assert (done.returncode, done.stdout, done.stderr) == (0, "The capital of France is Paris.\n", "")


def test_a_cut_off_answer_is_reported_on_stderr(configure: Callable[[str], Path]) -> None:
    greedy = ("-o", "temperature", "0")  # a sampled answer may end by itself before the limit
    done = run("-m", MODEL, "-n", *greedy, "-o", "max_tokens", "3", "Count to one hundred.")
    assert done.returncode == 0
    assert "cut off after 3 tokens" in done.stderr
    assert "max_tokens" in done.stderr
    configure(f"[models.narrow]\nsource = '{MODEL}'\ncontext_length = 64")
    full = run("-m", "llama_cpp:narrow", "-n", *greedy, "Write a long story about a cat, a dog and a bird.")
    assert full.returncode == 0
    assert "context_length" in full.stderr
    schema = run("-m", MODEL, "-n", *greedy, "--schema", "name, bio", "-o", "max_tokens", "5", "Invent a person")
    assert schema.returncode == 0
    assert "JSON is incomplete" in schema.stderr


def test_an_answer_that_was_shortened_is_reported_on_stderr() -> None:
    # Greedy, and below what two strings need: a sampled answer may fit into the limit.
    options = ("-o", "max_tokens", "10", "-o", "temperature", "0")
    done = run("-m", MODEL, "-n", "--schema", "name, bio", *options, "Invent a person with a long life")
    assert done.returncode == 0
    assert json.loads(done.stdout).keys() == {"name", "bio"}
    assert "max_tokens" in done.stderr


def test_chat_keeps_the_model_loaded(reference: ib.TextModel) -> None:
    turns = [ib.Message("user", QUESTION)]
    answers = []
    for question in ("And of Italy?", "Thank you."):
        answers.append(reference.chat(turns, max_tokens=12).text())
        turns += [ib.Message("assistant", answers[-1]), ib.Message("user", question)]
    answers.append(reference.chat(turns, max_tokens=12).text())

    done = run(
        "chat",
        "-m",
        MODEL,
        "-o",
        "temperature",
        "0",
        "-o",
        "max_tokens",
        "12",
        typed=f"{QUESTION}\nAnd of Italy?\nThank you.\nquit\n",
    )
    assert done.returncode == 0, done.stderr
    _, *shown = done.stdout.split("\n> ")
    assert [text.strip() for text in shown] == [*answers, ""]
    # Only prefixes in memory can be reused.
    assert ["cached_tokens" in (turn["token_details"] or "") for turn in logged(3)] == [False, True, True]


def test_a_schema_holds_on_a_small_model() -> None:
    done = run(
        "-m", MODEL, "--schema", "name, age int", "-o", "temperature", "0", "-o", "max_tokens", "60", "Invent a dog"
    )
    assert (done.returncode, done.stderr) == (0, "")
    dog = json.loads(done.stdout)
    assert {name: type(value) for name, value in dog.items()} == {"name": str, "age": int}
    (row,) = logged()
    assert row["schema_json"]["required"] == ["name", "age"]


def test_a_tool_is_called_and_its_result_goes_back() -> None:
    """The small model would not choose to: the call is forced, and once it is answered the model is free."""
    tool = "def magic(number: int) -> str:\n    return f'magic of {number} is {number * 1000 + 7}'"
    options = ["-o", "tool_choice", "magic", "-o", "temperature", "0", "-o", "max_tokens", "30"]
    done = run("-m", MODEL, "--functions", tool, "--tools-debug", *options, "What is the magic of 3?")
    assert done.returncode == 0, done.stderr
    call, answer = logged(2)
    (called,) = call["tool_calls"]
    number = called["arguments"]["number"]
    assert (called["name"], type(number)) == ("magic", int)
    result = f"magic of {number} is {number * 1000 + 7}"
    assert result in done.stderr
    assert [one["output"] for one in answer["tool_results"]] == [result]
    assert (call["response_json"]["finish_reason"], call["response"]) == ("tool_calls", "")
    assert answer["response"] + "\n" == done.stdout


def test_reasoning_is_shown_apart_and_logged(configure: Callable[[str], Path]) -> None:
    configure(
        f"""
        [models.thinks]
        source = "{MODEL}"
        chat_template = '''{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}
{{{{ m.content.split('</think>')[-1] }}}}<|im_end|>
{{% endfor %}}<|im_start|>assistant
<think>
'''
        """
    )
    done = run("-m", "llama_cpp:thinks", "-o", "temperature", "0", "-o", "max_tokens", "8", "Why is the sky blue?")
    assert (done.returncode, done.stdout.strip()) == (0, "")
    (row,) = logged()
    assert row["reasoning"].startswith("The sky")
    assert row["reasoning"] in done.stderr
    hidden = run(
        "-m", "llama_cpp:thinks", "-n", "-R", "-o", "temperature", "0", "-o", "max_tokens", "8", "Why is the sky blue?"
    )
    assert hidden.returncode == 0
    assert row["reasoning"] not in hidden.stderr
    assert (row["response"], row["input_tokens"], row["output_tokens"]) == ("", 18, 8)
    assert row["response_json"]["finish_reason"] == "length"


def test_prompts_are_not_logged_with_no_log() -> None:
    assert run("-m", MODEL, "-n", "-o", "temperature", "0", "-o", "max_tokens", "2", QUESTION).returncode == 0
    assert logged() == []


def test_an_image_for_a_text_only_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dot.gif").write_bytes(b"GIF89a\x01\x00\x01\x00\x00\x00\x00;")
    done = run("-m", MODEL, "-a", str(tmp_path / "dot.gif"), "What is this?")
    assert_one_line(done, "attachments")


@pytest.mark.parametrize("mode", ["--no-log", "--async"])
def test_ctrl_c_ends_the_command_and_its_processes(mode: str) -> None:
    command = [
        sys.executable,
        "-c",
        LISTENING,
        "-m",
        MODEL,
        mode,
        "-o",
        "temperature",
        "0",
        "Count from one to one thousand, in words.",
    ]
    with subprocess.Popen(
        command,
        env=environment(PYTHONUNBUFFERED="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == 1
        told = process.stderr.read().decode()
    assert told.strip() == "Aborted!"
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "wrong",
    [
        {"temprature": ("1", "Unknown option: did you mean 'temperature'?")},
        {
            "top_p": ("-1", "top_p must be at least 0, not -1.0"),
            "temperature": ("nan", "temperature must be finite, not nan"),
            "max_tokens": ("many", "Input should be a valid integer, unable to parse string as an integer"),
            "stop_tokens": ("[1.5]", "stop_tokens must be an int, not 1.5"),
        },
    ],
    ids=["misspelt", "values"],
)
def test_wrong_options_are_refused_before_loading(wrong: dict[str, tuple[str, str]]) -> None:
    options = [word for name, (value, _) in wrong.items() for word in ("-o", name, value)]
    done = run("-m", MODEL, *options, QUESTION, INFERENCE_BRIDGE_LOG="debug")
    assert (done.returncode, done.stdout) == (1, "")
    told = done.stderr.removeprefix("Error: ").splitlines()
    assert dict(zip(told[::2], told[1::2], strict=True)) == {name: f"  {reason}" for name, (_, reason) in wrong.items()}


@pytest.mark.parametrize("command", ["prompt", "chat"])
def test_an_error_of_the_model_is_one_line(command: str, configure: Callable[[str], Path]) -> None:
    configure(f"[models.narrow]\nsource = '{MODEL}'\ncontext_length = 64")
    words = "word " * 100
    arguments, typed = ([words], "") if command == "prompt" else ([], words + "\n")
    done = run(command, "-m", "llama_cpp:narrow", *arguments, typed=typed)
    assert_one_line(done, "holds 64")


def test_malformed_files_do_not_affect_other_models(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = home / "models"
    monkeypatch.setenv("INFERENCE_BRIDGE_MODELS", str(models))
    write_model(models / "sound.gguf")
    write_model(models / "truncated.gguf", cut=100)
    (models / "text.gguf").write_text("This is not a model.\n")
    (models / "empty.gguf").touch()
    (models / "loop").symlink_to(models)
    (models / "nowhere.gguf").symlink_to(models / "nowhere.gguf")
    write_checkpoint(models / "sparse")
    with (models / "sparse" / "config.json").open("r+b") as file:
        file.truncate(1 << 30)
    write_checkpoint(models / "invalid")
    (models / "invalid" / "config.json").write_text("{")
    closed = models / "closed"
    closed.mkdir(mode=0)
    try:
        done = run("models", "--json")
    finally:
        closed.chmod(0o700)
    assert (done.returncode, done.stderr) == (0, "")
    ids = {model["model_id"] for model in json.loads(done.stdout) if ":" in model["model_id"]}
    assert {MODEL, "llama_cpp:sound"} <= ids
    damaged = {"truncated", "text", "empty", "nowhere", "sparse", "invalid"}
    assert {id.partition(":")[2] for id in ids} == {"SmolLM2-135M-Instruct.Q4_1", "sound", *damaged}
    for name in damaged:
        assert_one_line(run("-m", name, "hi"), "can't be loaded")


def test_a_wrong_configuration_file_is_one_warning_and_llm_goes_on(configure: Callable[[str], Path]) -> None:
    path = configure("[models.one\n")
    done = run("-m", MODEL, "-o", "temperature", "0", "-o", "max_tokens", "3", QUESTION)
    assert (done.returncode, done.stdout) == (0, "The capital of\n")
    warning, cut = done.stderr.splitlines()
    assert warning.startswith(f"Warning: inference-bridge: {path}:1:12: models.one: not valid TOML")
    assert "cut off" in cut


# ---------------------------------------------------------------- start-up


def test_models_are_listed_with_their_options() -> None:
    done = run("models", "--options", "-m", MODEL)
    assert done.returncode == 0
    alias = MODEL.partition(":")[2]
    assert done.stdout.startswith(f"InferenceBridge: {MODEL} (aliases: {alias})\n  Options:\n    max_tokens: int\n")
    _, features = done.stdout.split("  Features:\n")
    assert features == "  - streaming\n  - schemas\n  - tools\n  - async\n"


def test_a_command_imports_only_the_modules_it_needs() -> None:
    """`llm --help` only the modules that have the hook and the commands, `llm models` no engine."""
    code = """
import json, sys, llm.cli
helped = list(sys.modules)
ids = [model.model.model_id for model in llm.get_models_with_aliases()]
print(json.dumps([helped, ids, list(sys.modules)]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    helped, ids, listed = json.loads(done.stdout)
    assert {name for name in helped if "inference_bridge" in name} == {
        "inference_bridge",
        "inference_bridge.cli",
        "inference_bridge.cli.commands",
        "inference_bridge.errors",
        "llm_inference_bridge",
    }
    assert MODEL in ids
    assert not {name.partition(".")[0] for name in set(listed) - set(helped)} & ENGINES
