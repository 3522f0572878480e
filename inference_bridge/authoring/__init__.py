# SPDX-License-Identifier: Apache-2.0
"""The parts that authors of backends and adapters may build on; the built-in ones use the same.

Text:
    TextAssembler            model tokens to `Token`s: whole characters, stop strings held back
    join_tool_calls          the pieces of streamed tool calls, joined

Chat formats (see docs/structured-output.md):
    register_chat_format     adds the notation in which a model family writes tool calls and reasoning
    ChatFamily, Thinking, AnswerTags   a notation: marks, tags, and a reader for each text that opens a call
    CallReader               the type of such a reader
    Reader, Steps, NoCallError   what a reader gets, what it returns, and what it raises if the text is not a call

Checks of answers, for models that may ignore the options:
    why_not_satisfied        why an answer does not satisfy its json_schema; needs the extra http
    schema_validator         compares values with a JSON schema, and refuses an invalid schema; needs the extra http
    why_not_forced           why an answer does not satisfy its tool_choice

Settings:
    settled, cut_off         the options that an adapter passes on for a call; why an answer was cut off, as a sentence
    ADAPTER_MAX_TOKENS       maximum number of tokens of an answer, if the user of an adapter sets no max_tokens
    strings                  checks that an argument is a sequence of str
    read_file                the content of an attachment's file, which must be a regular file of limited size
    GENERATE_FIELDS, LOAD_FIELDS   the names of the options that a call and a load accept
    install_command          the command that installs an extra of this package
    did_you_mean             ": did you mean 'x'?" for a message about an unknown name

Concurrency:
    Mailbox, AsyncMailbox    a queue that one thread, or one coroutine, reads while others write
    Sink                     the writing end of such a queue
    start_in_thread, start_in_thread_loop, start_in_task   run an operation that fills a Sink
    arun_in_thread, run_in_thread_loop   the async form of a sync operation, and the reverse

Models on this machine:
    load_configuration, ConfiguredModel   the user's configuration file, and an entry of it
    lookup                   finds a model by its name among discovered models
    look_at                  the model at one path, in any directory
    store_directories        the existing model directories of Hugging Face, LM Studio, Ollama and others
    model_directories        the directories that plugins name
    parse_source             splits a source into backend and model
    load_progress            the part of a model file that has been loaded, for programs that show progress

Stability: these names and their signatures change only with a line in the CHANGELOG and, from
version 1.0 on, only with a major version. Everything else below `inference_bridge` that the package
itself does not export is private and may change at any time.

Each name is imported when it is first used, as in `inference_bridge` itself.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing it from typing would take longer than the rest of this module
if TYPE_CHECKING:
    from .._calls.arguments import strings
    from .._concurrency.mailbox import AsyncMailbox, Mailbox, Sink
    from .._concurrency.threads import (
        arun_in_thread,
        run_in_thread_loop,
        start_in_task,
        start_in_thread,
        start_in_thread_loop,
    )
    from .._suggest import did_you_mean
    from ..availability import install_command
    from ..catalog.config import ConfiguredModel
    from ..catalog.config import load as load_configuration
    from ..catalog.discovery import lookup
    from ..catalog.single import look_at
    from ..catalog.stores import directories as store_directories
    from ..chat.assembler import TextAssembler
    from ..chat.attachment_files import read_file
    from ..chat.formats import (
        AnswerTags,
        CallReader,
        ChatFamily,
        NoCallError,
        Reader,
        Steps,
        Thinking,
        register_chat_format,
    )
    from ..options import GENERATE_FIELDS, LOAD_FIELDS
    from ..registry import model_directories
    from ..sources import parse as parse_source
    from ..types import join_tool_calls
    from .adapter_options import ADAPTER_MAX_TOKENS, cut_off, settled
    from .answer_checks import schema_validator, why_not_forced, why_not_satisfied
    from .loads import load_progress

_HOMES = {
    "_calls.arguments": "strings",
    "_concurrency.mailbox": "AsyncMailbox Mailbox Sink",
    "_concurrency.threads": "arun_in_thread run_in_thread_loop start_in_task start_in_thread start_in_thread_loop",
    "availability": "install_command",
    "_suggest": "did_you_mean",
    "authoring.adapter_options": "ADAPTER_MAX_TOKENS cut_off settled",
    "authoring.answer_checks": "schema_validator why_not_forced why_not_satisfied",
    "authoring.loads": "load_progress",
    "catalog.config": "ConfiguredModel load_configuration=load",
    "catalog.discovery": "lookup",
    "catalog.single": "look_at",
    "catalog.stores": "store_directories=directories",
    "chat.assembler": "TextAssembler",
    "chat.attachment_files": "read_file",
    "chat.formats": "AnswerTags CallReader ChatFamily NoCallError Reader Steps Thinking register_chat_format",
    "options": "GENERATE_FIELDS LOAD_FIELDS",
    "registry": "model_directories",
    "sources": "parse_source=parse",
    "types": "join_tool_calls",
}
_HOME_OF = {
    name: (home, original or name)
    for home, names in _HOMES.items()
    for name, _, original in (item.partition("=") for item in names.split())
}

__all__ = [
    "ADAPTER_MAX_TOKENS",
    "GENERATE_FIELDS",
    "LOAD_FIELDS",
    "AnswerTags",
    "AsyncMailbox",
    "CallReader",
    "ChatFamily",
    "ConfiguredModel",
    "Mailbox",
    "NoCallError",
    "Reader",
    "Sink",
    "Steps",
    "TextAssembler",
    "Thinking",
    "arun_in_thread",
    "cut_off",
    "did_you_mean",
    "install_command",
    "join_tool_calls",
    "load_configuration",
    "load_progress",
    "look_at",
    "lookup",
    "model_directories",
    "parse_source",
    "read_file",
    "register_chat_format",
    "run_in_thread_loop",
    "schema_validator",
    "settled",
    "start_in_task",
    "start_in_thread",
    "start_in_thread_loop",
    "store_directories",
    "strings",
    "why_not_forced",
    "why_not_satisfied",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    home, original = _HOME_OF[name]
    value = globals()[name] = getattr(import_module(f"inference_bridge.{home}"), original)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
