"""Endpoints: which paths of the two vendors are served, and whose shape an answer must have.

One rule: a path decides, the query goes along untouched; where both vendors share a path, the headers decide.
It reads no body and knows no account.
"""

from dataclasses import dataclass
from typing import Literal

from headgate.core.usage import Dialect
from headgate.ports import Headers

__all__ = ["Endpoint", "EndpointName", "dialect_of", "endpoint_of"]

EndpointName = Literal["messages", "count_tokens", "chat", "responses", "embeddings", "models"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One call that a provider offers; a metered one spends tokens."""

    name: EndpointName
    dialect: Dialect
    method: str
    path: str
    metered: bool = True


_ENDPOINTS = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint("messages", "anthropic", "POST", "/v1/messages"),
        Endpoint("count_tokens", "anthropic", "POST", "/v1/messages/count_tokens", metered=False),
        Endpoint("chat", "openai", "POST", "/v1/chat/completions"),
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


def endpoint_of(target: str, headers: Headers) -> Endpoint | None:
    """Give the endpoint of a path or of a target with its query; None if it is not served.

    The method is the caller's to compare: another one than `endpoint.method` deserves a 405 in the endpoint's dialect.
    """
    path = target.partition("?")[0]
    if path == _MODELS_PATH:
        return _MODELS[dialect_of(path, headers)]
    return _ENDPOINTS.get(path)


def dialect_of(target: str, headers: Headers) -> Dialect:
    """Give the dialect that a client understands, also where there is no such endpoint."""
    known = _ENDPOINTS.get(target.partition("?")[0])
    if known is not None:
        return known.dialect
    if target.startswith("/v1/messages") or any(name.lower() in _ANTHROPIC_HEADERS for name, _ in headers):
        return "anthropic"
    return "openai"
