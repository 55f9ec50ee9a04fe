"""An account at a provider: sends calls with its key, and asks what became of those whose process died.

One rule: a client's request passes as it is, but for credentials, what belongs to one connection, and what metering
needs. The key is in no message, no repr and no log. It retries nothing.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Literal
from urllib.parse import quote

import msgspec

from headgate.adapters.providers import anthropic
from headgate.adapters.providers.answer import Sending, named_by_connection
from headgate.adapters.providers.body import ask_for_usage
from headgate.adapters.providers.call_head import read_model
from headgate.adapters.providers.compression import CompressedSending, Compression
from headgate.adapters.providers.endpoints import Endpoint, endpoint_of
from headgate.adapters.providers.http import CONNECTION_HEADERS, HttpClient, Timeouts, parse_url
from headgate.adapters.providers.model_change import with_model
from headgate.adapters.providers.reading import UNREADABLE
from headgate.adapters.providers.vendors.vendor import Place, Vendor
from headgate.core.errors import ConfigError, ProviderError, UnservedError
from headgate.core.retries import Failure
from headgate.core.usage import NO_USAGE, Usage
from headgate.ports import Fate, Request

__all__ = ["AccountProvider"]

_CALL_ID_HEADER = b"x-headgate-call-id"
_OURS = b"x-headgate-"

# The client's credentials are meant for us. So are its cookies, such as those of a dashboard on the same host.
_CREDENTIALS = frozenset({b"authorization", b"x-api-key", b"api-key", b"proxy-authorization", b"cookie"})

_ASKED_FOR_USAGE = frozenset({"chat", "completions"})

_NAMES_MODEL = frozenset({"messages", "count_tokens", "chat", "completions", "responses", "embeddings"})
_NO_NAMES: Mapping[str, str] = {}

_LOOK_UP_LIMIT_BYTES = 64 * 1024
_LOOK_UP_TIMEOUTS = Timeouts(pool_s=5.0, connect_s=5.0, first_byte_s=10.0, idle_s=10.0)
_DEFAULT_TIMEOUTS = Timeouts()


class AccountProvider:
    """One credential at one provider; implements `ports.Provider`.

    `base_url` is what the vendor's SDK would be given: Anthropic's has no `/v1`, OpenAI's has it or, as a bare host,
    gets it. `names` has the account's own names of models by the names that calls use. `reconcile` says that the
    provider keeps the ids of calls and can be asked what became of them, as the simulated one can.
    """

    def __init__(
        self,
        name: str,
        vendor: Vendor,
        base_url: str,
        api_key: str | None,
        client: HttpClient,
        *,
        api_version: str | None = None,
        names: Mapping[str, str] = _NO_NAMES,
        credential: Callable[[str], tuple[bytes, bytes]] | None = None,
        reconcile: bool = False,
        timeouts: Timeouts = _DEFAULT_TIMEOUTS,
        compresses: bool = False,
    ) -> None:
        """Raise ConfigError when the URL or key cannot be used; `credential` None writes the key as the vendor does."""
        try:
            self._origin, path = parse_url(base_url)
        except ValueError as error:
            raise ConfigError(f"account {name}: base_url: {error}") from error
        if b"?" in path:
            raise ConfigError(f"account {name}: base_url has a query: expected scheme, host and path only")
        if api_key is None and vendor.needs_key:
            raise ConfigError(f"account {name}: {vendor.name} needs an api_key")
        if api_key is not None and not (api_key and api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise ConfigError(f"account {name}: its API key is empty or has characters that no key has")
        self.name = name
        self.vendor = vendor
        self._place = Place(path.decode("ascii").rstrip("/"), api_version)
        self._names = dict(names)
        self._asked_as = {own: asked for asked, own in names.items()}
        write = credential or vendor.credential
        self._credential = [write(api_key)] if api_key is not None else []
        self._adds_oauth_beta = api_key is not None and vendor.name == "anthropic" and anthropic.is_oauth(api_key)
        self._client = client
        self._reconcile = reconcile
        self._timeouts = timeouts
        self._compression = Compression(name) if compresses else None

    def __repr__(self) -> str:
        return f"AccountProvider({self.name!r}, {self.vendor.name!r}, {self._origin.label!r})"

    def send(self, request: Request) -> Sending | CompressedSending:
        """Prepare a call, to be used once, as `async with`; entered with the head of the answer.

        Raises:
            ProviderError: On entering and on reading the answer.
            UnservedError: The vendor has no such endpoint.
            CallerError: A streamed chat cannot be asked for its usage: see `ask_for_usage`.
        """
        endpoint = endpoint_of(request.target, request.headers)
        vendor = self.vendor
        if vendor.endpoints is not None and (endpoint is None or endpoint.name not in vendor.endpoints):
            path = request.target.partition("?")[0]
            raise UnservedError(f"{path[:200]} is not served by {vendor.name}, where account {self.name} is")
        target, wanted = request.target, request.body
        if self._needs_model and endpoint is not None and endpoint.name in _NAMES_MODEL:
            target, wanted = self._named(endpoint, request)
        else:
            target = vendor.target(self._place, target, "")
        may_stream = endpoint is not None and endpoint.name in _ASKED_FOR_USAGE and request.is_streamed is not False
        changed = ask_for_usage(wanted) if may_stream else None
        hides_usage, body = changed is not None, wanted if changed is None else changed
        headers = self._headers(request, endpoint)

        def sending(body: bytes, is_packed: bool) -> Sending:  # noqa: FBT001 - as `compression.Send` has it
            call = self._client.send(
                request.method,
                self._origin,
                target.encode("ascii"),
                headers=_packed_headers(headers) if is_packed else headers,
                body=body,
                timeouts=self._timeouts,
                passage=request.passage,
                upload=request.upload,
            )
            return Sending(
                call,
                endpoint,
                request_id_header=vendor.request_id_header,
                hides_usage=hides_usage,
                read_notices=vendor.read_notices,
                asked_as=self._asked_as,
            )

        if self._compression is not None and request.upload is None and self._compression.takes(body):
            return CompressedSending(self._compression, sending, body)
        return sending(body, False)  # noqa: FBT003 - as above

    async def look_up(self, call_id: str) -> Fate | None:
        """Ask what became of a call; None where the provider cannot say, or while the call still runs.

        Raises:
            ProviderError: It could not be asked, or its answer cannot be understood.
        """
        if not self._reconcile:
            return None
        target = f"{self._place.path.removesuffix('/v1')}/_provider/calls/{quote(call_id, safe='')}".encode()
        call = self._client.send("GET", self._origin, target, headers=self._credential, timeouts=_LOOK_UP_TIMEOUTS)
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

    @property
    def _needs_model(self) -> bool:
        return bool(self._names) or self._place.api_version is not None

    def _named(self, endpoint: Endpoint, request: Request) -> tuple[str, bytes]:
        """Give target and body of a call with the account's own name of its model."""
        asked = read_model(request.body)
        model = self._names.get(asked, asked)
        body = request.body if model == asked else with_model(endpoint.name, request.body, model)
        return self.vendor.target(self._place, request.target, model), body

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
        headers += self._credential
        if self._reconcile and request.call_id:
            headers.append((_CALL_ID_HEADER, request.call_id.encode()))
        return headers


def _packed_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in headers if name.lower() != b"content-encoding"]
    return [*kept, (b"content-encoding", b"gzip")]


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
