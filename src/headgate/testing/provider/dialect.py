"""Dialects: the seam between the life of a call and the vendor's way to write it down.

One rule: a dialect turns values into bytes and back; it never waits, counts or decides.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from headgate.testing.provider.answers import Answer, Fragment
from headgate.testing.provider.asked import Asked
from headgate.testing.provider.buckets import Pool, Refusal
from headgate.testing.provider.counting import Usage

__all__ = ["Dialect", "Headers", "Reply", "Vendor", "VendorName"]

VendorName = Literal["anthropic", "openai"]
Headers = list[tuple[bytes, bytes]]


@dataclass(slots=True)
class Reply:
    """What a dialect needs to write an answer down; `usage` grows while the answer is produced."""

    request_id: str
    created_s: int
    asked: Asked
    answer: Answer
    usage: Usage
    hides_usage: bool = False
    # OpenAI's Responses stream numbers its events.
    sequence: int = 0


class Vendor(Protocol):
    """What is the same for every endpoint of a vendor: names, errors, rate-limit headers."""

    name: VendorName
    request_id_header: bytes

    def error(self, status: int, message: str, request_id: str, *, param: str | None = None) -> bytes:
        """Write an error's body."""

    def rate_limited(self, refusal: Refusal, model: str, request_id: str) -> tuple[bytes, Headers]:
        """Write the 429 for a bucket that does not hold enough, with its retry headers."""

    def spend_limited(self, request_id: str) -> tuple[int, bytes]:
        """Write the refusal that no retry can help: its status and body."""

    def overloaded_status(self) -> int:
        """Give the status for 'overloaded'."""

    def limit_headers(self, pool: Pool, now_s: float, wall_s: float) -> Headers:
        """Write what is left in a pool."""


class Dialect(Protocol):
    """One endpoint that answers with text."""

    @property
    def vendor(self) -> Vendor:
        """Whose endpoint it is."""

    def read(self, body: bytes) -> Asked:
        """Decode and check a request."""

    def document(self, reply: Reply) -> bytes:
        """Write the whole answer as JSON."""

    def opening(self, reply: Reply) -> bytes:
        """Write what a stream begins with."""

    def fragment(self, reply: Reply, fragment: Fragment) -> bytes:
        """Write one piece of the answer, with the beginning and the end of its block where they fall."""

    def closing(self, reply: Reply) -> bytes:
        """Write what a stream ends with."""

    def malformed(self) -> bytes:
        """Write an event that is no JSON."""

    def failure(self, reply: Reply) -> bytes:
        """Write the error event that ends a stream in the middle."""
