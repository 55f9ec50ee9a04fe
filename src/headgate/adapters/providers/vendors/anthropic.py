"""Anthropic, and whoever speaks its dialect at another address (wire.md section 2)."""

from headgate.adapters.providers import headers_anthropic
from headgate.adapters.providers.anthropic import REQUEST_ID_HEADER, credential
from headgate.adapters.providers.vendors.vendor import Place, Vendor

__all__ = ["ANTHROPIC", "anthropic_target"]


def anthropic_target(place: Place, target: str, _model: str) -> str:
    """Give what to ask for: below the account's own path, as with the vendor's SDK, whose base URL has no `/v1`."""
    return place.path.removesuffix("/v1") + target


ANTHROPIC = Vendor(
    name="anthropic",
    dialect="anthropic",
    counting="anthropic",
    credential=credential,
    read_notices=headers_anthropic.read_notices,
    request_id_header=REQUEST_ID_HEADER,
    target=anthropic_target,
    base_url="https://api.anthropic.com",
    models=("claude-*",),
)
