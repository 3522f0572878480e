# SPDX-License-Identifier: Apache-2.0
"""Answer from documents: an embedding model finds the document nearest to the question, and a chat model reads it.

python examples/langchain_rag.py llama_cpp:nomic-embed-text-v1.5.Q8_0     or any other embedding model
"""

from __future__ import annotations

import sys

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_inference_bridge import ChatInferenceBridge, InferenceBridgeEmbeddings

if len(sys.argv) < 2:
    sys.exit("Name an embedding model, such as nomic-embed-text-v1.5.Q8_0 (to download it: llm bridge pull embeddings)")
FACTS = ["The library opens at nine.", "Dogs are welcome in the park.", "The pool is closed on Mondays."]

prompt = ChatPromptTemplate.from_messages([("human", "Context: {fact}\nQuestion: {question}")])

with (
    InferenceBridgeEmbeddings(model=sys.argv[1]) as embeddings,
    ChatInferenceBridge(model="llama_cpp:SmolLM2-135M-Instruct.Q4_1", temperature=0, max_tokens=32) as model,
):
    nearest = InMemoryVectorStore.from_texts(FACTS, embeddings).as_retriever(search_kwargs={"k": 1})
    fact = nearest | (lambda documents: documents[0].page_content)
    chain = {"fact": fact, "question": RunnablePassthrough()} | prompt | model | StrOutputParser()
    for answer in chain.batch(["When does the library open?", "Is the pool closed on Mondays?"]):
        print(answer)
