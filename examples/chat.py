# SPDX-License-Identifier: Apache-2.0
"""Chat with a local model in the terminal. Answers are streamed, and Ctrl-C ends an answer."""

from __future__ import annotations

import sys
from contextlib import suppress

from inference_bridge import Message, load_model

messages: list[Message] = []
with load_model(sys.argv[1] if len(sys.argv) > 1 else "SmolLM2-135M-Instruct.Q4_1") as model, suppress(EOFError):
    while question := input("\n> ").strip():
        answer = ""
        stream = model.chat([*messages, Message("user", question)], max_tokens=512)
        with stream, suppress(KeyboardInterrupt):
            for token in stream:
                answer += token.text
                print(token.text, end="", flush=True)
        messages += [Message("user", question), Message("assistant", answer)]
