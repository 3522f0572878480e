# SPDX-License-Identifier: Apache-2.0
"""Reads an llm prompt: the conversation, the text for a model without a chat template, and the schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import llm
from llm.parts import Message as LLMMessage
from llm.parts import TextPart

from inference_bridge import GenerateConfig, Message, TextModel
from inference_bridge.streams import AsyncTokenStream, TokenStream

from .command import is_command
from .interrupts import is_chat
from .messages import to_messages


class CheckedPrompt:
    """A checked prompt, ready to be sent to a model.

    Raises:
        ValueError: The prompt is empty or not UTF-8 text, has a part that can't be converted (see `to_messages`), or
            needs a chat template that the model does not have.
    """

    def __init__(self, prompt: llm.Prompt, conversation: Any, chat: bool) -> None:
        self.schema = cast("dict[str, Any] | None", prompt.schema or _schema_of_chain(prompt, conversation))
        self.chat = chat
        self.messages = to_messages(_with_system(prompt))
        if _is_empty(self.messages):
            raise ValueError("the prompt is empty: type a question after the options, or pipe a text to llm")
        for message in self.messages:
            _check_text(message.text)
        if not chat:
            _check_completion(self.messages)

    def stream(self, model: TextModel, config: GenerateConfig) -> TokenStream:
        return model.chat(self.messages, config) if self.chat else model.generate(self.messages[-1].text, config)

    def astream(self, model: TextModel, config: GenerateConfig) -> AsyncTokenStream:
        return model.achat(self.messages, config) if self.chat else model.agenerate(self.messages[-1].text, config)

    def drop_oldest(self) -> bool:
        """Drop the oldest question and everything up to the next question, except leading system messages.

        Return False, and drop nothing, if only one question is left.
        """
        questions = [index for index, message in enumerate(self.messages) if message.role == "user"]
        if len(questions) < 2:
            return False
        kept = [message for message in self.messages[: questions[0]] if message.role == "system"]
        self.messages = [*kept, *self.messages[questions[1] :]]
        return True


def _is_empty(messages: Sequence[Message]) -> bool:
    """Return whether the prompt has nothing to answer: it has only system messages, or its newest turn is white space.

    White space counts as empty only in a command other than `llm chat`: a program may send it on purpose.
    """
    if all(message.role == "system" for message in messages):
        return True
    if not is_command() or is_chat():
        return False
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    newest = messages[answers[-1] + 1 :] if answers else messages
    newest_prompts = [message for message in newest if message.role != "system"]
    return all(
        message.role == "user" and not message.text.strip() and not message.attachments for message in newest_prompts
    )


def _with_system(prompt: llm.Prompt) -> list[LLMMessage]:
    """Return the messages with the prompt's system text in place of other system messages.

    llm omits this text when it continues a conversation.
    """
    messages = list(prompt.messages)
    system = prompt.system
    if not system or any(_is_system(message, system) for message in messages):
        return messages
    own = LLMMessage(role="system", parts=[TextPart(text=system)])
    messages = [own, *(message for message in messages if message.role != "system")]
    if hasattr(prompt, "_explicit_messages"):  # llm logs these messages, and continues the conversation from them
        prompt._explicit_messages = list(messages)
    return messages


def _is_system(message: LLMMessage, text: str) -> bool:
    return message.role == "system" and any(getattr(part, "text", None) == text for part in message.parts)


def _schema_of_chain(prompt: llm.Prompt, conversation: Any) -> Any:
    """Return the schema of the question that the tool results belong to. llm does not send it with the results.

    None: the prompt has no tool results, or the question has no schema.
    """
    if not prompt.tool_results or conversation is None:
        return None
    for response in reversed(conversation.responses):
        if response.prompt.schema or not response.prompt.tool_results:
            return response.prompt.schema
    return None


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the prompt is not UTF-8 text (at character {error.start + 1}): convert it before, "
            "for example with: iconv -f latin1 -t utf-8"
        ) from None


def _check_completion(messages: Sequence[Message]) -> None:
    what = None
    if any(message.role == "system" for message in messages):
        what = "a system prompt"
    elif any(message.attachments for message in messages):
        what = "an attachment"
    elif len(messages) > 1:
        what = "a conversation"
    if what:
        raise ValueError(
            f"the model has no chat template, so it continues a text and can't be given {what}. "
            "If it is a chat model, set chat_template in the configuration file"
        )
