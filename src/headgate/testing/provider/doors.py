"""Doors: the addresses under which clouds offer a vendor's wire, and how calls count there.

One rule: behind a door everything is as at the vendor's own, but for what a call takes of the limit on tokens (wire.md
section 3). The wire and the headers are the vendor's; who knocks is told by the path alone.
"""

from typing import Literal, NamedTuple

__all__ = ["Counting", "Door", "door_of"]

Counting = Literal["vendor", "gemini", "bedrock"]
"""As the vendor counts it; its input only; or all that it may use at first, and five times its output in the end."""


class Door(NamedTuple):
    """The vendor's own path behind an address, and how calls count that came by it."""

    path: str
    counting: Counting = "vendor"


# The beginning of a path, what stands in its place at the vendor's, and how calls count.
_PREFIXES: tuple[tuple[str, str, Counting], ...] = (
    ("/openai/v1/", "/v1/", "vendor"),  # Azure OpenAI
    ("/foundry/anthropic/v1/", "/v1/", "vendor"),
    ("/bedrock/anthropic/v1/", "/v1/", "bedrock"),
    ("/v1beta/openai/", "/v1/", "gemini"),
    ("/api/v1/", "/v1/", "vendor"),  # OpenRouter
)
_DATED = "/openai/"
_DEPLOYMENTS = "/openai/deployments/"
_VERSION = b"api-version="


def door_of(path: str, query: bytes) -> Door:
    """Give what stands behind a path; itself where there is no door. Azure's dated paths need their version."""
    for prefix, own, counting in _PREFIXES:
        if path.startswith(prefix):
            return Door(own + path.removeprefix(prefix), counting)
    if path.startswith(_DATED) and any(part.startswith(_VERSION) for part in query.split(b"&")):
        rest = path.removeprefix(_DEPLOYMENTS)
        rest = rest.partition("/")[2] if rest != path else path.removeprefix(_DATED)
        return Door("/v1/" + rest)
    return Door(path)
