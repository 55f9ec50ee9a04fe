"""Operations: what a path of the control API does for one method, and everything that is said of it.

One rule: what is served and what is told of it are the same values: parameters are read by the list that the document
shows, an answer's type is what the code that makes it is checked against. How that is written down is `openapi`'s.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

from msgspec import Meta

from headgate.core.scopes import SCOPE_KINDS
from headgate.gateway.asked import Asked

Handler = Callable[[Asked], Awaitable[Any]]

Instant = Annotated[str, Meta(description="RFC 3339 in UTC.", extra_json_schema={"format": "date-time"})]
MicroUsd = Annotated[int, Meta(description="Millionths of a US dollar.")]
Unanswered = Annotated[list[str], Meta(description="Workers of this gateway that did not answer; left out if all did.")]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A word behind the question mark: what it says, and of which type its value is.

    A list stands in one word, with commas between.
    """

    name: str
    what: str
    kind: Any = Annotated[str, Meta(min_length=1)]
    required: bool = False
    example: str | int | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """What answers, the type of its answer, and what it is asked with.

    `takes` is the type of the body, `fails` the statuses that it can answer beside those that any can. Where
    `only_admin` says what is done, nobody else may do it. A `stream` goes on for as long as the client stays.
    """

    handler: Handler
    gives: Any
    what: str
    parameters: tuple[Parameter, ...] = ()
    takes: Any = None
    fails: tuple[int, ...] = ()
    only_admin: str | None = None
    makes: bool = False
    stream: bool = False

    @property
    def status(self) -> int:
        """The status of what went well."""
        return 201 if self.makes else 200

    @property
    def failing(self) -> tuple[int, ...]:
        """Every status of what did not."""
        of_body = (413,) if self.takes is not None else ()
        return tuple(sorted({400, 401, 403, 500, *of_body, *self.fails}))


SCOPE = Parameter(
    "scope",
    f"Only these: kinds ({', '.join(SCOPE_KINDS)}) and scopes, which may be patterns, with commas between.",
    example="account,key:ci,run:nightly-*",
)

_ErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
    "rate_limit_error",
    "api_error",
    "overloaded_error",
]


class ErrorTold(TypedDict):
    """What went wrong: the message has the value that cannot be used, and what is expected."""

    type: _ErrorType
    message: str


class Error(TypedDict):
    """Every error on every path under `/api/`."""

    type: Literal["error"]
    error: ErrorTold
    request_id: str


ERRORS = {
    400: "A parameter, a body or a name cannot be used, or what is asked cannot be honoured.",
    401: "No key or token, or one that is not in force.",
    403: "Only an administrator may do this, or a page from elsewhere asked.",
    404: "It is not there, or not the asker's.",
    413: "The body is larger than the path takes.",
    429: "Too many follow already.",
    500: "Headgate failed, or its store did; its log says how.",
    529: "A worker of this gateway did not answer; nothing has changed, and it may be tried again.",
}
"""What each status says."""
