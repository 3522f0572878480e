# SPDX-License-Identifier: Apache-2.0
"""Continue many prompts in one batch. If one prompt fails, the others are still answered."""

from __future__ import annotations

from inference_bridge import load_model

COUNTRIES = ["France", "Italy", "Japan", "Egypt", "Peru"]

with load_model("llama_cpp:SmolLM2-135M-Instruct.Q4_1") as model:
    prompts = [f"The capital of {country} is the city of" for country in COUNTRIES]
    for country, result in zip(COUNTRIES, model.batch_generate(prompts, max_tokens=8, stop=[".", ","]), strict=True):
        print(f"{country}: {result.error or result.text.strip()}")
