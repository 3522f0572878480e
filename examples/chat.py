# SPDX-License-Identifier: Apache-2.0
"""Chat with a local model in the terminal. Answers are streamed, and Ctrl-C ends an answer."""

from __future__ import annotations

import sys
from contextlib import suppress

from inference_bridge import Message, load_model

messages: list[Message] = []
with load_model(sys.argv[1] if len(sys.argv) > 1 else "SmolLM2-135M-Instruct.Q4_1") as model, suppress(EOFError):
    while question := input("\n> ").strip():
        messages.append(Message("user", question))
        stream = model.chat(messages, max_tokens=512)
        with stream, suppress(KeyboardInterrupt):
            for token in stream:
                print(token.text, end="", flush=True)
        answer = stream.result()
        # The reasoning is kept apart from the text, because most chat templates omit the reasoning of earlier turns.
        messages.append(Message("assistant", answer.text, reasoning=answer.reasoning or None))
