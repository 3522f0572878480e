# SPDX-License-Identifier: Apache-2.0
"""Checks of the arguments that a caller passes to a model."""

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
    """Return the messages as a tuple, unchanged. Raises TypeError if they are not a sequence."""
    if isinstance(messages, str | Mapping | Message) or not isinstance(messages, Iterable):
        raise TypeError("messages must be a sequence of Message: chat([Message('user', '…')])")
    return tuple(messages)


FEW_MESSAGES = 256
"""Number of messages that can be read in less than 2 ms."""

SHORT_PART = 1 << 18
"""Number of characters of a part of a message, such as an image in base64, that can be read in less than 1 ms."""


def are_read_at_once(turns: Sequence[Any]) -> bool:
    """Return whether the caller's messages are few and short enough to be read on an event loop."""
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
        raise ValueError(f"tool_choice={choice!r} is not the name of a tool: the tools are {', '.join(names)}")


def decides_the_end(config: GenerateConfig) -> str | None:
    """Return the name of the option that constrains the text, and so decides where it ends. None: no such option."""
    for name in CONSTRAINTS:
        if getattr(config, name) is not None:
            return name
    if config.tools and is_forced(config.tool_choice):
        return f"tool_choice={config.tool_choice!r}"
    return None


def conversations_of(value: Any) -> Any:
    """Return the conversations as a list. Raises TypeError if the value is a single message, or not an iterable."""
    if isinstance(value, str | Mapping | Message) or not isinstance(value, Iterable):
        raise TypeError("conversations is an iterable of conversations: chat_batch([[Message('user', '…')], …])")
    items = list(value)
    for index, one in enumerate(items):
        if isinstance(one, str | Mapping | Message):
            raise TypeError(f"conversations[{index}] is a {type(one).__name__}, not a sequence of messages")
    return items


def strings(value: Sequence[str], name: str) -> list[str]:
    """Check that an argument is an iterable of str.

    Args:
        value: The argument.
        name: The name of the argument, for the error message.

    Returns:
        The items as a list.

    Raises:
        TypeError: It is not an iterable, or an item is not a str. The message has the index of the item.
    """
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
        vocab_size: Number of tokens in the model's vocabulary. 0: it is not known, and nothing is checked.

    Raises:
        ValueError: A token does not exist.
    """
    for token in (*(config.logit_bias or ()), *((config.stop_tokens or ()) if config.min_tokens else ())):
        if token >= vocab_size > 0:
            raise ValueError(f"token {token} does not exist: the model has {vocab_size} tokens")
