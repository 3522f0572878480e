# SPDX-License-Identifier: Apache-2.0
"""Ask a local model a question, and stream its answer."""

from __future__ import annotations

import sys

from inference_bridge import Message, load_model

question = " ".join(sys.argv[1:]) or "What is the capital of France? Answer in one sentence."

with load_model("llama_cpp:SmolLM2-135M-Instruct.Q4_1") as model:
    stream = model.chat([Message("user", question)], max_tokens=64)
    for token in stream:
        print(token.text, end="", flush=True)
    print(f"\n({stream.metrics.generated_tokens} tokens, ended by {stream.finish_reason!r})")
