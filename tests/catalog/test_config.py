# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from inference_bridge.catalog import config
from inference_bridge.catalog.config import Config, ConfiguredModel
from inference_bridge.catalog.discovery import discover
from inference_bridge.errors import ConfigError
from inference_bridge.options import LOAD_FIELDS, GenerateConfig, LoadConfig

from ..parts.models.gguf_files import write_model


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "settings" / "config.toml"
    path.parent.mkdir()
    monkeypatch.setenv("INFERENCE_BRIDGE_CONFIG", str(path))
    return path


def only_model(file: Path, text: str) -> ConfiguredModel:
    file.write_text(text, encoding="utf-8")
    (model,) = config.load().models.values()
    return model


def test_a_missing_file_is_an_empty_configuration(file: Path) -> None:
    assert config.load() == Config(str(file))


@pytest.mark.skipif(sys.platform != "linux", reason="each platform has its own place")
def test_the_platforms_place(home: Path) -> None:
    assert config.config_path() == str(home / ".config" / "inference-bridge" / "config.toml")
    Path(config.config_path()).parent.mkdir(parents=True)
    Path(config.config_path()).write_text('directories = ["models"]')
    assert config.load().directories == (str(home / ".config" / "inference-bridge" / "models"),)


def test_the_variable_names_another_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERENCE_BRIDGE_CONFIG", "~/mine.toml")
    assert config.load().path == str(home / "mine.toml")


def test_every_setting_is_read(file: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(
        """
directories = ["~/models", "/srv/models", "here"]
llama_server = "~/bin/llama-server"
rocm_llama_server = "hip"

[models.coder]
source = "~/models/coder.gguf"
backend = "llama_cpp"
context_length = 32768
adapters = ["~/a.gguf", "b.gguf"]
mmproj = "mmproj.gguf"
chat_template = "{{ messages }}"
extra = { flash_attn = true }

[models.coder.options]
temperature = 0.7
stop = "END"

[models."gpu box"]
source = "https://gpu.example:8443/v1"
api_key_env = "GPU_BOX_KEY"
headers = { X-Team = "blue" }
ca_bundle = "../ca.pem"
""",
        encoding="utf-8",
    )
    read = config.load()
    here = str(file.parent)
    assert read.directories == (f"{home}/models", "/srv/models", f"{here}/here")
    assert read.programs == {"llama_server": f"{home}/bin/llama-server", "rocm_llama_server": f"{here}/hip"}
    assert read.models == {
        "coder": ConfiguredModel(
            "coder",
            f"{home}/models/coder.gguf",
            "llama_cpp",
            LoadConfig(
                context_length=32768,
                adapters=(f"{home}/a.gguf", f"{here}/b.gguf"),
                mmproj=f"{here}/mmproj.gguf",
                chat_template="{{ messages }}",
                extra={"flash_attn": True},
            ),
            GenerateConfig(temperature=0.7, stop="END"),
        ),
        "gpu box": ConfiguredModel(
            "gpu box",
            "https://gpu.example:8443/v1",
            None,
            LoadConfig(headers={"X-Team": "blue"}, ca_bundle=str(file.parent.parent / "ca.pem")),
            GenerateConfig(),
            api_key_env="GPU_BOX_KEY",
        ),
    }
    monkeypatch.setenv("GPU_BOX_KEY", "s3cret")
    model = read.models["gpu box"]
    assert model.load_config() == model.load.with_options({"api_key": "s3cret"})
    assert "s3cret" not in repr(read) + repr(model.load_config())


def test_a_key_that_is_not_set(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = only_model(file, '[models.box]\nsource = "https://a.example"\napi_key_env = "NO_SUCH_KEY"')
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"'box'.*NO_SUCH_KEY"):
        model.load_config()


def test_the_environment_adds_directories(file: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('directories = ["/srv/models"]')
    added = ["~/models", "", "/srv/models", "relative"]
    monkeypatch.setenv("INFERENCE_BRIDGE_MODELS", os.pathsep.join(added))
    assert config.load().directories == ("/srv/models", f"{home}/models", os.path.abspath("relative"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("SmolLM2-135M-Instruct.Q4_1", None),
        ("mlx-community/Qwen3-4B-4bit", None),
        ("llama3.2:3b", None),
        ("http://localhost:8080", None),
        ("/srv/a.gguf", "/srv/a.gguf"),
        ("./a.gguf", "{here}/a.gguf"),
        ("../a.gguf", "{up}/a.gguf"),
        ("~/a.gguf", "{home}/a.gguf"),
        ("there.gguf", "{here}/there.gguf"),
        ("llama_cpp:there.gguf", "llama_cpp:{here}/there.gguf"),
        ("llama_cpp:~/a.gguf", "llama_cpp:{home}/a.gguf"),
        ("llama_cpp:name", None),
        ("llama_cpp:", None),
    ],
)
def test_which_sources_are_paths(file: Path, home: Path, source: str, expected: str | None) -> None:
    (file.parent / "there.gguf").touch()
    places = {"here": file.parent, "up": file.parent.parent, "home": home}
    wanted = source if expected is None else expected.format(**places)
    model = only_model(file, f'[models.m]\nsource = "{source}"\ndraft_model = "{source}"')
    assert (model.source, model.load.draft_model) == (wanted, wanted)


@pytest.mark.parametrize("name", sorted(set(LOAD_FIELDS) - {"api_key"}))
def test_every_load_option_is_known(file: Path, name: str) -> None:
    file.write_text(f'[models.m]\nsource = "x"\n{name} = {{ nested = 2020-01-01 }}')
    if name == "extra":
        assert "nested" in (config.load().models["m"].load.extra or {})
    else:
        read = config.load()
        (problem,) = read.problems
        assert (read.models, problem.key, problem.line, problem.column) == ({}, f"models.m.{name}", 3, 1)
        with pytest.raises(ConfigError, match=rf"config\.toml:3:1: models\.m\.{name}: {name} must"):
            read.model("m")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("directory = []", "directory: is not known: did you mean 'directories'"),
        ("llama_server = 3", "llama_server: must be the path of a program, not 3"),
        ("[server]", "server: is not known: did you mean 'llama_server'"),
        ("directories = 'x'", "directories: must be a list"),
        ("directories = [1]", "directories: must be a list"),
        ("directories = ['']", "directories: must be a list"),
        ("models = 3", "models: must be tables"),
        ("[models]\nm = 'a.gguf'", "models.m: must be a table"),
        ("[models.m]", "models.m: needs a source"),
        ("[models.'']\nsource = 'x'", "needs a name"),
        ("[models.m]\nsource = 7", "models.m.source: must be a non-empty string, not 7"),
        ("[models.m]\nsource = ''", "models.m.source"),
        ("[models.m]\nsource = 'x'\nbackend = ['a']", "models.m.backend"),
        ("[models.m]\nsource = 'x'\ncontxt_length = 1", "models.m.contxt_length: is not known: did you mean 'context_"),
        ("[models.m]\nsource = 'x'\ncontext_length = '1'", "models.m.context_length: context_length must be an int"),
        ("[models.m]\nsource = 'x'\nthreads = -1", "models.m.threads: threads must be at least 0"),
        ("[models.m]\nsource = 'x'\nembeddings = 'yes'", "models.m.embeddings: must be true or false, not 'yes'"),
        ("[models.m]\nsource = 'x'\noptions = 1", "models.m.options: must be a table"),
        ("[models.m.options]\ntemperature = 1", "models.m: needs a source"),
        ("[models.m]\nsource = 'x'\noptions.temprature = 1", "options.temprature: is not known: did you mean 'temper"),
        ("[models.m]\nsource = 'x'\noptions.temperature = -1", "models.m.options.temperature: temperature must"),
        ("[models.m]\nsource = 'x'\noptions.top_p = nan", "models.m.options.top_p: top_p must be finite"),
        ("[models.m\n", "not valid TOML"),
        ("a = " + "[" * 9999, "nested too deep|not valid TOML"),
    ],
)
def test_mistakes(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    (problem, *_) = config.load().problems
    assert re.search(message, str(problem))
    assert str(problem).startswith(str(file))
    assert problem.line >= 1


def test_a_key_in_the_file_is_refused_unseen(file: Path) -> None:
    file.write_text("[models.m]\nsource = 'x'\napi_key = 's3cret'")
    with pytest.raises(ConfigError, match="api_key_env") as caught:
        config.load().model("m")
    assert "s3cret" not in str(caught.value)


def test_unreadable_configuration_files_are_errors(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERENCE_BRIDGE_MODELS", "/srv/more")

    def problem() -> str:
        read = config.load()
        assert read.directories == ("/srv/more",)
        (only,) = read.problems
        assert str(only).startswith(str(file))
        return only.message

    file.write_bytes(b"\xff\xfe")
    assert "not UTF-8" in problem()
    with file.open("wb") as sparse:
        sparse.truncate(1 << 40)
    assert "larger than 1 MiB" in problem()
    file.unlink()
    file.mkdir()
    assert "is a directory" in problem()
    file.rmdir()
    file.symlink_to(file.name)
    assert "can't be read" in problem()


def test_bytes_that_are_not_utf8_exclude_only_their_entry(file: Path) -> None:
    good = b"directories = ['/srv/models']\n[models.good]\nsource = '/good.gguf'\n"
    file.write_bytes(good + b"[models.bad]\nsource = '/caf\xe9.gguf'\n[models.last]\nsource = '/last.gguf'\n")
    read = config.load()
    assert (sorted(read.models), read.directories) == (["good", "last"], ("/srv/models",))
    (problem,) = read.problems
    assert (problem.key, problem.line) == ("models.bad", 4)
    with pytest.raises(ConfigError, match="not UTF-8"):
        read.model("bad")
    file.write_bytes(good + b"# caf\xe9\n")
    read = config.load()
    assert list(read.models) == ["good"]
    assert [(one.key, one.line, one.column) for one in read.problems] == [("", 4, 6)]


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("n_gpu_layers = 4", "did you mean 'gpu_layers'?"),
        ("temperature = 0.5", "it belongs in [models.m.options]"),
        ("num_predict = 5", "did you mean 'max_tokens' in [models.m.options]?"),
        ("[models.m.options]\nnum_ctx = 5", "did you mean 'context_length' in [models.m]?"),
        ("[models.m.options]\nthreads = 5", "it belongs in [models.m]"),
    ],
)
def test_the_error_for_an_option_in_the_wrong_table_names_the_right_table(file: Path, entry: str, told: str) -> None:
    file.write_text(f"[models.m]\nsource = '/m.gguf'\n{entry}\n")
    (problem,) = config.load().problems
    assert told in problem.message


MOSTLY_RIGHT = """\
directories = ["/srv/models"]
llama_server = 3

[models.good]
source = "/good.gguf"

[models.typo]
source = "/typo.gguf"
contxt_length = 5

[models.broken]
source = "/broken.gguf
threads = 2

[models.broken.options]
temperature = 0.1

[models.last]
source = "/last.gguf"
"""


def test_a_mistake_excludes_only_its_entry(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERENCE_BRIDGE_MODELS", "/srv/more")
    file.write_text(MOSTLY_RIGHT)
    read = config.load()
    assert read.directories == ("/srv/models", "/srv/more")
    assert sorted(read.models) == ["good", "last"]
    places = {(problem.key, problem.line) for problem in read.problems}
    assert places == {("models.broken", 12), ("models.typo.contxt_length", 9), ("llama_server", 2)}
    assert all(problem.column for problem in read.problems)
    for name in ("typo", "broken"):
        with pytest.raises(ConfigError, match=str(file)):
            read.model(name)
    with pytest.raises(ConfigError, match="llama_server"):
        read.program("llama_server")
    assert read.model("nobody") is None


@pytest.mark.parametrize("broken", ["directories = [", "= 3", "x = '''", "[[[", "[models.bad", 'a = "\\q"'])
def test_tables_after_invalid_toml_are_read(file: Path, broken: str) -> None:
    file.write_text(f"{broken}\n[models.good]\nsource = '/good.gguf'\n")
    read = config.load()
    assert list(read.models) == ["good"]
    assert [problem.line for problem in read.problems] in ([1], [2])


NAMES = "\n".join(f'{name} = {{ source = "/{name}.gguf" }}' for name in ("first", "last"))


@pytest.mark.parametrize(
    ("text", "key", "place"),
    [
        (
            "  [models.first]\n  source = '/f'\n  [models.bad]\n\tsource = x\n\t[models.last]\n\tsource = '/l'",
            "bad",
            (4, 11),
        ),
        ("[models]\nfirst.source = '/f'\nbad.source = x\nbad.threads = 1\nlast.source = '/l'", "bad", (3, 14)),
        ("[models]\nfirst.source = '/f'\nbad.threads = 1\nbad.source = x\nlast.source = '/l'", "bad", (4, 14)),
        (f"[models]\nbad = {{ source = x }}\n{NAMES}", "bad", (2, 18)),
        (f"[models]\n{NAMES}\n[models.bad]\nadapters = [\n  ['a'],\n  [1]\n", "bad", (7, 1)),
    ],
)
def test_a_mistake_excludes_only_its_entry_however_the_file_is_written(
    file: Path, text: str, key: str, place: tuple[int, int]
) -> None:
    file.write_text(text)
    read = config.load()
    assert sorted(read.models) == ["first", "last"]
    assert [(one.key, one.line, one.column) for one in read.problems] == [(f"models.{key}", *place)]


def test_the_names_under_a_header_with_a_mistake_are_in_no_other_table(file: Path) -> None:
    for text in ("[models\na.source = '/a'\n[models.good]\nsource = '/g'", f"[models]\n{NAMES}\n[[models]]\nx = 1"):
        file.write_text(text)
        read = config.load()
        assert set(read.models) <= {"good"}
        assert {one.key for one in read.problems} == {"models"}


def test_a_name_that_needs_quotes_is_shown_with_them(file: Path) -> None:
    file.write_text(
        "[models.qwen2]\nsource = '/q'\n[models.qwen2.5]\nsource = '/r'\n[models.a.1.0]\nsource = '/a'\n"
        "[models.a.1.1]\nsource = '/b'\n"
    )
    read = config.load()
    assert list(read.models) == ["qwen2"]
    names = ("qwen2.5", "a.1.0", "a.1.1")
    assert [(one.key, one.line) for one in read.problems] == [(f"models.{n}", 3 + 2 * i) for i, n in enumerate(names)]
    assert all(f'[models."{name}"]' in one.message for name, one in zip(names, read.problems, strict=True))
    for name in ("my model", "qwen2.5:7b"):
        file.write_text(f"[models.{name}]\nsource = '/a'\n[models.good]\nsource = '/g'\n")
        read = config.load()
        assert list(read.models) == ["good"]
        assert f'[models."{name}"]' in read.problems[0].message


def test_a_user_without_a_home_directory_uses_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unknown(_: int) -> object:
        raise KeyError("no such user")

    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "INFERENCE_BRIDGE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setenv("INFERENCE_BRIDGE_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "models" / "m.gguf")
    read = config.load()
    assert (read.directories, read.models, read.problems) == ((str(tmp_path / "models"),), {}, ())
    assert "m" in [model.name for model in discover()]
    assert not os.path.exists(config.config_path())
    assert not (tmp_path / "~").exists()


def test_a_byte_order_mark_is_accepted(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfdirectories = ['/a']")
    assert config.load().directories == ("/a",)


def test_no_configuration_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERENCE_BRIDGE_CONFIG", os.devnull)
    assert config.load() == Config(os.devnull)
