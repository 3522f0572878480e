# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI description of the server: every route, and the fields that its body may have.

Source: https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "minLength": 1}
WHOLE: Schema = {"type": "integer"}
FLAG: Schema = {"type": "boolean"}
ANY_OBJECT: Schema = {"type": "object"}
COUNT: Schema = {"type": "integer", "minimum": 1}


def _array(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _object(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def _one_of(*values: str) -> Schema:
    return {"enum": list(values)}


_SAMPLING: dict[str, Schema] = {
    "temperature": {"type": "number", "minimum": 0, "maximum": 1e6},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "top_k": {"type": "integer", "minimum": 0},
    "min_p": {"type": "number", "minimum": 0, "maximum": 1},
}
_SEED: dict[str, Schema] = {"seed": {"type": "integer", "minimum": 0}}
_PENALTIES: dict[str, Schema] = {
    "presence_penalty": {"type": "number", "minimum": -1e6, "maximum": 1e6},
    "frequency_penalty": {"type": "number", "minimum": -1e6, "maximum": 1e6},
    "repeat_penalty": {"type": "number", "minimum": 0, "maximum": 1e6},
}
_COMMON: dict[str, Schema] = {
    "model": TEXT,
    **_SAMPLING,
    **_SEED,
    **_PENALTIES,
    "max_tokens": COUNT,
    "stop": _either(TEXT, _array(TEXT)),
    "n": {"type": "integer", "minimum": 1, "maximum": 16},
    "stream": FLAG,
    "stream_options": _object(include_usage=FLAG, include_obfuscation=FLAG),
    "user": TEXT,
}
_FUNCTION = {"name": NAME, "description": TEXT, "parameters": ANY_OBJECT, "strict": FLAG}
_CALL = _object(
    ("function",), id=TEXT, type=_one_of("function"), function=_object(("name",), name=TEXT, arguments=TEXT)
)
_CHAT_PART = _either(
    _object(("type", "text"), type=_one_of("text"), text=TEXT),
    _object(("type", "image_url"), type=_one_of("image_url"), image_url=_object(("url",), url=TEXT)),
    _object(
        ("type", "input_audio"), type=_one_of("input_audio"), input_audio=_object(("data",), data=TEXT, format=TEXT)
    ),
)
_CHAT = _object(
    ("model", "messages"),
    **_COMMON,
    messages=_array(
        _object(
            ("role",),
            role=_one_of("system", "developer", "user", "assistant", "tool"),
            content=_either(TEXT, _array(_CHAT_PART)),
            reasoning_content=TEXT,
            tool_calls=_array(_CALL),
            tool_call_id=TEXT,
            name=TEXT,
        ),
        minItems=1,
    ),
    max_completion_tokens=COUNT,
    logprobs=FLAG,
    top_logprobs={"type": "integer", "minimum": 0, "maximum": 20},
    tools=_array(_object(("type", "function"), type=_one_of("function"), function=_object(("name",), **_FUNCTION))),
    tool_choice=_either(
        _one_of("none", "auto", "required"),
        _object(("type", "function"), type=_one_of("function"), function=_object(("name",), name=TEXT)),
    ),
    parallel_tool_calls=FLAG,
    response_format=_either(
        _object(("type",), type=_one_of("text", "json_object")),
        _object(
            ("type", "json_schema"),
            type=_one_of("json_schema"),
            json_schema=_object(("schema",), name=TEXT, description=TEXT, schema=ANY_OBJECT, strict=FLAG),
        ),
    ),
    reasoning_effort=_one_of("none", "minimal", "low", "medium", "high"),
    chat_template_kwargs=ANY_OBJECT,
)
_COMPLETION = _object(
    ("model", "prompt"),
    **_COMMON,
    prompt=_either(TEXT, _array(TEXT, minItems=1)),
    logprobs={"type": "integer", "minimum": 0, "maximum": 20},
)
_EMBEDDING = _object(
    ("model", "input"),
    model=TEXT,
    input=_either(TEXT, _array(TEXT, minItems=1)),
    encoding_format=_one_of("float", "base64"),
)

_HINTS = {"cache_control": ANY_OBJECT}
_BLOCK_TEXT = _object(("type", "text"), type=_one_of("text"), text=TEXT, **_HINTS)
_BLOCK_IMAGE = _object(
    ("type", "source"),
    type=_one_of("image"),
    source=_object(("type", "media_type", "data"), type=_one_of("base64"), media_type=TEXT, data=TEXT),
    **_HINTS,
)
_BLOCKS = _either(
    _BLOCK_TEXT,
    _BLOCK_IMAGE,
    _object(
        ("type", "source"),
        type=_one_of("document"),
        source=_object(("type", "data"), type=_one_of("text"), media_type=TEXT, data=TEXT),
        title=TEXT,
        context=TEXT,
    ),
    _object(("type", "thinking"), type=_one_of("thinking"), thinking=TEXT, signature=TEXT),
    _object(("type", "id", "name", "input"), type=_one_of("tool_use"), id=TEXT, name=TEXT, input=ANY_OBJECT),
    _object(
        ("type", "tool_use_id"),
        type=_one_of("tool_result"),
        tool_use_id=TEXT,
        content=_either(TEXT, _array(_either(_BLOCK_TEXT, _BLOCK_IMAGE))),
        is_error=FLAG,
    ),
)
_COUNTED: dict[str, Schema] = {
    "model": TEXT,
    "system": _either(TEXT, _array(_BLOCK_TEXT)),
    "messages": _array(
        _object(
            ("role", "content"),
            role=_one_of("user", "assistant", "system"),
            content=_either(TEXT, _array(_BLOCKS)),
        ),
        minItems=1,
    ),
    "tools": _array(
        _object(("name", "input_schema"), type=_one_of("custom"), name=NAME, description=TEXT, input_schema=ANY_OBJECT)
    ),
    "tool_choice": _object(
        ("type",), type=_one_of("auto", "any", "tool", "none"), name=TEXT, disable_parallel_tool_use=FLAG
    ),
    "thinking": _object(
        ("type",),
        type=_one_of("enabled", "adaptive", "disabled"),
        budget_tokens=WHOLE,
        display=_one_of("summarized", "omitted"),
    ),
    "output_config": _object(
        effort=_one_of("low", "medium", "high", "xhigh", "max"),
        format=_object(("type", "schema"), type=_one_of("json_schema"), schema=ANY_OBJECT),
    ),
}
_MESSAGES = _object(
    ("model", "messages", "max_tokens"),
    **_COUNTED,
    max_tokens=COUNT,
    temperature=_SAMPLING["temperature"],
    top_p=_SAMPLING["top_p"],
    top_k=_SAMPLING["top_k"],
    stop_sequences=_array({"type": "string", "pattern": r"\S"}),
    stream=FLAG,
    metadata=ANY_OBJECT,
)
_COUNT = _object(("model", "messages"), **_COUNTED)

_INPUT_PART = _either(
    _object(("type", "text"), type=_one_of("input_text", "output_text"), text=TEXT),
    _object(("type", "image_url"), type=_one_of("input_image"), image_url=TEXT, detail=TEXT),
)
_INPUT_TEXT = _either(TEXT, _array(_INPUT_PART))


def _items(content: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """Return the schemas of the items that OpenAI's newer APIs take as input: messages, calls and their outputs.

    Args:
        content: The schema of a message's content, and of a call's output.
    """
    return (
        _object(
            ("role", "content"),
            type=_one_of("message"),
            role=_one_of("user", "assistant", "system", "developer"),
            content=content,
        ),
        _object(
            ("type", "call_id", "name", "arguments"),
            type=_one_of("function_call"),
            call_id=TEXT,
            name=TEXT,
            arguments=TEXT,
        ),
        _object(
            ("type", "call_id", "output"),
            type=_one_of("function_call_output"),
            call_id=TEXT,
            output=content,
        ),
    )


_RESPONSE = _object(
    ("model",),
    model=TEXT,
    **_SAMPLING,
    **_SEED,
    input=_either(
        TEXT,
        _array(
            _either(
                *_items(_INPUT_TEXT),
                _object(
                    ("type",),
                    type=_one_of("reasoning"),
                    summary=_array(_object(("type", "text"), type=_one_of("summary_text"), text=TEXT)),
                    content=_array(_object(("type", "text"), type=_one_of("reasoning_text"), text=TEXT)),
                ),
            )
        ),
    ),
    instructions=TEXT,
    previous_response_id=TEXT,
    max_output_tokens=COUNT,
    top_logprobs={"type": "integer", "minimum": 0, "maximum": 20},
    include=_array(_one_of("reasoning.encrypted_content", "message.output_text.logprobs")),
    reasoning=_object(effort=_one_of("none", "minimal", "low", "medium", "high"), summary=TEXT),
    text=_object(
        verbosity=_one_of("medium"),
        format=_either(
            _object(("type",), type=_one_of("text", "json_object")),
            _object(("type", "schema"), type=_one_of("json_schema"), name=TEXT, schema=ANY_OBJECT, strict=FLAG),
        ),
    ),
    tools=_array(_object(("type", "name"), type=_one_of("function"), **_FUNCTION)),
    tool_choice=_either(
        _one_of("none", "auto", "required"), _object(("type", "name"), type=_one_of("function"), name=TEXT)
    ),
    parallel_tool_calls=FLAG,
    stream=FLAG,
    store=FLAG,
    metadata={"type": "object", "additionalProperties": TEXT},
    chat_template_kwargs=ANY_OBJECT,
)
_TOKENIZE = _either(
    _object(("content",), model=TEXT, content=TEXT, add_special=FLAG, parse_special=FLAG, with_pieces=FLAG),
    _object(("prompt",), model=TEXT, prompt=TEXT, add_special_tokens=FLAG, return_token_strs=FLAG),
)
_DETOKENIZE = _object(("tokens",), model=TEXT, tokens=_array({"type": "integer", "minimum": 0}))
_RERANK = _object(
    ("model", "query", "documents"),
    model=TEXT,
    query=TEXT,
    documents=_array(_either(TEXT, _object(("text",), text=TEXT)), minItems=1),
    top_n=COUNT,
    return_documents=FLAG,
)
_MEANING = _either(TEXT, ANY_OBJECT, _array({}))
_SYSTEM_ONE = _object(
    ("state", "questions"),
    model=TEXT,
    state=_MEANING,
    questions={
        "type": "object",
        "minProperties": 1,
        "propertyNames": NAME,
        "additionalProperties": _either(
            _object(
                ("type", "instructions"),
                type=_one_of("noul"),
                instructions=_MEANING,
                criteria=_object((), true=_MEANING, false=_MEANING),
            ),
            _object(
                ("type", "criteria"),
                type=_one_of("choice"),
                instructions=_MEANING,
                criteria={"type": "object", "minProperties": 1},
            ),
            _object(
                ("type", "criteria"),
                type=_one_of("score"),
                instructions=_MEANING,
                criteria=_array(_MEANING, minItems=2),
            ),
        ),
    },
) | {"additionalProperties": True}
_DECISION_PART = _either(
    _object(("type", "text"), type=_one_of("input_text"), text=TEXT),
    _object(("type", "data"), type=_one_of("input_json"), data=_either(ANY_OBJECT, _array(ANY_OBJECT))),
)
_DECISION_TEXT = _either(TEXT, _array(_DECISION_PART, minItems=1))
_DECISION = _object(
    ("model", "input", "questions"),
    model=TEXT,
    input=_either(
        TEXT,
        _array(
            _either(
                *_items(_DECISION_TEXT),
            ),
            minItems=1,
        ),
    ),
    questions=_array(
        _either(
            _object(("type", "instructions"), type=_one_of("predicate"), name=TEXT, instructions=_DECISION_TEXT),
            _object(
                ("type", "instructions", "choices"),
                type=_one_of("choice"),
                name=TEXT,
                instructions=_DECISION_TEXT,
                choices=_array(_object(("value",), value=_either(NAME, FLAG), description=TEXT), minItems=1),
            ),
            _object(
                ("type", "instructions", "levels"),
                type=_one_of("score"),
                name=TEXT,
                instructions=_DECISION_TEXT,
                levels=_array(_object(("label",), label=TEXT, description=TEXT), minItems=2),
            ),
        ),
        minItems=1,
        maxItems=400,
    ),
)

BODIES: dict[str, tuple[str, Schema]] = {
    "/v1/chat/completions": ("OpenAI's chat completions", _CHAT),
    "/v1/completions": ("OpenAI's completions of raw prompts", _COMPLETION),
    "/v1/embeddings": ("OpenAI's embeddings", _EMBEDDING),
    "/v1/responses": ("OpenAI's responses", _RESPONSE),
    "/v1/messages": ("Anthropic's messages", _MESSAGES),
    "/v1/messages/count_tokens": ("Anthropic's count of a conversation's tokens", _COUNT),
    "/v1/rerank": ("Documents ranked by a query, as at Jina and Cohere", _RERANK),
    "/v1/systemone": ("Typed questions, in the System One API", _SYSTEM_ONE),
    "/v1/decisions": ("Typed questions, in OpenAI's API", _DECISION),
    "/tokenize": ("The token ids of a text", _TOKENIZE),
    "/detokenize": ("The text of token ids", _DETOKENIZE),
}
"""Path to summary and body of each route that takes a body."""

_READ: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "/health": ("get", "Whether the server runs", ()),
    "/metrics": ("get", "Prometheus statistics of loaded models", ()),
    "/openapi.json": ("get", "This description", ()),
    "/v1/models": ("get", "The models that clients may ask for", ()),
    "/v1/models/{name}": ("get", "One model", ("name",)),
    "/v1/responses/{id}": ("get", "A response that is kept", ("id",)),
}


def description(version: str, needs_key: bool) -> dict[str, Any]:
    """Return the OpenAPI description.

    Args:
        version: The version of this package.
        needs_key: Whether clients send an API key.
    """
    responses = {"200": {"description": "The answer"}, "default": {"description": "An error"}}
    paths: dict[str, Any] = {}
    for path, (summary, body) in BODIES.items():
        content = {"application/json": {"schema": body}}
        paths[path] = {
            "post": {"summary": summary, "requestBody": {"required": True, "content": content}, "responses": responses}
        }
    for path, (method, summary, names) in _READ.items():
        parameters = [{"name": name, "in": "path", "required": True, "schema": TEXT} for name in names]
        paths[path] = {method: {"summary": summary, "parameters": parameters, "responses": responses}}
    kept = paths["/v1/responses/{id}"]
    kept["delete"] = kept["get"] | {"summary": "Forget a response"}
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "inference-bridge", "version": version},
        "paths": paths,
    }
    if needs_key:
        described["components"] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
        described["security"] = [{"key": []}]
    return described
