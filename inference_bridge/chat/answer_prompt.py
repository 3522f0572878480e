# SPDX-License-Identifier: Apache-2.0
"""A prompt after which the model's next token is the first token of its answer."""

from __future__ import annotations

from ..decisions.deciding import Deciding
from ..errors import UnsupportedError
from ..types import Message
from .formats import THINKING
from .templates.template import ChatTemplate, ChatTemplateError

_OPENS = tuple(tags.opens for tags in THINKING)


def answer_prompt(template: ChatTemplate, text: str, work: Deciding) -> str:
    """Render a conversation of one user message, so that the model's next token begins the answer.

    Reasoning is switched off if the template can do that.

    Args:
        template: The model's chat template.
        text: The user's message.
        work: The call of `decide` that needs the prompt: its options, timeout and backend are used.

    Returns:
        The prompt.

    Raises:
        UnsupportedError: The model reasons, or writes a header, before it answers.
        ChatTemplateError: The template refuses the message.
        GenerationTimeoutError: The call's time is over.
    """
    off = False if template.reasons and template.reasoning_toggle else None
    try:
        rendered = template.render(
            [Message("user", text)],
            reasoning=off,
            options=work.config.template_options or {},
            timeout=work.remaining(),
        )
    except ChatTemplateError:
        work.check_time()
        raise
    # Tags around every answer; other tags are written only after reasoning.
    around = [tags.opens for tags in rendered.format.answer if tags.anywhere and tags.closes]
    begun = not around or any(rendered.text.rstrip().endswith(opens) for opens in around)
    in_reasoning = rendered.in_reasoning or rendered.text.rstrip().endswith(_OPENS)
    may_reason = template.reasons and off is None and not rendered.in_answer
    why = ""
    if rendered.format.harmony or rendered.format.output or (not begun and len(around) > 1):
        why = "the model writes a header before its answer"
    elif in_reasoning or may_reason:
        why = "the model reasons before it answers, and its chat template can't switch reasoning off"
    if why:
        raise UnsupportedError("decide", work.backend, why)
    return rendered.text if begun else rendered.text + around[0]
