"""A vendor: what is the same for every account at one provider, whichever of the two dialects it speaks.

One rule: bytes pass; a vendor differs in its address, its credential, what its headers tell and how it counts, never in
what stands in a body. It sends nothing and knows no key.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

from headgate.adapters.providers.endpoints import EndpointName
from headgate.core.notices import Notices
from headgate.core.usage import Counting, Dialect
from headgate.ports import Headers

__all__ = ["Credential", "Place", "ReadNotices", "Vendor", "bearer", "named_header"]

ReadNotices = Callable[[Headers, float], Notices]
"""Reads what headers tell of limits: the headers, and when they came."""

Credential = Callable[[str], tuple[bytes, bytes]]
"""Gives the header that carries a key."""


class Place(NamedTuple):
    """Where an account is: the path of its base URL without a slash at its end, and the version of its interface."""

    path: str
    api_version: str | None = None


@dataclass(frozen=True, slots=True)
class Vendor:
    """A provider, or a kind of them.

    `name` is what `provider` says in the configuration; `counting` is how it counts calls against its limits. `target`
    gives what to ask for of a place: from it, the client's path with its query, and the model. Without a `base_url`
    every account has to say its own, such as `address`. `models` are those of the vendor's own address, `endpoints`
    those it serves (None: all of its dialect). Where `needs_key` is False an account may have none, and only where
    `takes_version` is set may it have an `api_version`.
    """

    name: str
    dialect: Dialect
    counting: Counting
    credential: Credential
    read_notices: ReadNotices
    request_id_header: bytes
    target: Callable[[Place, str, str], str]
    base_url: str | None = None
    address: str = "https://api.example.com"
    models: tuple[str, ...] = ("*",)
    endpoints: Collection[EndpointName] | None = None
    needs_key: bool = True
    takes_version: bool = False


def bearer(api_key: str) -> tuple[bytes, bytes]:
    """Give a key as a bearer's token."""
    return b"authorization", b"Bearer " + api_key.encode("ascii")


def named_header(name: bytes) -> Credential:
    """Give who writes a key into a header of its own."""

    def credential(api_key: str) -> tuple[bytes, bytes]:
        return name, api_key.encode("ascii")

    return credential
