# SPDX-License-Identifier: Apache-2.0
"""What a caller passes to a model, checked."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..options import CONSTRAINTS, GenerateConfig, is_forced
from ..types import Message


@contextmanager
def bounded_nesting() -> Iterator[None]:
    """Raise ValueError if the block reads an argument that is nested more deeply than Python can recurse."""
    try:
        yield
    except RecursionError:
        raise ValueError("a message, a tool or an option is nested too deeply, or contains itself") from None


def turns_of(messages: Any) -> tuple[Any, ...]:
    """The messages, as the caller gave them. Raises TypeError where they are not a sequence."""
    if isinstance(messages, str | Mapping | Message) or not isinstance(messages, Iterable):
        raise TypeError("messages must be a sequence of Message: chat([Message('user', '…')])")
    return tuple(messages)


FEW_MESSAGES = 256
"""Messages that are read in less than a millisecond or two."""

SHORT_PART = 1 << 18
"""Characters of a part of a message, an image in base64 say, that are read in less than a millisecond."""


def are_read_at_once(turns: Sequence[Any]) -> bool:
    """Whether the messages, as the caller gave them, are few and short enough to be read on an event loop."""
    return len(turns) <= FEW_MESSAGES and not any(_is_long(part) for turn in turns for part in _parts_given(turn))


def _parts_given(turn: Any) -> Sequence[Any]:
    content = turn.get("content") if isinstance(turn, Mapping) else None
    return content if isinstance(content, list | tuple) else ()


def _is_long(value: Any) -> bool:
    if isinstance(value, Mapping):
        return len(value) > FEW_MESSAGES or any(_is_long(item) for item in value.values())
    return isinstance(value, str) and len(value) > SHORT_PART


def as_message(value: Message | Mapping[str, Any]) -> Message:
    if isinstance(value, Message):
        return value
    if isinstance(value, Mapping):
        return Message.from_dict(value)
    raise TypeError(f"a message is a Message or a mapping, not {type(value).__name__}")


def check_tool_choice(config: GenerateConfig) -> None:
    choice = config.tool_choice
    if not is_forced(choice):
        return
    names = [tool.name for tool in config.tools or () if hasattr(tool, "name")]
    if not names:
        raise ValueError(f"tool_choice={choice!r} needs tools")
    if choice != "required" and choice not in names:
        raise ValueError(f"tool_choice={choice!r} is none of the tools: {', '.join(names)}")


def decides_the_end(config: GenerateConfig) -> str | None:
    """The field that makes the text end with its JSON, if there is one."""
    for name in CONSTRAINTS:
        if getattr(config, name) is not None:
            return name
    if config.tools and is_forced(config.tool_choice):
        return f"tool_choice={config.tool_choice!r}"
    return None


def conversations_of(value: Any) -> Any:
    """The conversations; TypeError for what is one of them, or none at all."""
    if isinstance(value, str | Mapping | Message) or not isinstance(value, Iterable):
        raise TypeError("conversations is an iterable of conversations: chat_batch([[Message('user', '…')], …])")
    items = list(value)
    for index, one in enumerate(items):
        if isinstance(one, str | Mapping | Message):
            raise TypeError(f"conversations[{index}] is a {type(one).__name__}, and not a sequence of messages")
    return items


def strings(value: Sequence[str], name: str) -> list[str]:
    """`value` as a list of str; TypeError naming the place of one that is none."""
    items = list(iterable(value, name))
    for index, item in enumerate(items):
        if not isinstance(item, str):
            raise TypeError(f"{name}[{index}] must be a str, not {type(item).__name__}")
    return items


def iterable(prompts: Any, name: str = "prompts") -> Any:
    if isinstance(prompts, str) or not isinstance(prompts, Iterable | AsyncIterable):
        raise TypeError(f"{name} must be an iterable of str, not {type(prompts).__name__}")
    return prompts


def check_token_ids(config: GenerateConfig, vocab_size: int) -> None:
    """Check that the tokens of `logit_bias`, and the stop tokens that `min_tokens` excludes, exist.

    Args:
        config: The options.
        vocab_size: Number of the model's tokens. 0: it is not known, and nothing is checked.

    Raises:
        ValueError: There is no such token.
    """
    for token in (*(config.logit_bias or ()), *((config.stop_tokens or ()) if config.min_tokens else ())):
        if token >= vocab_size > 0:
            raise ValueError(f"there is no token {token}: the model has {vocab_size} tokens")
