"""Azure OpenAI: OpenAI's wire at an address of one's own, where a model is a deployment's name.

One rule: without `api_version` it is the interface without dates (`/openai/v1`, since August 2025), with one the older
one, which has the deployment in its path. Sources: Microsoft, "Azure OpenAI API version lifecycle", 2026; that it
counts max_tokens, and over 1 or 10 s, wire.md section 3.
"""

from urllib.parse import quote

from headgate.adapters.providers import headers_openai
from headgate.adapters.providers.vendors.openai import openai_target
from headgate.adapters.providers.vendors.vendor import Place, Vendor, bearer, named_header

__all__ = ["AZURE", "is_token"]

_OF_DEPLOYMENTS = ("/chat/completions", "/completions", "/embeddings")
_UNDATED = "/openai/v1"
_DATED = "/openai"
_DOTS_OF_TOKEN = 2
_VERSION = "api-version="

_key = named_header(b"api-key")


def is_token(api_key: str) -> bool:
    """Tell a token of Entra ID, three parts of base64 of which the first is an object, from a resource's key."""
    return api_key.startswith("eyJ") and api_key.count(".") == _DOTS_OF_TOKEN


def _credential(api_key: str) -> tuple[bytes, bytes]:
    return bearer(api_key) if is_token(api_key) else _key(api_key)


def _target(place: Place, target: str, model: str) -> str:
    if place.api_version is None:
        return openai_target(Place(place.path or _UNDATED), target, model)
    path, _, query = target.removeprefix("/v1").partition("?")
    base = place.path.removesuffix("/v1") or _DATED
    if path in _OF_DEPLOYMENTS:
        path = f"/deployments/{quote(model, safe='')}{path}"
    # The account's version holds, whatever a client that knows Azure says.
    said = [word for word in query.split("&") if word and not word.startswith(_VERSION)]
    return f"{base}{path}?{'&'.join([*said, _VERSION + quote(place.api_version, safe='')])}"


AZURE = Vendor(
    name="azure",
    dialect="openai",
    counting="openai",
    credential=_credential,
    read_notices=headers_openai.read_notices,
    request_id_header=b"apim-request-id",
    target=_target,
    address="https://NAME.openai.azure.com",
    takes_version=True,
)
