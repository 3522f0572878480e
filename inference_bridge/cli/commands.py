# SPDX-License-Identifier: Apache-2.0
"""The commands and their help. A command's code is imported when it runs: llm imports this module at each start."""

from __future__ import annotations

import errno
import math
from typing import Any

import click

from .. import __version__
from ..errors import BridgeError


class _Commands(click.Group):
    """A group that shows this library's errors as click shows its own: in one line, with exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BridgeError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # click ends without a message if the output is no longer read
                raise
            raise click.ClickException(str(error)) from error


class _Finite(click.FloatRange):
    """A number within a range, which is neither infinite nor NaN."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return float(number)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="inference-bridge %(version)s")
def bridge() -> None:
    """Find, download and name language models on your own machines, and check what they need.

    Start with `doctor`, which checks what works on this machine and what is missing, and `models`,
    which lists the models on this machine. `pull` downloads a model from the Hugging Face hub.
    """


@bridge.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for other programs.")
def doctor(as_json: bool) -> None:
    """Check which backends work on this machine, and how to fix the others.

    Lists each backend (a way to run models) and, if it can't run here, the reason and the command that
    fixes it; the machine's processor, memory and GPUs; the installed versions; and the directories that are
    searched for models. The exit code is 1 if no backend can run, or if the configuration file has a mistake or
    names something that is missing.
    """
    from .doctor import examine, report

    found = examine()
    report(found, as_json)
    if not found["works"] or found["configuration"]["problems"]:
        raise SystemExit(1)


@bridge.command()
@click.argument("directories", nargs=-1, type=click.Path(exists=True, file_okay=False), metavar="[DIRECTORY]...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for other programs.")
@click.option("--problems", is_flag=True, help="List only models that can't be loaded.")
def models(directories: tuple[str, ...], as_json: bool, problems: bool) -> None:
    """List the models on this machine and those you have named.

    Without DIRECTORY, this lists the models that have a name in the configuration file, and those found in its
    directories, in the stores of Hugging Face, llama.cpp, LM Studio and Ollama, and in installed packages.

    The columns are the model's name, the backends that can load it (the first is used unless you name another), its
    size, the bits of each weight, its context window in tokens, and what is wrong with it. In llm a model is
    called BACKEND:NAME, as in `llm -m llama_cpp:SmolLM2-135M-Instruct.Q4_1`.
    """
    from .models.listing import listing, report

    report(listing(directories, problems), as_json, only_problems=problems)


@bridge.command()
@click.argument("name")
@click.argument("source")
@click.option("--backend", help="The backend to use, such as llama_cpp. By default, the best that can load the model.")
@click.option("--context-length", type=int, help="Context window in tokens. A smaller one takes less memory.")
@click.option("--gpu-layers", type=int, help="Number of layers to put on the GPU. By default, all.")
@click.option("--mmproj", help="The projector file of a model that takes images or sound.")
@click.option("--api-key-env", metavar="VARIABLE", help="The environment variable that holds a server's key.")
@click.option("--embeddings", is_flag=True, help="The model makes embeddings. Only a server's model needs this.")
@click.option(
    "options", "-o", "--option", nargs=2, multiple=True, metavar="NAME VALUE",
    help="A generation option for every answer, such as temperature 0.7. May be repeated.",
)  # fmt: skip
@click.option(
    "load", "-l", "--load", nargs=2, multiple=True, metavar="NAME VALUE",
    help="A load option, such as parallel_slots 8. May be repeated.",
)  # fmt: skip
@click.option("--replace", is_flag=True, help="Replace the model that has this NAME.")
def add(name: str, source: str, options: Any, load: Any, replace: bool, embeddings: bool, **given: Any) -> None:
    """Give a model a NAME, with its own settings.

    SOURCE is a file or directory, the URL of a server, or a name that `models` lists. The NAME is written to
    the configuration file, and `llm -m`, load_model() and LangChain accept it. `llm -m` accepts only names, so add
    a path or a URL before you use it there.

    \b
    Examples:
      add coder ~/models/Qwen3-Coder-30B-Q4_K_M.gguf --context-length 32768
      add office https://gpu.example:8443 --api-key-env OFFICE_KEY
      add precise llama_cpp:SmolLM2-135M-Instruct.Q4_1 -o temperature 0.2
    """
    from .models import settings

    settings.add(name, source, given | {"embeddings": embeddings or None}, dict(load), dict(options), replace)


@bridge.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove a NAME that `add` wrote from the configuration file. The model's files are kept."""
    from .models import settings

    settings.remove(name)


@bridge.command()
@click.argument("model", required=False)
@click.option("--file", "wanted", metavar="FILE", help="The file to download, or a part of its name, such as Q4_K_M.")
@click.option("--revision", help="A branch, tag or commit. By default, the main branch.")
@click.option("--no-mmproj", is_flag=True, help="Leave out the projector, which the model needs for images and sound.")
@click.option("--json", "as_json", is_flag=True, help="Print the list of recommended models as JSON.")
def pull(model: str | None, wanted: str | None, revision: str | None, no_mmproj: bool, as_json: bool) -> None:
    """Download a model from the Hugging Face hub.

    MODEL is the short name of a recommended model, or any repository of the hub: OWNER/NAME, OWNER/NAME:FILE, or the
    address of its page. Without MODEL, the recommended models are listed. GGUF repositories hold the same model in
    several sizes, one file each: name one with --file, or leave --file out to list them. From a repository without
    GGUF files, everything that an MLX model needs is downloaded.

    The files go to the hub's own cache, where other programs find them too. An interrupted download is resumed, and
    weights are checked against their checksums. For private and gated models set HF_TOKEN, or run `hf auth login`.

    \b
    Examples:
      pull chat
      pull unsloth/Qwen3-4B-GGUF --file Q4_K_M
      pull mlx-community/Qwen3-4B-4bit
    """
    if model is None:
        if wanted or revision or no_mmproj:
            raise click.UsageError("--file, --revision and --no-mmproj need a MODEL")
        from .models.recommended import report

        report(as_json)
        return
    if as_json:
        raise click.UsageError("--json prints the list of recommended models: leave MODEL out")
    from .models.pull import pull as get

    get(model, wanted, revision, projector=not no_mmproj)


@bridge.command("keep-alive")
@click.argument("duration", required=False)
def keep_alive(duration: str | None) -> None:
    """Set how long `llm` commands keep a model loaded.

    DURATION is a number of seconds, or a time such as 90s, 5m or 1h; 0 or off turns it off. Without DURATION, the
    current setting is printed. The first `llm` command starts a process that keeps the model in memory, so the next
    command does not load it again. The process ends when no model was used for DURATION.
    """
    from .models.settings import keep_alive as set_keep_alive

    set_keep_alive(duration)


@bridge.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for other programs.")
def ps(as_json: bool) -> None:
    """List the models that are kept loaded between commands.

    See `keep-alive`. To keep one model loaded, set its own keep_alive, in the configuration file or as a load option.
    """
    from .servers import report

    report(as_json)


@bridge.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "every", is_flag=True, help="Unload all models.")
def stop(ids: tuple[str, ...], every: bool) -> None:
    """Unload models that `ps` lists, by their IDs.

    This frees their memory. A program that is using a model loses its current answer, and loads the model again when
    it needs it.
    """
    from .servers import stop as end

    end(ids, every)


@bridge.command()
@click.option("--clear", is_flag=True, help="Remove the whole cache.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for other programs.")
def cache(clear: bool, as_json: bool) -> None:
    """Show or clear the prefix cache on disk.

    With it, a command does not evaluate again a conversation or document that an earlier command evaluated, if that
    has 512 tokens or more. The text of prompts and answers can be recovered from its files, which only you can read.
    The columns are the model, its prefixes, their tokens and size, and the time since one of them was used.
    prefix_cache_size in the configuration file is the maximum size that llm commands keep (2 GiB by default; 0: no
    cache); the least recently used prefixes are removed first.
    """
    from .cache import clear as remove
    from .cache import report

    if clear:
        remove(as_json)
    else:
        report(as_json)


@bridge.command()
@click.option("--days", type=_Finite(min=0, min_open=True), help="Only the last DAYS days.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for other programs.")
def stats(days: float | None, as_json: bool) -> None:
    """Show how fast your models answered, from llm's log.

    The columns are the model, its answers, its prompt tokens, the share of these that came from the prefix cache, its
    generated tokens, the median time to first token, and the median speeds of prefill and decoding.
    """
    from .stats import report

    report(days, as_json)


@bridge.command()
@click.argument("model")
@click.argument("text", required=False)
@click.option("--noul", "nouls", nargs=2, multiple=True, metavar="NAME QUESTION", help="A yes/no question.")
@click.option(
    "--choice", "choices", nargs=3, multiple=True, metavar="NAME QUESTION OPTIONS",
    help="A question whose answer is one of several options, with | between them.",
)  # fmt: skip
@click.option(
    "--score", "scores", nargs=3, multiple=True, metavar="NAME QUESTION LEVELS",
    help="A question whose answer is a level of a scale, with | between the levels, the lowest first.",
)  # fmt: skip
@click.option(
    "--questions", "file", type=click.Path(exists=True, dir_okay=False), metavar="FILE",
    help="A file with a JSON object that maps names to questions, each with type, instructions and criteria.",
)  # fmt: skip
@click.option(
    "--timeout",
    type=_Finite(min=0, min_open=True),
    metavar="SECONDS",
    help="Maximum time for all questions together.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for other programs.")
def decide(model: str, text: str | None, **given: Any) -> None:
    """Answer questions about a TEXT with the probability of every option.

    MODEL is a name, a path or a URL, as for load_model(). Without TEXT, standard input is read. Nothing is generated:
    the answers are read from the probabilities of the model's next tokens. The columns are the answer, its confidence
    (0: no better than chance, 1: certain), the probability that the model would answer with any of the options, and
    the probability of each option, given that it does.

    \b
    Examples:
      decide coder "Production is down!" --noul urgent "Must someone answer today?"
      decide coder --choice team "Which team?" "billing|support|sales" < letter.txt
      decide coder "..." --score anger "How angry is it?" "calm|annoyed|furious" --json
    """
    from .decide import decide as ask

    ask(model, text, **given)


@bridge.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option(
    "--alias", "aliases", multiple=True, metavar="NAME=SOURCE", help="Serve SOURCE under NAME. May be repeated."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8090, show_default=True, type=click.IntRange(0, 65535), help="0: any free port.")
@click.option("--no-key", is_flag=True, help="Require no API key. Allowed only on a loopback address.")
@click.option(
    "--allow-host", "hosts", multiple=True, metavar="NAME", help="Accept this name in the Host header. May be repeated."
)
@click.option(
    "--cors", "origins", multiple=True, metavar="ORIGIN", help="Accept requests from this web origin. May be repeated."
)
@click.option("--keep-alive", type=_Finite(min=0), metavar="SECONDS", help="Unload a model that is unused for SECONDS.")
@click.option("--max-models", type=click.IntRange(min=1), help="Maximum number of models loaded at once.")
@click.option(
    "--memory-limit",
    type=_Finite(min=0, min_open=True),
    metavar="GIB",
    help="Maximum size of the weights of all loaded models, in GiB. Idle models are unloaded to make room.",
)
@click.option(
    "--max-queue",
    default=64,
    show_default=True,
    type=click.IntRange(min=0),
    help="Maximum number of waiting requests per model.",
)
@click.option(
    "--max-connections",
    default=512,
    show_default=True,
    type=click.IntRange(min=1),
    help="Maximum number of connections. Further ones are answered with status 503.",
)
@click.option("--preload", is_flag=True, help="Load the named models when the server starts.")
@click.option("--verbose", is_flag=True, help="Log the route and status of each request, never its text.")
def serve(
    models: tuple[str, ...],
    aliases: tuple[str, ...],
    host: str,
    port: int,
    no_key: bool,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    keep_alive: float | None,
    max_models: int | None,
    memory_limit: float | None,
    max_queue: int,
    max_connections: int,
    preload: bool,
    verbose: bool,
) -> None:
    """Serve models over HTTP with OpenAI's and Anthropic's APIs.

    MODEL is a name, a path or a URL, as for load_model(), and clients ask for it by that name. Without MODEL, clients
    may ask for any model that `models` lists. A model is loaded at the first request for it.

    The server listens on this machine only, unless --host says otherwise. It requires an API key, which it keeps in a
    file that only you can read.
    """
    from .serve import Settings
    from .serve import serve as run

    run(
        Settings(
            models=models,
            aliases=aliases,
            host=host,
            port=port,
            key=not no_key,
            hosts=hosts,
            origins=origins,
            keep_alive=keep_alive,
            max_models=max_models,
            memory_limit=None if memory_limit is None else int(memory_limit * 2**30),
            max_queue=max_queue,
            max_connections=max_connections,
            preload=preload,
            verbose=verbose,
        )
    )
