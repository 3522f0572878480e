# SPDX-License-Identifier: Apache-2.0
"""What a server is and can do, as it says itself: asked once a model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from ....errors import GenerationError, ModelNotFoundError, ServerError
from ....options import GenerateConfig
from ....request import Request
from ....types import ModelInfo
from .. import bridge_format
from ..bridge_facts import told
from ..facts import DEFAULT_SLOTS, ServerFacts
from ..protocol import infill, ollama_api
from ..protocol.fields import number
from ..scoring.ranking import ranks
from ..servers import SERVERS
from ..transport import transfer
from ..transport.connection import Connection
from ..transport.errors import NonsenseError
from ..transport.route import Route
from ..transport.transfer import Call
from .model_list import listed, server_of
from .probes import probe

QUEUING_SLOTS = 64
"""Operations in flight at first on vLLM and SGLang: they batch continuously, and queue what is more than they run."""

_REFUSALS = (401, 403, 429, 502, 503, 504)
"""Answers that say nothing about what there is."""

_OF_REASONING = ("enable_thinking", "reasoning_effort", "thinking", "<think>", "<|channel|>", "<|channel>")
"""One of these stands in the chat template of a model that reasons."""


def ask(connection: Connection, model: str | None = None) -> ServerFacts:
    """Ask the server what it is and which model it has.

    Raises ServerError where it can't be reached or refuses, ModelNotFoundError where it has several
    models and none was named; waits while it loads, as long as the connection's first_token_timeout.
    """
    request, route = Request("generate", GenerateConfig()), Route(connection)

    def get(path: str) -> Any:
        """Return the JSON at `path`, or None if there is none."""
        try:
            return transfer.fetch(route, request, Call(path, method="GET"), met=names.append, patient=False)
        except NonsenseError:
            return None  # an HTML page, for example
        except ServerError as error:
            if error.status is None or error.status in _REFUSALS or 300 <= error.status < 400:
                raise
            missing.append(error)
            return None

    missing: list[ServerError] = []
    names: list[str] = []
    props = get("/props" + (f"?model={quote(model, safe='')}" if model else ""))
    native = isinstance(props, Mapping) and isinstance(props.get("default_generation_settings"), Mapping)
    api, listing = "/v1", None
    for path in ("/v1", ""):
        found = get(path + "/models")
        if isinstance(found, Mapping) and isinstance(found.get("data", 0), list | None):
            api, listing = path, found
            break
    if not native and len(missing) == 3:
        raise missing[1]
    models = [entry for entry in (listing or {}).get("data") or () if isinstance(entry, Mapping)]
    server = server_of(models, names)
    # KoboldCpp and TabbyAPI have a /props of the same form, llama-swap hands it on: none has the other endpoints.
    native = native and server in ("", "llama.cpp")
    server = "llama.cpp" if native else server
    chosen, entry = _model(connection, server, models, model)
    if chosen is not None and any(one.get("bridge_protocol") == bridge_format.PROTOCOL for one in models):
        return bridge_facts(Route(connection), request, chosen)
    facts = _facts(server, native, api, chosen, entry, props if native else {})
    facts = replace(facts, takes_media=native and _takes_media(listing))
    if not facts.slots_known:
        slots = _slots(facts, get)
        facts = replace(facts, slots=slots or facts.slots, slots_known=slots > 0)
    if not server and isinstance(found := get("/api/version"), Mapping) and "version" in found:
        return _of_ollama(connection, request, chosen)
    if server == "vllm":
        facts = _probed(connection, request, facts)
        if _version(get("/version")) >= _WITH_IDS:
            facts = replace(facts, capabilities=facts.capabilities | {"token_ids"})
    if "reasoning" not in facts.capabilities:
        facts = replace(facts, options=facts.options - {"reasoning_budget"})
    if native:
        facts = _with_infill(connection, request, facts)
    embedding = _embeds(connection, request, facts)
    # llama-server gives vectors of a reranker too, which mean nothing: memory that nobody wrote, NaN (null) among it.
    if (facts.native if embedding is not None else facts.server == "vllm") and ranks(connection, request, facts):
        return replace(facts, capabilities=frozenset({"rerank", "stats"}))
    if not embedding:
        return facts
    if facts.native and not _generates(connection, request):
        facts = replace(facts, capabilities=frozenset({"stats"}))
    return _with_embeddings(facts, embedding)


def bridge_facts(route: Route, request: Request, model: str) -> ServerFacts:
    """Ask this package's own server for a model, which it loads if it is not loaded.

    Raises:
        ModelNotFoundError, ModelLoadError: As the server raises them.
        ServerError: The server can't be reached, refuses, or gives an unknown answer.
    """
    call = Call(bridge_format.PREFIX + "model", transfer.body({"model": model}))
    said = told(transfer.fetch(route, request, call))
    return ServerFacts(
        server="inference-bridge",
        model=model,
        model_type=said.model_type,
        info=said.info,
        slots=said.parallel,
        slots_known=True,
        capabilities=said.capabilities | {"stats"},  # which are of the operations through this connection
        options=said.options,
        bridge=said.bridge,
    )


def _of_ollama(connection: Connection, request: Request, model: str | None) -> ServerFacts:
    """Ask Ollama about its model. Raise ModelNotFoundError if it does not have it."""
    if model is None:
        raise ModelNotFoundError(f"{connection.base_url} has no models yet. Run: ollama pull NAME")
    call = Call("/api/show", transfer.body({"model": model}))
    try:
        shown = transfer.fetch(Route(connection), request, call, patient=False)
    except ServerError as error:
        if error.status != 404:
            raise
        hint = f"Run: ollama pull {model}"
        raise ModelNotFoundError(f"{connection.base_url} has no model {model!r}. {hint}") from None
    if not isinstance(shown, Mapping):
        raise NonsenseError(connection.base_url + call.path, "its answer is not an object")
    info = ollama_api.info(shown)
    return ServerFacts(
        server="ollama",
        model=model,
        model_type=info.architecture or "unknown",
        info=info,
        capabilities=ollama_api.capabilities(shown) | {"stats"},
        options=SERVERS["ollama"].options | {"schema_in_prompt"},
        reasons_if_asked=info.architecture not in _ALWAYS_REASONS,
    )


_ALWAYS_REASONS = ("gptoss", "gpt-oss")
"""Architectures whose reasoning Ollama does not switch off: it ignores `think: false` (docs/capabilities/thinking)."""

_WITH_IDS = (0, 10, 2)
"""The first version of vLLM that gives the ids of the tokens of an answer."""


def _version(answer: Any) -> tuple[int, ...]:
    """Return the version in vLLM's answer, or (0,) if it has none."""
    found = re.match(r"\d+(\.\d+)*", str(answer.get("version") or "")) if isinstance(answer, Mapping) else None
    return tuple(map(int, found[0].split("."))) if found else (0,)


def _slots(facts: ServerFacts, get: Callable[[str], Any]) -> int:
    """The number of operations that the server says elsewhere to run at once; 0 where it does not."""
    if facts.server == "llama.cpp":
        slots = get("/slots")
        return len(slots) if isinstance(slots, list) else 0
    if facts.server == "sglang":
        said = get("/get_server_info")
        return number(said, "max_running_requests") if isinstance(said, Mapping) else 0
    return 0


def _takes_media(listing: Mapping[str, Any] | None) -> bool:
    """llama-server says so in the part of its list that is as Ollama's, since its /completion does."""
    try:
        return "multimodal" in (listing or {})["models"][0]["capabilities"]
    except (LookupError, TypeError):
        return False


def _model(
    connection: Connection, server: str, models: Sequence[Mapping[str, Any]], asked: str | None
) -> tuple[str | None, Mapping[str, Any]]:
    """The name to send, and what the list says of that model."""
    by_name = {str(entry.get("id")): entry for entry in models}
    if asked is not None:
        return asked, by_name.get(asked, {})  # some servers take names they don't list
    if server == "mlx-lm":
        return None, {}  # it lists all it could load; unnamed is the one it was started with
    if len(by_name) > 1:
        names = list(by_name)
        shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
        raise ModelNotFoundError(f"{connection.base_url} has several models: choose one with model=. They are {shown}")
    return next(iter(by_name.items()), (None, {}))


def _facts(
    server: str, native: bool, api: str, model: str | None, entry: Mapping[str, Any], props: Mapping[str, Any]
) -> ServerFacts:
    kind, said = SERVERS[server], listed(server, entry)
    capabilities = kind.capabilities - (said.asked - said.capabilities) | {"stats"}
    options = kind.options if said.options is None else said.options
    if native:
        capabilities |= {"token_ids"}
    elif server == "llama.cpp":
        options -= {"stop_tokens", "choices"}
    slots, slots_known = DEFAULT_SLOTS, False
    renders, knows_tools, if_asked, by_degree = False, True, True, True
    if server == "llama-cpp-python":
        slots, slots_known = 1, True  # it has one sequence, and drops an answer when the next request comes
    if server in ("vllm", "sglang", "tgi"):
        slots = QUEUING_SLOTS
    if said.slots:
        slots, slots_known = said.slots, True
    settings = props.get("default_generation_settings") or {}
    meta = entry.get("meta") if isinstance(entry.get("meta"), Mapping) else {}
    assert isinstance(meta, Mapping)
    if native:
        slots_known = number(props, "total_slots") > 0
        slots = number(props, "total_slots") or slots
        template = str(props.get("chat_template") or "")
        reasons = any(word in template for word in _OF_REASONING)
        renders = bool(template) and not reasons
        caps = props.get("chat_template_caps")
        if isinstance(caps, Mapping):
            knows_tools = bool(caps.get("supports_tools", True)) and bool(caps.get("supports_tool_calls", True))
        else:
            knows_tools = "tools" in template
        if reasons:
            capabilities |= {"reasoning"}
        by_degree = "reasoning_effort" in template
        if_asked = "enable_thinking" in template or re.search(r"\bthinking\b", template) is not None
        if not renders and not knows_tools:
            capabilities -= {"tools"}  # the server would leave them out without a word
        modalities = props.get("modalities")
        if isinstance(modalities, Mapping):
            capabilities |= {kind for name, kind in _MODALITIES.items() if modalities.get(name)}
    if "reasoning" not in capabilities:
        options -= {"reasoning_budget"}
    if "json_schema" in capabilities:
        options |= {"schema_in_prompt"}  # it is put into the messages here
    info = ModelInfo(
        architecture=str(meta.get("architecture") or meta.get("arch") or ""),
        vocab_size=number(meta, "n_vocab"),
        hidden_size=number(meta, "n_embd"),
        context_length=number(settings, "n_ctx") or said.context or number(meta, "n_ctx_train"),
    )
    return ServerFacts(
        server=server,
        native=native,
        api=api,
        model=model,
        model_type=info.architecture or "unknown",
        info=info,
        slots=slots,
        slots_known=slots_known,
        capabilities=capabilities,
        options=options,
        renders=renders,
        knows_tools=knows_tools,
        reasons_if_asked=if_asked,
        reasons_by_degree=by_degree,
        assumed=capabilities - kind.known - said.asked - {"chat", "stats", "token_ids"} if not native else frozenset(),
    )


def _probed(connection: Connection, request: Request, facts: ServerFacts) -> ServerFacts:
    """The facts, with what a vLLM server's /tokenize tells of the model."""

    def post(path: str, fields: Mapping[str, Any]) -> Any:
        content = transfer.body({**fields, "model": facts.model} if facts.model else fields)
        try:
            return transfer.fetch(Route(connection), request, Call(path, content), patient=False)
        except GenerationError:
            return None

    found = probe(post)
    if found is None:
        return facts
    return replace(
        facts,
        capabilities=facts.capabilities - {"images", "audios", "reasoning"} | found.capabilities,
        assumed=frozenset(),  # tools and schemas are vLLM's own, whatever the model
        reasons_if_asked=found.reasons_if_asked,
        reasons_by_degree=found.reasons_by_degree,
    )


_MODALITIES = {"vision": "images", "audio": "audios"}


def _embeds(connection: Connection, request: Request, facts: ServerFacts) -> int | None:
    """The length of the server's vectors: no list says so, so it is tried with one letter.

    None: it makes none. 0: it answers, and not with vectors.
    """
    if facts.server == "mlx-lm":
        return None
    content = transfer.body({"input": ["a"]} | ({"model": facts.model} if facts.model else {}))
    try:
        answer = transfer.fetch(Route(connection), request, Call(facts.api + "/embeddings", content))
    except GenerationError:
        return None
    try:
        return len(vectors(answer, 1)[0])
    except ServerError:
        return 0


def _generates(connection: Connection, request: Request) -> bool:
    """Whether a llama-server that makes embeddings generates too. Its list of models does not say so: it is tried."""
    content = transfer.body({"prompt": "a", "n_predict": 1})
    try:
        transfer.fetch(Route(connection), request, Call("/completion", content), patient=False)
    except ServerError as error:
        return error.status not in (500, 501)
    return True


def _with_infill(connection: Connection, request: Request, facts: ServerFacts) -> ServerFacts:
    named = {"model": facts.model} if facts.model else {}

    def ask(fields: Mapping[str, Any]) -> Any:
        call = Call("/tokenize", transfer.body({**fields, **named}))
        return transfer.fetch(Route(connection), request, call, patient=False)

    fill = infill.find(ask)
    return facts if fill is None else replace(facts, fill=fill, capabilities=facts.capabilities | {"infill"})


def _with_embeddings(facts: ServerFacts, length: int) -> ServerFacts:
    info = replace(facts.info, hidden_size=length)
    return replace(facts, info=info, capabilities=facts.capabilities | {"embeddings"})


def vectors(answer: Any, count: int) -> list[list[float]]:
    """The vectors in an answer of /embeddings, or of Ollama's /api/embed, in the texts' order.

    Raises ServerError where it has others.
    """
    if isinstance(answer, Mapping) and isinstance(listed := answer.get("embeddings"), list):
        answer = {"data": [{"index": index, "embedding": one} for index, one in enumerate(listed)]}
    try:
        entries = sorted(answer["data"], key=lambda entry: entry["index"])
        out = [[float(value) for value in entry["embedding"]] for entry in entries]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ServerError("the server's answer has no embeddings in it") from None
    if len(out) != count or not all(out):
        raise ServerError(f"the server gave {len(out)} embeddings for {count} texts")
    if not all(map(math.isfinite, map(sum, out))):
        raise ServerError("the server gave embeddings with values that are not numbers (NaN, or infinite)")
    return out
