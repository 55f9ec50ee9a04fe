"""An account at a provider: sends calls with its key, and asks what became of those whose process died.

One rule: a client's request passes as it is, but for credentials, what belongs to one connection, and what metering
needs. The key is in no message, no repr and no log. It retries nothing.
"""

from functools import lru_cache
from http import HTTPStatus
from typing import Literal
from urllib.parse import quote

import msgspec

from headgate.adapters.providers import anthropic, headers_anthropic, headers_openai, openai
from headgate.adapters.providers.answer import Sending, named_by_connection
from headgate.adapters.providers.body import ask_for_usage
from headgate.adapters.providers.endpoints import Endpoint, endpoint_of
from headgate.adapters.providers.http import CONNECTION_HEADERS, HttpClient, Timeouts, parse_url
from headgate.adapters.providers.reading import UNREADABLE
from headgate.core.errors import ConfigError, ProviderError
from headgate.core.retries import Failure
from headgate.core.usage import NO_USAGE, Dialect, Usage
from headgate.ports import Fate, Request

__all__ = ["AccountProvider"]

_CALL_ID_HEADER = b"x-headgate-call-id"
_OURS = b"x-headgate-"

# The client's credentials are meant for us. So are its cookies, such as those of a dashboard on the same host.
_CREDENTIALS = frozenset({b"authorization", b"x-api-key", b"api-key", b"proxy-authorization", b"cookie"})

_ASKED_FOR_USAGE = frozenset({"chat", "completions"})

_LOOK_UP_LIMIT_BYTES = 64 * 1024
_LOOK_UP_TIMEOUTS = Timeouts(pool_s=5.0, connect_s=5.0, first_byte_s=10.0, idle_s=10.0)
_DEFAULT_TIMEOUTS = Timeouts()


class AccountProvider:
    """One credential at one provider; implements `ports.Provider`.

    `base_url` is what the vendor's SDK would be given: Anthropic's has no `/v1`, OpenAI's has it or, as a bare host,
    gets it. `reconcile` says that the provider keeps the ids of calls and can be asked what became of them, as the
    simulated one can.
    """

    def __init__(
        self,
        name: str,
        dialect: Dialect,
        base_url: str,
        api_key: str,
        client: HttpClient,
        *,
        reconcile: bool = False,
        timeouts: Timeouts = _DEFAULT_TIMEOUTS,
    ) -> None:
        """Raise ConfigError when the URL or the key cannot be used."""
        try:
            self._origin, path = parse_url(base_url)
        except ValueError as error:
            raise ConfigError(f"account {name}: base_url: {error}") from error
        if b"?" in path:
            raise ConfigError(f"account {name}: base_url has a query: expected scheme, host and path only")
        if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
            raise ConfigError(f"account {name}: its API key is empty or has characters that no key has")
        wire = anthropic if dialect == "anthropic" else openai
        self.name = name
        self.dialect = dialect
        self._path = path.rstrip(b"/")
        self._credential = wire.credential(api_key)
        self._adds_oauth_beta = dialect == "anthropic" and anthropic.is_oauth(api_key)
        self._request_id_header = wire.REQUEST_ID_HEADER
        self._read_notices = (headers_anthropic if dialect == "anthropic" else headers_openai).read_notices
        self._client = client
        self._reconcile = reconcile
        self._timeouts = timeouts

    def __repr__(self) -> str:
        return f"AccountProvider({self.name!r}, {self.dialect!r}, {self._origin.label!r})"

    def send(self, request: Request) -> Sending:
        """Prepare a call, to be used once, as `async with`; entered with the head of the answer.

        Raises:
            ProviderError: On entering and on reading the answer.
            CallerError: A streamed chat cannot be asked for its usage: see `ask_for_usage`.
        """
        endpoint = endpoint_of(request.target, request.headers)
        may_stream = endpoint is not None and endpoint.name in _ASKED_FOR_USAGE and request.is_streamed is not False
        body = ask_for_usage(request.body) if may_stream else None
        call = self._client.send(
            request.method,
            self._origin,
            self._target(request.target),
            headers=self._headers(request, endpoint),
            body=request.body if body is None else body,
            timeouts=self._timeouts,
            passage=request.passage,
            upload=request.upload,
        )
        return Sending(
            call,
            endpoint,
            request_id_header=self._request_id_header,
            hides_usage=body is not None,
            read_notices=self._read_notices,
        )

    async def look_up(self, call_id: str) -> Fate | None:
        """Ask what became of a call; None where the provider cannot say, or while the call still runs.

        Raises:
            ProviderError: It could not be asked, or its answer cannot be understood.
        """
        if not self._reconcile:
            return None
        target = b"%b/_provider/calls/%b" % (self._path.removesuffix(b"/v1"), quote(call_id, safe="").encode())
        call = self._client.send("GET", self._origin, target, headers=[self._credential], timeouts=_LOOK_UP_TIMEOUTS)
        async with call as reply:
            body = await reply.read(_LOOK_UP_LIMIT_BYTES)
        if reply.status == HTTPStatus.NOT_FOUND:
            return Fate(NO_USAGE, arrived=False)
        try:
            return _fate(_kept_call_decoder.decode(body))
        except UNREADABLE as error:
            # Also where the status is another: what is answered then has no state.
            message = f"account {self.name}: what became of call {call_id} is not told (status {reply.status}): {error}"
            raise ProviderError(message, Failure("server", "unreadable_call", reply.status)) from error

    def _target(self, target: str) -> bytes:
        if self._path and self.dialect == "openai":
            return self._path + target.removeprefix("/v1").encode()
        return self._path.removesuffix(b"/v1") + target.encode()

    def _headers(self, request: Request, endpoint: Endpoint | None) -> list[tuple[bytes, bytes]]:
        of_connection = named_by_connection(request.headers)
        is_read = endpoint is not None and endpoint.metered and not endpoint.passes
        headers = []
        beta_at = None
        for name, value in request.headers:
            match _treatment(name):
                case "drop":
                    continue
                case "encoding" if is_read:
                    # Answers are small, and compression would hold back events and keep a chunk from being hidden. What
                    # a server encodes all the same is decoded on the side.
                    headers.append((name, b"identity"))
                    continue
                case "beta":
                    beta_at = len(headers)
            if not of_connection or name.lower() not in of_connection:
                headers.append((name, value))
        if self._adds_oauth_beta:
            _add_oauth_beta(headers, beta_at)
        headers.append(self._credential)
        if self._reconcile and request.call_id:
            headers.append((_CALL_ID_HEADER, request.call_id.encode()))
        return headers


# Bounded, and worth it: the same twenty names come with every call.
@lru_cache(maxsize=1024)
def _treatment(name: bytes) -> Literal["drop", "encoding", "beta", "keep"]:
    lower = name.lower()
    if lower in CONNECTION_HEADERS or lower in _CREDENTIALS or lower.startswith(_OURS):
        return "drop"
    if lower == b"accept-encoding":
        return "encoding"
    return "beta" if lower == b"anthropic-beta" else "keep"


def _add_oauth_beta(headers: list[tuple[bytes, bytes]], at: int | None) -> None:
    """Add the beta that belongs to a plan's token, once, to the header at `at` where there is one."""
    if at is None:
        headers.append((b"anthropic-beta", anthropic.OAUTH_BETA))
        return
    name, value = headers[at]
    if anthropic.OAUTH_BETA not in [beta.strip() for beta in value.split(b",")]:
        headers[at] = (name, value + b"," + anthropic.OAUTH_BETA)


# --- what became of a call


class _KeptUsage(msgspec.Struct):
    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    output_tokens: int = 0


class _KeptCall(msgspec.Struct):
    state: Literal["running", "done", "failed", "refused", "cancelled"]
    usage: _KeptUsage
    request_id: str | None = None
    earlier: list["_KeptCall"] = []


_kept_call_decoder = msgspec.json.Decoder(_KeptCall)


def _fate(call: _KeptCall) -> Fate | None:
    """Sum a call and the earlier requests that had its id: all of them were charged."""
    calls = (call, *call.earlier)
    if any(each.state == "running" for each in calls):
        return None
    sums = {name: sum(getattr(each.usage, name) for each in calls) for name in _KeptUsage.__struct_fields__}
    return Fate(Usage(**sums), provider_request=call.request_id)
