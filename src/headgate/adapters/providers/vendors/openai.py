"""OpenAI, and whoever speaks its dialect at another address (wire.md section 3)."""

from headgate.adapters.providers import headers_openai
from headgate.adapters.providers.openai import REQUEST_ID_HEADER
from headgate.adapters.providers.vendors.vendor import Place, Vendor, bearer

__all__ = ["OPENAI", "openai_target"]


def openai_target(place: Place, target: str, _model: str) -> str:
    """Give what to ask for: a path of the account's own stands in place of `/v1`, as with the vendor's SDK."""
    return place.path + target.removeprefix("/v1") if place.path else target


OPENAI = Vendor(
    name="openai",
    dialect="openai",
    counting="openai",
    credential=bearer,
    read_notices=headers_openai.read_notices,
    request_id_header=REQUEST_ID_HEADER,
    target=openai_target,
    base_url="https://api.openai.com/v1",
    # The families that the endpoints served here take (developers.openai.com/api/docs/models, November 2026).
    models=("gpt-*", "chatgpt-*", "o?", "o?-*", "codex-*", "computer-use*", "ft:*", "text-*"),
)
