"""The catalogue: every vendor by the name that `provider` says in the configuration."""

from collections.abc import Mapping

from headgate.adapters.providers.vendors.anthropic import ANTHROPIC
from headgate.adapters.providers.vendors.azure import AZURE
from headgate.adapters.providers.vendors.bedrock import BEDROCK
from headgate.adapters.providers.vendors.compatible import COMPATIBLE
from headgate.adapters.providers.vendors.foundry import FOUNDRY
from headgate.adapters.providers.vendors.gemini import GEMINI
from headgate.adapters.providers.vendors.openai import OPENAI
from headgate.adapters.providers.vendors.vendor import Credential, Vendor, bearer, named_header

__all__ = ["CREDENTIALS", "VENDORS", "usual_models"]

VENDORS: Mapping[str, Vendor] = {
    vendor.name: vendor for vendor in (ANTHROPIC, OPENAI, AZURE, FOUNDRY, BEDROCK, GEMINI, *COMPATIBLE)
}

CREDENTIALS: Mapping[str, Credential] = {
    "bearer": bearer,
    "x-api-key": named_header(b"x-api-key"),
    "api-key": named_header(b"api-key"),
}
"""How an account's key goes, where its owner says so: other servers that speak a dialect want it elsewhere."""

_SPOKEN_BY_OTHERS = frozenset({"anthropic", "openai"})
"""Whose name stands for whoever speaks the dialect, at an address of their own."""


def usual_models(vendor: Vendor, base_url: str) -> tuple[str, ...]:
    """Give the models that an account serves where nobody says: a vendor its own, who else speaks its dialect any."""
    is_elsewhere = vendor.base_url is not None and _place(base_url) != _place(vendor.base_url)
    return ("*",) if is_elsewhere and vendor.name in _SPOKEN_BY_OTHERS else vendor.models


def _place(base_url: str) -> str:
    return base_url.rstrip("/").removesuffix("/v1").rstrip("/")
