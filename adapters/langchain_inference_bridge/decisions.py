# SPDX-License-Identifier: Apache-2.0
"""A TextModel as LangChain's BaseDecisionModel.

from langchain_core.decisions import Noul
from langchain_inference_bridge import InferenceBridgeDecisions

decisions = InferenceBridgeDecisions(model="llama_cpp:SmolLM2-135M-Instruct.Q4_1")
decisions.invoke({"state": "Help!", "questions": {"urgent": Noul(instructions="Is it urgent?")}})
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage

from inference_bridge import Decision, ServerError, TextModel, UnsupportedError

from .loading import Loading
from .messages import to_messages

try:
    from langchain_core.decisions import BaseDecisionModel, ClassifierResponse, Question, State
except ImportError as error:
    raise ImportError(
        "InferenceBridgeDecisions needs a langchain-core that has langchain_core.decisions: "
        "pip install -U 'langchain-core>=1.8'"
    ) from error


class InferenceBridgeDecisions(Loading, BaseDecisionModel):
    """A decision model on any backend of inference-bridge that gives the probabilities of answers.

    Create it with `model` and any field of LoadConfig, or with `text_model`. It is loaded, shared and released like a
    ChatInferenceBridge. The state may contain messages at any depth. Confidence is `(p - 1/n) / (1 - 1/n)`, where p is
    the probability of the most likely of n options, as in `inference_bridge.decisions`. Errors are those of
    inference_bridge: UnsupportedError for a `Box`, for media, and for a model without probabilities.
    """

    model: str | None = None  # type: ignore[assignment]
    timeout: float | None = None
    """Maximum seconds for one attempt of a call."""

    @property
    def _provider(self) -> str:
        return "inference_bridge"

    def _classify(self, state: State, questions: dict[str, Question]) -> ClassifierResponse:
        model = self.load()
        judged, asked = _state(state), _questions(questions, model)
        attempt = 0
        while True:
            try:
                return self._response(model.decide(judged, asked, timeout=self.timeout), model)
            except ServerError as error:
                time.sleep(self._pause(error, attempt))
            attempt += 1

    async def _aclassify(self, state: State, questions: dict[str, Question]) -> ClassifierResponse:
        model = await self.aload()
        judged, asked = _state(state), _questions(questions, model)
        attempt = 0
        while True:
            try:
                return self._response(await model.adecide(judged, asked, timeout=self.timeout), model)
            except ServerError as error:
                await asyncio.sleep(self._pause(error, attempt))
            attempt += 1

    def _response(self, decision: Decision, model: TextModel) -> ClassifierResponse:
        metrics = decision.metrics
        usage = {
            "input_tokens": metrics.prompt_tokens,
            "output_tokens": 0,
            "input_token_details": {"cache_read": metrics.cached_tokens},
        }
        answers = {name: answer.to_dict() for name, answer in decision.answers.items()}
        return ClassifierResponse.model_validate(
            {"model": self.model or model.model_type, "answers": answers, "usage": usage}
        )


def _state(value: Any) -> Any:
    """Return the state with every LangChain message converted to a `Message`."""
    if isinstance(value, BaseMessage):
        return to_messages([value])[0]
    if isinstance(value, Mapping):
        return {key: _state(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return [_state(item) for item in value]
    return value


def _questions(questions: Mapping[str, Question], model: TextModel) -> dict[str, dict[str, Any]]:
    """Return the questions as JSON objects. Raises UnsupportedError for a Box."""
    asked = {}
    for name, question in questions.items():
        fields = dict(question) if isinstance(question, Mapping) else question.model_dump()
        if fields.get("type") == "box":
            why = "a text model can't find objects in an image"
            raise UnsupportedError(f"question {name!r}, a Box", model.backend or type(model).__name__, why)
        asked[name] = fields
    return asked
