"""Claude at Microsoft Foundry: Anthropic's own wire at an address of one's own.

Source: anthropic SDK 2.11, `lib/foundry.py`: the address, and which header a key or a token of Entra ID goes in.
"""

from headgate.adapters.providers import headers_anthropic
from headgate.adapters.providers.anthropic import REQUEST_ID_HEADER
from headgate.adapters.providers.vendors.anthropic import anthropic_target
from headgate.adapters.providers.vendors.azure import is_token
from headgate.adapters.providers.vendors.vendor import Vendor, bearer, named_header

__all__ = ["FOUNDRY"]

_key = named_header(b"x-api-key")


def _credential(api_key: str) -> tuple[bytes, bytes]:
    return bearer(api_key) if is_token(api_key) else _key(api_key)


FOUNDRY = Vendor(
    name="foundry",
    dialect="anthropic",
    counting="anthropic",
    credential=_credential,
    read_notices=headers_anthropic.read_notices,
    request_id_header=REQUEST_ID_HEADER,
    target=anthropic_target,
    address="https://NAME.services.ai.azure.com/anthropic",
    endpoints=frozenset({"messages", "count_tokens"}),
)
