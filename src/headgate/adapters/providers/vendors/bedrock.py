"""Claude at Amazon Bedrock, by the endpoint that speaks Anthropic's own wire (`bedrock-mantle`).

One rule: the older `InvokeModel`, with bodies and event streams of its own, is not spoken. The address, and that a
Bedrock API key goes as a bearer's token, are the anthropic SDK's (2.11, `lib/bedrock/_mantle.py`); how it counts,
wire.md section 3.
"""

from headgate.adapters.providers import headers_anthropic
from headgate.adapters.providers.anthropic import REQUEST_ID_HEADER
from headgate.adapters.providers.vendors.anthropic import anthropic_target
from headgate.adapters.providers.vendors.vendor import Vendor, bearer

__all__ = ["BEDROCK"]

BEDROCK = Vendor(
    name="bedrock",
    dialect="anthropic",
    counting="bedrock",
    credential=bearer,
    read_notices=headers_anthropic.read_notices,
    request_id_header=REQUEST_ID_HEADER,
    target=anthropic_target,
    address="https://bedrock-mantle.us-east-1.api.aws/anthropic",
    models=("anthropic.claude-*", "*.anthropic.claude-*"),
    endpoints=frozenset({"messages", "count_tokens", "models"}),
)
