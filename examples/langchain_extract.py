# SPDX-License-Identifier: Apache-2.0
"""Extract structured data from many texts at once. Constrained decoding enforces the schema."""

from __future__ import annotations

from typing import Literal

from langchain_core.prompts import ChatPromptTemplate
from pydantic import BaseModel

from langchain_inference_bridge import ChatInferenceBridge


class Person(BaseModel):
    name: str
    city: str
    profession: Literal["baker", "doctor", "teacher"]


TEXTS = ["Maria is a doctor in Rome.", "Kenji bakes bread in Tokyo.", "Anna is a teacher in Berlin."]

prompt = ChatPromptTemplate.from_messages([("human", "{text} Give the name, the city and the profession as JSON.")])

# The schema is always enforced. A larger model also profits from the schema in its prompt; 135M parameters are too few.
with ChatInferenceBridge(
    model="llama_cpp:SmolLM2-135M-Instruct.Q4_1", temperature=0, max_tokens=64, schema_in_prompt=False
) as model:
    chain = prompt | model.with_structured_output(Person)
    for person in chain.batch([{"text": text} for text in TEXTS]):
        print(repr(person))
