# SPDX-License-Identifier: Apache-2.0
"""Hold a conversation with a local model through llm's Python API, as with any other model."""

from __future__ import annotations

import llm

conversation = llm.get_model("llama_cpp:SmolLM2-135M-Instruct.Q4_1").conversation()
for question in ("What is the capital of France? Answer in one sentence.", "What is it famous for?"):
    print(f"> {question}")
    response = conversation.prompt(question, max_tokens=48, temperature=0)
    for chunk in response:
        print(chunk, end="", flush=True)
    print(f"\n({response.token_usage()})")
