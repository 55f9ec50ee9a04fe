"""Endpoints: which paths of the two vendors are served, and whose shape an answer must have.

One rule: a path decides, the query goes along untouched; where both vendors share a path, the headers decide. What is
not known here and may be a provider's passes through, and is metered as what it cannot be read for: nothing where it
spends nothing, else unknown. It reads no body and knows no account.
"""

from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import unquote

from headgate.core.usage import Dialect
from headgate.ports import Headers

__all__ = ["ENDPOINT_NAMES", "Endpoint", "EndpointName", "dialect_of", "endpoint_of"]

EndpointName = Literal[
    "messages", "count_tokens", "chat", "completions", "responses", "embeddings", "models",
    "message_batches", "batches", "files", "stored_responses", "other",
]  # fmt: skip

ENDPOINT_NAMES: tuple[str, ...] = get_args(EndpointName)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One call that a provider offers; a metered one spends tokens.

    One that `passes` is whatever it is, with any method: its body is not read and its answer tells nothing.
    """

    name: EndpointName
    dialect: Dialect
    method: str
    path: str
    metered: bool = True
    passes: bool = False


_ENDPOINTS = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint("messages", "anthropic", "POST", "/v1/messages"),
        Endpoint("count_tokens", "anthropic", "POST", "/v1/messages/count_tokens", metered=False),
        Endpoint("chat", "openai", "POST", "/v1/chat/completions"),
        Endpoint("completions", "openai", "POST", "/v1/completions"),
        Endpoint("responses", "openai", "POST", "/v1/responses"),
        Endpoint("embeddings", "openai", "POST", "/v1/embeddings"),
    )
}
_MODELS_PATH = "/v1/models"
_MODELS: dict[Dialect, Endpoint] = {
    "anthropic": Endpoint("models", "anthropic", "GET", _MODELS_PATH, metered=False),
    "openai": Endpoint("models", "openai", "GET", _MODELS_PATH, metered=False),
}

# Every Anthropic client sends the version; the key stands in `x-api-key` or, as with SDK 2.x, in `authorization`.
_ANTHROPIC_HEADERS = frozenset({b"anthropic-version", b"x-api-key"})


# Paths that pass, by how they begin; below them are their parts. None: the headers say whose it is.
_PASSED: tuple[tuple[str, EndpointName, Dialect | None], ...] = (
    ("/v1/messages/batches", "message_batches", "anthropic"),
    ("/v1/messages", "other", "anthropic"),
    ("/v1/responses", "stored_responses", "openai"),
    ("/v1/chat/completions", "other", "openai"),
    ("/v1/batches", "batches", "openai"),
    ("/v1/files", "files", None),
    ("/v1/uploads", "files", "openai"),
    ("/v1/models", "models", None),
)
_PROVIDERS_OWN = "/v1/"
_ASKS_ONLY = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
# POSTs that spend nothing: what is stored, counted or called off.
_FREE_POSTS = ("/v1/files", "/v1/uploads", "/v1/responses/input_tokens")
_CALLED_OFF = "/cancel"


def endpoint_of(target: str, headers: Headers, method: str = "") -> Endpoint | None:
    """Give the endpoint of a path or of a target with its query; None if it is not served.

    The method is the caller's to compare: another one than `endpoint.method` deserves a 405 in the endpoint's dialect.
    Where an endpoint passes, the method says what it is.
    """
    path = target.partition("?")[0]
    if path == _MODELS_PATH:
        return _MODELS[dialect_of(path, headers)]
    known = _ENDPOINTS.get(path)
    if known is not None or not path.startswith(_PROVIDERS_OWN) or _leads_out(path):
        return known
    name, dialect = _passed(path)
    free = method in _ASKS_ONLY or _is_below(path, _FREE_POSTS) or path.endswith(_CALLED_OFF)
    return Endpoint(name, dialect or dialect_of(path, headers), method, path, metered=not free, passes=True)


def dialect_of(target: str, headers: Headers) -> Dialect:
    """Give the dialect that a client understands, also where there is no such endpoint."""
    path = target.partition("?")[0]
    known = _ENDPOINTS.get(path)
    if known is not None:
        return known.dialect
    _, dialect = _passed(path)
    if dialect is not None:
        return dialect
    return "anthropic" if any(name.lower() in _ANTHROPIC_HEADERS for name, _ in headers) else "openai"


def _leads_out(path: str) -> bool:
    """Whether a path has a part that leads to another place at the provider's host than it seems to name."""
    return any(unquote(part) in {".", ".."} for part in path.replace("\\", "/").split("/")) or "%2f" in path.lower()


def _passed(path: str) -> tuple[EndpointName, Dialect | None]:
    for start, name, dialect in _PASSED:
        if _is_below(path, (start,)):
            return name, dialect
    return "other", None


def _is_below(path: str, starts: tuple[str, ...]) -> bool:
    return any(path == start or path.startswith(start + "/") for start in starts)
