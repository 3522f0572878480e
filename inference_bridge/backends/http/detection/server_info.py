# SPDX-License-Identifier: Apache-2.0
"""Asks a server for its kind and its capabilities, once for each model that is loaded."""

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
from ..bridge_facts import model_description
from ..facts import DEFAULT_SLOTS, ServerFacts
from ..protocol import infill, ollama_api
from ..protocol.fields import number
from ..scoring.ranking import ranks
from ..servers import SERVERS
from ..transport import transfer
from ..transport.call import Call, body
from ..transport.connection import Connection
from ..transport.errors import MalformedAnswerError
from ..transport.route import Route
from .model_list import listed, server_of
from .probes import probe

QUEUING_SLOTS = 64
"""Number of operations that run at once at first on vLLM and SGLang. They batch continuously, and queue the rest."""

_REFUSALS = (401, 403, 429, 502, 503, 504)
"""Statuses that do not say whether the path exists."""

_OF_REASONING = ("enable_thinking", "reasoning_effort", "thinking", "<think>", "<|channel|>", "<|channel>")
"""The chat template of a model that reasons contains one of these."""


def ask(connection: Connection, model: str | None = None) -> ServerFacts:
    """Ask the server for its kind and its model. While the server loads, wait up to first_token_timeout.

    Args:
        connection: The connection to the server.
        model: The name of the model. None: the server's only one.

    Raises:
        ServerError: The server can't be reached or refuses the request.
        ModelNotFoundError: The server has several models and `model` is None, or Ollama does not have the model.
    """
    request, route = Request("generate", GenerateConfig()), Route(connection)

    def get(path: str) -> Any:
        """Return the JSON at `path`, or None if there is none."""
        try:
            return transfer.fetch(route, request, Call(path, method="GET"), on_server=names.append, retry_refused=False)
        except MalformedAnswerError:
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
    # KoboldCpp and TabbyAPI have a /props of the same form, llama-swap forwards it; they lack the other endpoints.
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
    # llama-server also returns vectors of a reranker, but they are uninitialised memory, with NaN (null) in it.
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
        ModelNotFoundError, ModelLoadError: The server raised this error.
        ServerError: The server can't be reached, refuses the request, or its answer has an unknown form.
    """
    call = Call(bridge_format.PREFIX + "model", body({"model": model}))
    said = model_description(transfer.fetch(route, request, call))
    return ServerFacts(
        server="inference-bridge",
        model=model,
        model_type=said.model_type,
        info=said.info,
        slots=said.parallel,
        slots_known=True,
        capabilities=said.capabilities | {"stats"},  # statistics of the operations of this connection
        options=said.options,
        bridge=said.bridge,
    )


def _of_ollama(connection: Connection, request: Request, model: str | None) -> ServerFacts:
    """Ask Ollama about its model. Raise ModelNotFoundError if it does not have it."""
    if model is None:
        raise ModelNotFoundError(f"{connection.base_url} has no models yet. Run: ollama pull NAME")
    call = Call("/api/show", body({"model": model}))
    try:
        shown = transfer.fetch(Route(connection), request, call, retry_refused=False)
    except ServerError as error:
        if error.status != 404:
            raise
        hint = f"Run: ollama pull {model}"
        raise ModelNotFoundError(f"{connection.base_url} has no model {model!r}. {hint}") from None
    if not isinstance(shown, Mapping):
        raise MalformedAnswerError(connection.base_url + call.path, "its answer is not an object")
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
"""The first version of vLLM that returns the token ids of an answer."""


def _version(answer: Any) -> tuple[int, ...]:
    """Return the version in vLLM's answer, or (0,) if it has none."""
    found = re.match(r"\d+(\.\d+)*", str(answer.get("version") or "")) if isinstance(answer, Mapping) else None
    return tuple(map(int, found[0].split("."))) if found else (0,)


def _slots(facts: ServerFacts, get: Callable[[str], Any]) -> int:
    """Return the number of operations that run at once, from another endpoint. 0: the server does not state it."""
    if facts.server == "llama.cpp":
        slots = get("/slots")
        return len(slots) if isinstance(slots, list) else 0
    if facts.server == "sglang":
        said = get("/get_server_info")
        return number(said, "max_running_requests") if isinstance(said, Mapping) else 0
    return 0


def _takes_media(listing: Mapping[str, Any] | None) -> bool:
    """Return whether /completion takes media. llama-server states it in the part of its list that has Ollama's form."""
    try:
        return "multimodal" in (listing or {})["models"][0]["capabilities"]
    except (LookupError, TypeError):
        return False


def _model(
    connection: Connection, server: str, models: Sequence[Mapping[str, Any]], asked: str | None
) -> tuple[str | None, Mapping[str, Any]]:
    """Return the model name to send, and the entry of that model in the list."""
    by_name = {str(entry.get("id")): entry for entry in models}
    if asked is not None:
        return asked, by_name.get(asked, {})  # some servers accept names that they don't list
    if server == "mlx-lm":
        return None, {}  # it lists all models that it could load; without a name it uses the one it was started with
    if len(by_name) > 1:
        names = list(by_name)
        shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
        raise ModelNotFoundError(f"{connection.base_url} has several models: choose one with model=. They are {shown}")
    return next(iter(by_name.items()), (None, {}))


def _facts(
    server: str, native: bool, api: str, model: str | None, entry: Mapping[str, Any], props: Mapping[str, Any]
) -> ServerFacts:
    kind, said = SERVERS[server], listed(server, entry)
    capabilities = kind.capabilities - (said.reported - said.capabilities) | {"stats"}
    options = kind.options if said.options is None else said.options
    if native:
        capabilities |= {"token_ids"}
    elif server == "llama.cpp":
        options -= {"stop_tokens", "choices"}
    slots, slots_known = DEFAULT_SLOTS, False
    renders, knows_tools, if_asked, by_degree = False, True, True, True
    if server == "llama-cpp-python":
        slots, slots_known = 1, True  # it has one sequence, and aborts an answer when the next request comes
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
            capabilities -= {"tools"}  # the server would leave them out without an error
        modalities = props.get("modalities")
        if isinstance(modalities, Mapping):
            capabilities |= {kind for name, kind in _MODALITIES.items() if modalities.get(name)}
    if "reasoning" not in capabilities:
        options -= {"reasoning_budget"}
    if "json_schema" in capabilities:
        options |= {"schema_in_prompt"}  # this package adds the schema to the messages
    assumed = frozenset() if native else capabilities - kind.known - said.reported - {"chat", "stats", "token_ids"}
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
        assumed=assumed,
    )


def _probed(connection: Connection, request: Request, facts: ServerFacts) -> ServerFacts:
    """Return the facts, with the capabilities that a vLLM server's /tokenize reveals."""

    def post(path: str, fields: Mapping[str, Any]) -> Any:
        content = body({**fields, "model": facts.model} if facts.model else fields)
        try:
            return transfer.fetch(Route(connection), request, Call(path, content), retry_refused=False)
        except GenerationError:
            return None

    found = probe(post)
    if found is None:
        return facts
    return replace(
        facts,
        capabilities=facts.capabilities - {"images", "audios", "reasoning"} | found.capabilities,
        assumed=frozenset(),  # vLLM supports tools and schemas with every model
        reasons_if_asked=found.reasons_if_asked,
        reasons_by_degree=found.reasons_by_degree,
    )


_MODALITIES = {"vision": "images", "audio": "audios"}


def _embeds(connection: Connection, request: Request, facts: ServerFacts) -> int | None:
    """Return the length of the server's vectors, by embedding one letter, because no list of models states it.

    None: it does not support embeddings. 0: its answer contains no valid vectors.
    """
    if facts.server == "mlx-lm":
        return None
    content = body({"input": ["a"]} | ({"model": facts.model} if facts.model else {}))
    try:
        answer = transfer.fetch(Route(connection), request, Call(facts.api + "/embeddings", content))
    except GenerationError:
        return None
    try:
        return len(vectors(answer, 1)[0])
    except ServerError:
        return 0


def _generates(connection: Connection, request: Request) -> bool:
    """Return whether a llama-server with embeddings also generates text, by trying: its list does not state it."""
    content = body({"prompt": "a", "n_predict": 1})
    try:
        transfer.fetch(Route(connection), request, Call("/completion", content), retry_refused=False)
    except ServerError as error:
        return error.status not in (500, 501)
    return True


def _with_infill(connection: Connection, request: Request, facts: ServerFacts) -> ServerFacts:
    named = {"model": facts.model} if facts.model else {}

    def ask(fields: Mapping[str, Any]) -> Any:
        call = Call("/tokenize", body({**fields, **named}))
        return transfer.fetch(Route(connection), request, call, retry_refused=False)

    fill = infill.find(ask)
    return facts if fill is None else replace(facts, fill=fill, capabilities=facts.capabilities | {"infill"})


def _with_embeddings(facts: ServerFacts, length: int) -> ServerFacts:
    info = replace(facts.info, hidden_size=length)
    return replace(facts, info=info, capabilities=facts.capabilities | {"embeddings"})


def vectors(answer: Any, count: int) -> list[list[float]]:
    """Return the vectors in an answer of /embeddings, or of Ollama's /api/embed, in the order of the texts.

    Raises:
        ServerError: It does not have exactly `count` vectors of finite numbers.
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
