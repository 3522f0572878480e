# SPDX-License-Identifier: Apache-2.0
"""The commands `inference-bridge …`; `pull` is tested in test_pull.py. `llm bridge …` are the same objects."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import sqlite3
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import inference_bridge as ib
from inference_bridge.availability import install_command
from inference_bridge.backends import warm
from inference_bridge.backends.llama_server import amd_gpus
from inference_bridge.backends.llama_server.amd_gpus import Gpu
from inference_bridge.catalog import config
from inference_bridge.cli import doctor, tables
from inference_bridge.cli.commands import bridge

from ..parts.models.gguf_files import write_checkpoint, write_model, write_projector
from ..parts.models.tiny import WordsBackend
from ..parts.models.tiny_gguf import write_embedding, write_llama
from ..parts.servers.managed import short_directory, wait_gone

DEMO = "SmolLM2-135M-Instruct.Q4_1"


@pytest.fixture
def models_directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFERENCE_BRIDGE_MODELS", str(home / "models"))
    return home / "models"


@pytest.fixture
def config_path(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = home / "settings" / "bridge.toml"
    monkeypatch.setenv("INFERENCE_BRIDGE_CONFIG", str(path))
    return path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(bridge, arguments, prog_name="inference-bridge")


def ok(*arguments: str) -> str:
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    return str(done.stdout)


def fails(*arguments: str) -> str:
    done = run(*arguments)
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ")
    return str(done.stderr)


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """The output of the command on a terminal."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "inference_bridge.cli", *arguments]
    with subprocess.Popen(command, stdout=slave, env=os.environ | environment) as process:
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # the terminal has no writer any more
            while piece := os.read(master, 4096):
                shown += piece
    os.close(master)
    assert process.returncode == 0
    return shown.decode().replace("\r\n", "\n")


# ---------------------------------------------------------------- help


def test_every_command_and_option_explains_itself() -> None:
    for name, command in bridge.commands.items():
        text = ok(name, "--help")
        assert text.startswith(f"Usage: inference-bridge {name}")
        assert command.get_short_help_str(80).endswith(".")
        assert not command.get_short_help_str(80).endswith("..")
        for option in command.params:
            assert option.param_type_name == "argument" or option.help, (name, option.name)
    assert "doctor" in ok("-h")


def test_the_version() -> None:
    assert ok("--version") == f"inference-bridge {ib.__version__}\n"


def test_a_closed_output_pipe_is_not_an_error() -> None:
    command = f"{sys.executable} -m inference_bridge.cli doctor | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("Backends\n", "")


def test_the_script_without_click_names_the_package_to_install(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise ModuleNotFoundError(name='click')")
    code = "from inference_bridge.cli import main; main()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        f"The commands need the package click. Run: {install_command('cli')}\n",
    )


# ---------------------------------------------------------------- doctor


def test_doctor_lists_working_backends_and_how_to_fix_the_others(models_directory: Path, config_path: Path) -> None:
    write_model(models_directory / "broken.gguf", cut=10)
    told = ok("doctor")
    assert "llama_cpp\tyes" in told
    assert f"{models_directory}" in told
    assert f"Configuration: {config_path}" in told
    assert "Models found: 2, with problems: 1" in told
    found = json.loads(ok("doctor", "--json"))
    assert [backend["name"] for backend in found["backends"]] == ib.names()
    for backend in found["backends"]:
        assert backend["available"] == bool(ib.get(backend["name"]).availability())
        assert backend["available"] or backend["reason"]
    assert found["models"] == {"found": 2, "with_problems": 1}
    assert found["versions"]["inference-bridge"]


def test_doctor_without_a_working_backend(config_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ib.names():
        monkeypatch.setattr(ib.get(name), "availability", lambda: ib.Availability(False, "it is not there", "Get it"))
    config_path.parent.mkdir()
    config_path.write_text("[models.x]\n")
    done = run("doctor")
    assert done.exit_code == 1
    assert "llama_cpp\tno\tit is not there. Get it" in done.stdout
    assert "line 1, column 1: models.x: " in done.stdout
    assert "No backend can run here." in done.stdout
    assert install_command("server") in done.stdout


def test_doctor_fails_where_the_configuration_has_a_mistake(models_directory: Path, config_path: Path) -> None:
    before = run("doctor")
    config_path.parent.mkdir(exist_ok=True)
    config_path.write_text(f'[models.x]\nsource = "/x.gguf\n\n[models.y]\nsource = "{DEMO}"\n')
    done = run("doctor", "--json")
    assert (before.exit_code, done.exit_code) == (0, 1)
    (problem,) = json.loads(done.stdout)["configuration"]["problems"]
    assert (problem["key"], problem["line"]) == ("models.x", 2)
    assert problem["column"] > 0
    assert "y" in [entry["name"] for entry in json.loads(ok("models", "--json"))]


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ('[models.x]\nsource = "/nowhere/x.gguf"\n', "models.x", 1),
        (f'[models.x]\nsource = "{DEMO}"\nbackend = "lama_cpp"\n', "models.x", 1),
        (f'[models.x]\nsource = "{DEMO}"\nmmproj = "/nowhere/sight.gguf"\n', "models.x", 1),
        ('directories = []\nllama_server = "/nowhere/llama-server"\n', "llama_server", 2),
    ],
)
def test_doctor_lists_missing_sources_of_the_configuration(text: str, key: str, line: int, config_path: Path) -> None:
    config_path.parent.mkdir(exist_ok=True)
    config_path.write_text(text)
    done = run("doctor", "--json")
    assert done.exit_code == 1
    (problem,) = json.loads(done.stdout)["configuration"]["problems"]
    assert (problem["key"], problem["line"]) == (key, line)


def test_doctor_lists_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PACKAGES", ("click", "no-such-package"))
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.delitem(sys.modules, "inference_bridge.engine.hardware", raising=False)
    found = json.loads(ok("doctor", "--json"))
    assert found["versions"]["no-such-package"] == "not installed"
    assert found["versions"]["click"][0].isdigit()
    assert found["machine"]["memory"] == "not known (psutil is not installed)"


def test_doctor_names_the_gpus_of_every_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs as their drivers report them. This machine has none of them."""
    for number, said in enumerate(("Model: \t\t NVIDIA GeForce RTX 3090\nIRQ:   \t\t 94\n", "IRQ: 1\n")):
        (tmp_path / str(number)).write_text(said)
    amd = [Gpu(0, "gfx1100", "", False, 24 << 30, 1, None), Gpu(1, "gfx1036", "", True, 1 << 29, 2, None)]
    monkeypatch.setattr("glob.glob", lambda _: [str(tmp_path / "1"), str(tmp_path / "0")])
    monkeypatch.setattr(amd_gpus, "gpus", lambda: amd)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert list(doctor._gpus()) == [
        "Apple (Metal)",
        "NVIDIA GeForce RTX 3090",
        "NVIDIA",
        "AMD gfx1100 (26 GB)",
        "AMD gfx1036 (537 MB, integrated)",
    ]


# ---------------------------------------------------------------- models


def test_models_are_listed_with_the_backends_that_can_load_them(
    models_directory: Path, config_path: Path, request: pytest.FixtureRequest
) -> None:
    write_model(models_directory / "small.gguf")
    write_model(models_directory / "broken.gguf", cut=10)
    write_embedding(models_directory / "bert.gguf")
    config_path.parent.mkdir()
    config_path.write_text(
        "[models.mine]\nsource = 'small'\ncontext_length = 64\n[models.far]\nsource = 'https://gpu.example'\n"
        "[models.odd]\nsource = '/nowhere/odd.bin'\n[models.away]\nsource = 'away:thing'\n"
    )
    ib.register(WordsBackend("away", missing="no such device"))
    request.addfinalizer(lambda: ib.unregister("away"))
    head, *rows = [line.split("\t") for line in ok("models").splitlines()]
    assert head == ["NAME", "BACKENDS", "SIZE", "BITS", "CONTEXT", "PROBLEM"]
    assert [row[0] for row in rows] == ["mine", "far", "odd", "away", DEMO, "bert", "broken", "small"]
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name[DEMO][0].split(", ")[0] == "llama_cpp"
    assert by_name[DEMO][1:] == ["98 MB", "4", "8192", ""]
    assert by_name["mine"][3] == "64"
    assert "http" in by_name["far"][0]
    assert by_name["broken"][0] == ""
    assert "fetch it again" in by_name["broken"][4]
    assert by_name["odd"][4] == "there is no such file"
    assert by_name["away"][4] == "the backend away can't run here: see `inference-bridge doctor`"
    assert [line.split("\t")[0] for line in ok("models", "--problems").splitlines()[1:]] == ["odd", "away", "broken"]
    assert [line.split("\t")[0] for line in ok("models", str(models_directory)).splitlines()[1:]] == [
        "bert",
        "broken",
        "small",
    ]
    listed = {entry["name"]: entry for entry in json.loads(ok("models", "--json"))}
    assert listed["small"]["ids"][0] == "llama_cpp:small"
    assert listed["small"]["source"] == str(models_directory / "small.gguf")
    assert (listed["bert"]["embeddings"], listed["small"]["embeddings"]) == (True, False)


def test_models_without_any_model_suggests_pull(tmp_path: Path) -> None:
    done = run("models", str(tmp_path))
    assert (done.exit_code, done.stdout) == (0, "")
    assert "No model was found" in done.stderr
    assert "inference-bridge pull chat" in done.stderr


def test_a_named_file_outside_of_the_directories_has_its_size_too(tmp_path: Path, config_path: Path) -> None:
    path = write_llama(tmp_path / "tiny.gguf", 512)
    ok("add", "mine", str(path))
    (entry,) = [one for one in json.loads(ok("models", "--json")) if one["name"] == "mine"]
    assert (entry["size_bytes"], entry["context_length"]) == (path.stat().st_size, 512)


def test_models_of_a_format_without_an_installed_backend(
    models_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(models_directory / "mlx")
    for name in ("mlx", "metal"):
        if name in ib.names():
            monkeypatch.setattr(ib.get(name), "availability", lambda: ib.Availability(False, "not here"))
    (entry,) = json.loads(ok("models", "--json", str(models_directory)))
    assert entry["problem"] == "no backend here loads MLX models: see `inference-bridge doctor`"


def test_the_table_on_a_terminal_has_a_header(models_directory: Path) -> None:
    write_model(models_directory / "a.gguf")
    head, first, second = on_a_terminal("models", COLUMNS="200").splitlines()
    assert head.startswith("\x1b[4mNAME ")
    place = head.removeprefix("\x1b[4m").index("BACKENDS")
    assert first[place:].startswith("llama_cpp")
    assert second[place:].startswith("llama_cpp")
    assert "\x1b" not in on_a_terminal("models", NO_COLOR="1")


def test_cells_wrap_within_their_columns_on_a_narrow_terminal(models_directory: Path) -> None:
    write_model(models_directory / "a.gguf", cut=10)
    lines = on_a_terminal("models", COLUMNS="72", NO_COLOR="1").splitlines()
    assert max(map(len, lines)) <= 72
    place = lines[0].index("PROBLEM")
    problem = " ".join(line[place:].strip() for line in lines[1:] if line[place:].strip())
    assert "fetch it again" in problem
    assert all(line[place - 2 : place].strip() == "" for line in lines if len(line) > place)


@pytest.mark.parametrize("columns", ["40", "80"])
@pytest.mark.parametrize(
    "command",
    [("doctor",), ("models",), ("pull",), ("keep-alive",), ("ps",), ("cache",), ("stats",)],
    ids=lambda command: command[0],
)
def test_every_list_fits_a_terminal(
    command: tuple[str, ...], columns: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_USER_PATH", str(home))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    shown = on_a_terminal(*command, COLUMNS=columns, NO_COLOR="1")
    lines = shown.partition("Configuration:")[0].splitlines()
    assert max(map(len, lines), default=0) <= int(columns)
    assert command not in (("doctor",), ("pull",)) or shown.count("\n") > 7


def test_on_a_terminal_too_narrow_for_columns_each_row_is_a_block() -> None:
    lines = on_a_terminal("pull", COLUMNS="40", NO_COLOR="1").splitlines()
    start = lines.index("tools")
    assert lines[start + 1] == "  FOR       tool calling and agents; it"
    assert lines[start + 3] == "  DOWNLOAD  5.0 GB"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (97_990_000, "98 MB"),
        (999_600_000, "1.0 GB"),
        (4_700_000_000, "4.7 GB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert tables.size(count) == text


# ---------------------------------------------------------------- names


def test_a_path_gets_a_name_and_settings_and_loses_them(models_directory: Path, config_path: Path) -> None:
    path = write_model(models_directory / "small.gguf")
    config_path.parent.mkdir()
    config_path.write_text("# mine\ndirectories = []  # none yet\n")
    config_path.chmod(0o640)
    given = ["--backend", "llama_cpp", "--context-length", "64", "-l", "parallel_slots", "8"]
    given += ["-o", "temperature", "0.5", "-o", "stop", "[\"a\", 'b']", "-o", "tool_choice", "none"]
    ok("add", "mine", str(path), *given)
    assert tomllib.loads(config_path.read_text())["models"]["mine"] == {
        "source": str(path),
        "backend": "llama_cpp",
        "context_length": 64,
        "parallel_slots": 8,
        "options": {"temperature": 0.5, "stop": ["a", "b"], "tool_choice": "none"},
    }
    assert config_path.read_text().startswith("# mine\ndirectories = []  # none yet\n")
    assert config_path.stat().st_mode & 0o777 == 0o640
    assert "mine\tllama_cpp\t" in ok("models")
    assert ok("models").splitlines()[0].startswith("NAME\t")

    assert "has the name 'mine' already" in fails("add", "mine", DEMO)
    ok("add", "mine", f"llama_cpp:{DEMO}", "--replace")
    assert tomllib.loads(config_path.read_text())["models"] == {"mine": {"source": f"llama_cpp:{DEMO}"}}
    assert "no model has the name 'min': did you mean 'mine'? (known names: mine)" in fails("remove", "min")
    ok("add", "other", DEMO)
    ok("remove", "other")
    assert list(tomllib.loads(config_path.read_text())["models"]) == ["mine"]
    ok("remove", "mine")
    assert config_path.read_text() == "# mine\ndirectories = []  # none yet\n"


def test_paths_are_written_whole(models_directory: Path, config_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(models_directory / "small.gguf")
    write_projector(models_directory / "sight.gguf")
    monkeypatch.chdir(models_directory)
    ok("add", "mine", "small.gguf", "--mmproj", "sight.gguf")
    assert tomllib.loads(config_path.read_text())["models"]["mine"] == {
        "source": str(models_directory / "small.gguf"),
        "mmproj": str(models_directory / "sight.gguf"),
    }


def test_the_printed_command_uses_the_added_model(models_directory: Path, config_path: Path) -> None:
    """The printed command runs in llm with the plugin, which knows the new name."""
    models_directory.mkdir()
    path = write_llama(models_directory / "tiny.gguf", 512)
    bert = write_embedding(models_directory / "bert.gguf")
    environment = os.environ | {"LLM_LOAD_PLUGINS": "inference-bridge", "PATH": f"{Path(sys.executable).parent}:/bin"}
    for name, source, command in (
        ("coder", path, "llm -m coder 'Hello'"),
        ("two words", path, "llm -m 'two words' 'Hello'"),
        ("vectors", bert, "llm embed -m vectors -c 'Hello'"),
    ):
        added = subprocess.run(
            ["bash", "-c", 'llm bridge add "$1" "$2" -o max_tokens 3', "-", name, str(source)],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert added.stdout.splitlines()[-1] == f"Run: {command}"
        used = subprocess.run(
            ["bash", "-c", command], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert (used.returncode, bool(used.stdout)) == (0, True), used.stderr


def test_a_model_that_ranks_is_used_in_python(models_directory: Path, config_path: Path) -> None:
    models_directory.mkdir(exist_ok=True)
    write_embedding(models_directory / "ranks.gguf", pooling=4)
    told = ok("add", "mine", str(models_directory / "ranks.gguf"))
    assert "In Python: load_model('mine').rerank(query, documents)" in told
    listed = {entry["name"]: entry for entry in json.loads(ok("models", "--json"))}
    assert (listed["ranks"]["ranks"], listed["ranks"]["embeddings"]) == (True, False)


def test_a_server_gets_a_name(config_path: Path) -> None:
    ok("add", "office", "https://gpu.example:8443", "--api-key-env", "OFFICE_KEY", "--embeddings")
    assert tomllib.loads(config_path.read_text())["models"]["office"] == {
        "source": "https://gpu.example:8443",
        "api_key_env": "OFFICE_KEY",
        "embeddings": True,
    }
    assert config_path.stat().st_mode & 0o777 == 0o600
    listed = {entry["name"]: entry for entry in json.loads(ok("models", "--json"))}
    assert listed["office"]["embeddings"] is True


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["x", "/nowhere/at.gguf"], "no model at /nowhere/at.gguf"),
        (["x", "SmolLM2-135M"], "model 'SmolLM2-135M' not found"),
        (["x", DEMO, "-l", "context", "5"], "context is not known: did you mean 'context_length'?"),
        (["x", DEMO, "-o", "temperature", "hot"], "Error: temperature must be a number"),
        (["x", DEMO, "-l", "api_key", "sk-secret"], "keys don't belong in a file"),
        ([" ", DEMO], "can't be a name"),
        (["x", DEMO, "--backend", "lama_cpp"], "unknown backend 'lama_cpp': did you mean 'llama_cpp'?"),
        (["x", DEMO, "--embeddings"], "generates text, not embeddings"),
        (["x", DEMO, "--backend", "mlx"], "the backend mlx does not load GGUF models; these do: "),
        (["x", f"mlx:{DEMO}"], "the backend mlx does not load GGUF models"),
        (
            ["x", DEMO, "--backend", "llama_cpp", "-l", "connect_timeout", "5"],
            "does not support the load option connect_timeout",
        ),
        (["x", DEMO, "--mmproj", "/nowhere/sight.gguf"], "mmproj: there is no file /nowhere/sight.gguf"),
        (["x", DEMO, "--mmproj", "nowhere/sight.gguf"], f"mmproj: there is no file {os.getcwd()}/nowhere/sight.gguf"),
        (["x", DEMO, "-l", "adapters", "['nowhere/a.gguf']"], f"there is no file {os.getcwd()}/nowhere/a.gguf"),
        (["x", DEMO, "--mmproj", "FILES/model.gguf"], "model.gguf is not a projector"),
        (["x", DEMO, "--mmproj", "FILES/text.gguf"], "does not begin with the letters GGUF"),
        (["x", DEMO, "-l", "draft_model", "FILES/sight.gguf"], "sight.gguf is not a text model"),
        (["x", DEMO, "-l", "draft_model", "FILES/cut.gguf"], "fetch it again"),
        (["x", DEMO, "-l", "adapters", "['FILES/model.gguf']"], "model.gguf is not a LoRA adapter"),
        (["x", "https://gpu.example", "--api-key-env", "sk-secret"], "must be the name of an environment variable"),
        (["x", DEMO, "-o", "n_gpu_layers", "4"], "did you mean 'gpu_layers' in [models.x]?"),
        (["x", "FILES/link.gguf"], "it is a link to /nowhere/at.gguf, which does not exist"),
        (["x", "nowhere/at.gguf"], "model 'nowhere/at.gguf' not found"),
        (["x", "FILES/cut.gguf"], "fetch it again"),
        (["x", "FILES/text.gguf"], "does not begin with the letters GGUF"),
        (["x", "FILES/notes.txt"], "it is not a model"),
        (["x", "FILES"], "the directory holds no MLX model: name a file in it"),
        (["x", "FILES/mlx", "--backend", "llama_cpp"], "the backend llama_cpp does not load MLX models"),
        (["llama_cpp:x", DEMO], "before the colon is a backend"),
        (["/x", DEMO], "would be taken for a path"),
        (["http://x", DEMO], "would be taken for a path or a URL"),
    ],
)
def test_a_setting_that_would_not_work_is_not_written(
    arguments: list[str], told: str, config_path: Path, tmp_path: Path
) -> None:
    write_model(tmp_path / "cut.gguf", cut=10)
    write_model(tmp_path / "model.gguf")
    write_projector(tmp_path / "sight.gguf")
    (tmp_path / "text.gguf").write_text("not a model\n" * 20)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "link.gguf").symlink_to("/nowhere/at.gguf")
    write_checkpoint(tmp_path / "mlx")
    error = fails("add", *(argument.replace("FILES", str(tmp_path)) for argument in arguments))
    assert told in error
    assert "sk-secret" not in error
    assert not config_path.exists()


@pytest.mark.parametrize("wrong", ["[models.one\n", "models = 3\n"])
def test_a_file_that_can_not_be_edited_is_left_alone(wrong: str, config_path: Path) -> None:
    config_path.parent.mkdir()
    config_path.write_text(wrong)
    for command in (("add", "x", DEMO), ("remove", "x")):
        assert str(config_path) in fails(*command)
        assert config_path.read_text() == wrong


def test_a_mistake_in_one_entry_does_not_keep_others_from_being_edited(config_path: Path) -> None:
    config_path.parent.mkdir()
    config_path.write_text("[models.wrong]\nsorce = 1\n")
    ok("add", "x", DEMO)
    assert config_path.read_text().startswith("[models.wrong]\nsorce = 1\n")
    done = run("models")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[1].startswith("x\t")
    assert "models.wrong.sorce" in done.stderr
    ok("remove", "wrong")
    assert list(tomllib.loads(config_path.read_text())["models"]) == ["x"]


def test_editing_without_tomlkit_names_the_package_to_install(
    config_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tomlkit", None)
    assert "editing the configuration file needs the package tomlkit. Run: pip install" in fails("add", "x", DEMO)


def test_a_file_that_cannot_be_written_is_not_changed(config_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ok("add", "mine", DEMO)
    before = config_path.read_text()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert f"{config_path} can't be written: No space left on device" in fails("add", "other", DEMO)
    assert config_path.read_text() == before
    assert [path.name for path in config_path.parent.iterdir()] == [config_path.name]
    monkeypatch.setenv("INFERENCE_BRIDGE_CONFIG", str(config_path / "below a file"))
    assert "can't be written: File exists" in fails("add", "other", DEMO)


def test_concurrent_edits_wait_for_each_other(config_path: Path) -> None:
    from inference_bridge.cli.models import settings

    names = [f"name{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: settings.add(name, DEMO, {}, {}, {}), names))
    assert sorted(tomllib.loads(config_path.read_text())["models"]) == names


def test_a_linked_file_stays_a_link(config_path: Path, tmp_path: Path) -> None:
    config_path.parent.mkdir()
    (tmp_path / "dotfile.toml").touch()
    config_path.symlink_to(tmp_path / "dotfile.toml")
    ok("add", "mine", DEMO)
    assert config_path.is_symlink()
    assert "mine" in (tmp_path / "dotfile.toml").read_text()


# ---------------------------------------------------------------- kept models, stats


def test_the_list_of_kept_models_may_be_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert (ok("ps"), json.loads(ok("ps", "--json"))) == ("", [])
    assert "'abc'" in fails("stop", "abc")
    stopped = run("stop", "--all")
    assert (stopped.exit_code, stopped.stdout) == (0, "")
    assert stopped.stderr
    assert run("stop").exit_code == 2


@pytest.mark.parametrize("backend", ["llama_cpp", "llama_server"])
def test_kept_models_are_listed_and_stopped(
    backend: str, tmp_path: Path, config_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_llama(tmp_path / "tiny.gguf", 512)
    with short_directory() as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        with ib.load_model(model, backend=backend, context_length=256, threads=1, keep_alive="5m") as loaded:
            assert loaded.generate("Once", max_tokens=1).result().tokens
            (used,) = json.loads(ok("ps", "--json"))
        assert (used["model"], used["backend"], used["users"]) == (str(model), backend, 0)
        head, row = ok("ps").splitlines()
        assert head.split("\t")[:3] == ["ID", "BACKEND", "MODEL"]
        assert row.split("\t")[:3] == [used["id"], backend, "tiny"]
        ok("add", "one", str(model))
        ok("add", "two", str(model))
        assert ok("ps").splitlines()[1].split("\t")[2] == "one, two"
        told = ok("stop", used["id"])
        assert used["id"] in told
        assert "one, two" in told
        assert ok("ps") == ""
        wait_gone(used["pid"])


def test_keep_alive_is_set_shown_and_switched_off(config_path: Path) -> None:
    assert "not kept" in ok("keep-alive")
    ok("keep-alive", "5m")
    assert "300 seconds" in ok("keep-alive")
    assert config.load().keep_alive == 300
    assert "keep_alive" in fails("keep-alive", "soon")
    ok("keep-alive", "off")
    assert config.load().keep_alive is None


def test_keep_alive_is_refused_where_no_model_can_be_kept(config_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "find_spec", lambda name: None if name == "uvicorn" else True)
    error = fails("keep-alive", "5m")
    assert "the package uvicorn" in error
    assert install_command("http,serve") in error
    assert not config_path.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("pull", "chat", "--json"),
        ("pull", "--file", "Q4_0"),
        ("serve", "--preload"),
        ("serve", "a", "--alias", "a=b"),
        ("serve", "--memory-limit", "inf"),
        # The address belongs to no machine: without the check, the command fails later, with another status.
        ("serve", "a", "--host", "192.0.2.1", "--allow-host", "name:8080"),
        ("serve", "a", "--host", "192.0.2.1", "--cors", "mine.example"),
        ("stats", "--days", "nan"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(home: Path, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Usage: " in done.stderr


def test_stats_of_more_days_than_the_calendar_has(home: Path) -> None:
    (home / "llm").mkdir(exist_ok=True)
    (home / "llm" / "logs.db").touch()
    assert ok("stats", "--days", "1e6") == ok("stats", "--days", "1e12") == ""


def test_a_duration_in_other_digits_is_refused(home: Path, config_path: Path) -> None:
    assert "keep_alive" in fails("keep-alive", "²")


def test_no_model_has_a_problem(models_directory: Path, config_path: Path) -> None:
    models_directory.mkdir(exist_ok=True)
    write_embedding(models_directory / "ranks.gguf", pooling=4)
    done = run("models", "--problems", str(models_directory))
    assert (done.exit_code, done.stdout) == (0, "")
    assert "pull" not in done.stderr


def test_stats_of_llms_log(home: Path) -> None:
    import llm
    import sqlite_utils
    from llm.migrations import migrate

    assert (ok("stats"), json.loads(ok("stats", "--json"))) == ("", [])

    class Echo(llm.Model):
        model_id = "llama_cpp:echo"

        def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> Any:
            yield "x"
            speed = float(prompt.prompt)
            metrics = ib.GenerateMetrics(
                prompt_tokens=10,
                cached_tokens=5,
                generated_tokens=11,
                decode_seconds=10 / speed,
                time_to_first_token=0.5,
            )
            response.response_json = {"finish_reason": "stop", "metrics": metrics.to_dict()}

    class Other(llm.Model):
        model_id = "of another plugin"

        def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> Any:
            yield "x"
            response.response_json = {"metrics": {"tokens": 3}}

    (home / "llm").mkdir()
    sqlite3.connect(home / "llm" / "logs.db").close()  # as another version of llm may have left it
    assert ok("stats") == ""
    database = sqlite_utils.Database(home / "llm" / "logs.db")
    migrate(database)  # type: ignore[no-untyped-call]
    for model, speed in ((Echo(), "20"), (Other(), "1"), (Echo(), "40"), (Echo(), "100")):
        response = model.prompt(speed)
        response.text()
        response.log_to_db(database)  # type: ignore[no-untyped-call]
    assert ok("stats").splitlines()[1:] == ["llama_cpp:echo\t3\t30\t50%\t33\t0.50 s\t0 tok/s\t40.0 tok/s"]
    (entry,) = json.loads(ok("stats", "--json", "--days", "1"))
    assert entry["decode_tokens_per_second"] == pytest.approx(40)
    assert run("stats", "--days", "0").exit_code == 2


# ---------------------------------------------------------------- in llm


def test_the_same_commands_in_llm() -> None:
    environment = os.environ | {"LLM_LOAD_PLUGINS": "inference-bridge"}
    done = subprocess.run(
        [sys.executable, "-m", "llm", "bridge", "models"], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ok("models")
