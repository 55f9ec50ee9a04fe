"""Vendors and servers whose wire is OpenAI's, known by name so that nobody has to look up their addresses.

One rule: whatever is not here works all the same, as `provider = "openai"` with a `base_url`. Addresses are those of
the vendors' own guides, December 2026. A server of one's own has no limits but one's own, which count what was used.
"""

from headgate.adapters.providers import headers_openai
from headgate.adapters.providers.openai import REQUEST_ID_HEADER
from headgate.adapters.providers.vendors.openai import openai_target
from headgate.adapters.providers.vendors.vendor import Vendor, bearer
from headgate.core.usage import Counting

__all__ = ["COMPATIBLE"]


def _compatible(name: str, base_url: str, counting: Counting = "openai", *, needs_key: bool = True) -> Vendor:
    return Vendor(
        name=name,
        dialect="openai",
        counting=counting,
        credential=bearer,
        read_notices=headers_openai.read_notices,
        request_id_header=REQUEST_ID_HEADER,
        target=openai_target,
        base_url=base_url,
        needs_key=needs_key,
    )


COMPATIBLE = (
    _compatible("deepseek", "https://api.deepseek.com/v1", "used"),
    _compatible("fireworks", "https://api.fireworks.ai/inference/v1"),
    _compatible("groq", "https://api.groq.com/openai/v1"),
    _compatible("mistral", "https://api.mistral.ai/v1"),
    _compatible("openrouter", "https://openrouter.ai/api/v1"),
    _compatible("together", "https://api.together.xyz/v1"),
    _compatible("xai", "https://api.x.ai/v1"),
    _compatible("ollama", "http://127.0.0.1:11434/v1", "used", needs_key=False),
    _compatible("vllm", "http://127.0.0.1:8000/v1", "used", needs_key=False),
)
