# SPDX-License-Identifier: Apache-2.0
"""A chain in LangChain: a prompt, a local model and a parser, streamed and over a batch."""

from __future__ import annotations

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from langchain_inference_bridge import ChatInferenceBridge

prompt = ChatPromptTemplate.from_messages([("human", "What is the capital of {country}? Answer in one sentence.")])

with ChatInferenceBridge(model="llama_cpp:SmolLM2-135M-Instruct.Q4_1", temperature=0, max_tokens=32) as model:
    chain = prompt | model | StrOutputParser()
    for text in chain.stream({"country": "France"}):
        print(text, end="", flush=True)
    print()
    for answer in chain.batch([{"country": country} for country in ("Italy", "Japan", "Egypt")]):
        print(answer)
