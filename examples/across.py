# SPDX-License-Identifier: Apache-2.0
"""Use a model of an llm plugin in a LangChain chain, and then a LangChain model in llm.

python examples/across.py [BASE_URL]     the second part needs the URL of an OpenAI-compatible server, with /v1
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from langchain_inference_bridge import ChatInferenceBridge

prompt = ChatPromptTemplate.from_messages([("human", "What is the capital of {country}? Answer in one sentence.")])
with ChatInferenceBridge(model="llm:SmolLM2") as model:  # after "llm:", any model id of llm
    print((prompt | model | StrOutputParser()).invoke({"country": "France"}))

if len(sys.argv) > 1:
    # With these lines in your own configuration file, `llm -m langchain:far` works too.
    config = Path(tempfile.mkdtemp()) / "config.toml"
    config.write_text(f'[models.far]\nsource = "langchain:openai:gpt"\nextra = {{ base_url = "{sys.argv[1]}" }}\n')
    os.environ |= {"INFERENCE_BRIDGE_CONFIG": str(config), "OPENAI_API_KEY": os.environ.get("OPENAI_API_KEY", "none")}
    import llm

    for text in llm.get_model("langchain:far").prompt("What is the capital of Japan? Answer in one sentence."):
        print(text, end="", flush=True)
    print()
