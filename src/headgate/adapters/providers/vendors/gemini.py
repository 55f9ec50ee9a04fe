"""Gemini, by the interface in OpenAI's dialect that Google offers ("OpenAI compatibility", ai.google.dev, 2026).

It tells no limits in headers, and its limit on tokens is on input only (wire.md section 3).
"""

from headgate.adapters.providers import headers_openai
from headgate.adapters.providers.openai import REQUEST_ID_HEADER
from headgate.adapters.providers.vendors.openai import openai_target
from headgate.adapters.providers.vendors.vendor import Vendor, bearer

__all__ = ["GEMINI"]

GEMINI = Vendor(
    name="gemini",
    dialect="openai",
    counting="gemini",
    credential=bearer,
    read_notices=headers_openai.read_notices,
    request_id_header=REQUEST_ID_HEADER,
    target=openai_target,
    base_url="https://generativelanguage.googleapis.com/v1beta/openai",
    models=("gemini-*", "gemma-*", "models/gemini-*", "models/gemma-*"),
    endpoints=frozenset({"chat", "embeddings", "models", "files", "batches"}),
)
