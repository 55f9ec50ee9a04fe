"""Serving: the life of a call at the simulated provider, from its bytes to the books.

One rule: identify, read, admit, charge, then answer; a call that is refused or malformed has charged nothing.
Routing and control stand in `application`, the production of an answer in `generation`.
"""

import asyncio
import itertools
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http import HTTPStatus

import msgspec

from headgate.testing.provider.answers import Answer, clip, write
from headgate.testing.provider.anthropic_request import MessagesHead, read_head, read_messages
from headgate.testing.provider.anthropic_wire import AnthropicVendor
from headgate.testing.provider.asked import Asked, RejectedError, seed_of
from headgate.testing.provider.buckets import Dimension, Pool
from headgate.testing.provider.counting import Books, Entry, Usage
from headgate.testing.provider.credentials import UNKNOWN, Credential, Credentials
from headgate.testing.provider.dialect import Dialect, Headers, Reply, Vendor
from headgate.testing.provider.doors import Counting
from headgate.testing.provider.exchange import BodyTooLargeError, ClientGoneError, Exchange
from headgate.testing.provider.faults import FaultChooser
from headgate.testing.provider.generation import Call, generate
from headgate.testing.provider.openai_embeddings import embeddings_document, read_embeddings
from headgate.testing.provider.openai_wire import OpenAIVendor
from headgate.testing.provider.plan_windows import Plan
from headgate.testing.provider.prompt_cache import PromptCache, Written
from headgate.testing.provider.recorded import RecordedTurn, SessionError
from headgate.testing.provider.recorded_answers import SessionFolder, recorded_answer
from headgate.testing.provider.settings import ProviderSettings

__all__ = ["Service"]

_JSON: Headers = [(b"content-type", b"application/json")]
# Faults that end a call before its first byte; 402 and 403 are decided before anything is charged.
_FORBIDDEN = {"402": "Your credit balance is too low.", "403": "Your API key does not have permission to do this."}
_BEDROCK_OUTPUT_FACTOR = 5
_BROKEN = {"500": "Internal server error", "504": "The request timed out.", "529": "Overloaded"}


@dataclass(slots=True)
class _Visit:
    """A request that came in with a good key."""

    exchange: Exchange
    vendor: Vendor
    credential: Credential
    request_id: str
    body: bytes
    plan: Plan
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class _Objection:
    """Why a call is not served; `refused_by` names the limit, and is empty where the call failed."""

    status: int
    body: bytes
    headers: Headers = field(default_factory=list)
    refused_by: str = ""


@dataclass(slots=True)
class _Read:
    """What a request asks for, what its prompt costs, and what it will be answered."""

    asked: Asked
    prompt: Usage
    written: Sequence[Written]
    answer: Answer


class Service:
    """Answers calls under the limits of its settings; one instance is one provider."""

    def __init__(self, settings: ProviderSettings, wall_s: Callable[[], float]) -> None:
        self.settings = settings
        self.books = Books(settings.calls_remembered)
        self.credentials = Credentials(settings)
        self.faults = FaultChooser(settings.faults)
        self._cache = PromptCache()
        self._sessions = None if settings.sessions is None else SessionFolder(settings.sessions)
        self._wall_s = wall_s
        # Unlike the answers, ids must not repeat when a provider starts again: ledgers keep them for years.
        self._id_prefix = secrets.token_hex(6)
        self._id_numbers = itertools.count(1)

    async def answer(self, exchange: Exchange, dialect: Dialect) -> None:
        """Serve one of the endpoints that answer with text."""
        visit = await self._enter(exchange, dialect.vendor)
        if visit is None:
            return
        try:
            read = self._read(visit, dialect)
            visit.fault = self._chosen_fault(exchange)
        except RejectedError as rejected:
            await self._reject(visit, rejected)
            return
        entry = self._open(visit, read.asked.model)
        pool = visit.credential.pool(read.asked.model, _now_s())
        reserved = await self._admit(visit, entry, pool, read.asked, read.prompt)
        if reserved is None:
            return
        call = self._call(visit, read, entry, pool, dialect)
        try:
            await generate(call, exchange, self.settings.latency)
        except ClientGoneError:
            entry.close("cancelled")
        except asyncio.CancelledError:
            entry.close("cancelled")
            raise
        finally:
            entry.close("failed")
            exchange.close()
            _settle_reservation(entry, pool, reserved, exchange.counting)

    async def embed(self, exchange: Exchange) -> None:
        """Serve `POST /v1/embeddings`."""
        visit = await self._enter(exchange, OpenAIVendor())
        if visit is None:
            return
        try:
            read = read_embeddings(visit.body)
            self._check_model(read.asked.model)
            visit.fault = self._chosen_fault(exchange)
        except RejectedError as rejected:
            await self._reject(visit, rejected)
            return
        entry = self._open(visit, read.asked.model)
        pool = visit.credential.pool(read.asked.model, _now_s())
        prompt = Usage(input_tokens=read.asked.prompt_tokens)
        if await self._admit(visit, entry, pool, read.asked, prompt) is None:
            return
        try:
            await exchange.wait(self.settings.latency.first_token_s)
        except ClientGoneError:
            entry.close("cancelled")
            return
        finally:
            exchange.close()
        entry.close("done")
        body = embeddings_document(read, prompt, hides_usage=visit.fault == "missing-usage")
        await exchange.respond(HTTPStatus.OK, [*_JSON, *self._headers(visit, pool)], body)

    async def count_tokens(self, exchange: Exchange) -> None:
        """Serve `POST /v1/messages/count_tokens`, which is bound by no limit and counted nowhere."""
        visit = await self._enter(exchange, AnthropicVendor())
        if visit is None:
            return
        try:
            recorded = self._recorded(visit)
            if recorded is None:
                asked = read_messages(visit.body, counting_only=True)
                self._check_model(asked.model)
                tokens = asked.prompt_tokens
            else:
                tokens = recorded[0].usage.prompt_tokens
        except RejectedError as rejected:
            await self._send_error(visit, rejected)
            return
        body = msgspec.json.encode({"input_tokens": tokens})
        await exchange.respond(HTTPStatus.OK, [*_JSON, *self._headers(visit, None)], body)

    async def _enter(self, exchange: Exchange, vendor: Vendor) -> _Visit | None:
        """Take in the body and the credential; None when the request was already answered."""
        request_id = f"req_{self._id_prefix}{next(self._id_numbers):010d}"
        headers = [*_JSON, (vendor.request_id_header, request_id.encode())]
        limit_bytes = self.settings.body_limit_bytes
        try:
            body = await exchange.body(limit_bytes)
        except ClientGoneError:
            return None
        except BodyTooLargeError:
            self.books.open(UNKNOWN, UNKNOWN, request_id, None).close("failed")
            told = vendor.error(413, f"Request exceeds the maximum size of {limit_bytes} bytes", request_id)
            # The rest of the body is not read, so the connection cannot be used again.
            await exchange.respond(413, [*headers, (b"connection", b"close")], told)
            return None
        credential = self.credentials.identify(exchange.headers)
        if credential is None:
            self.books.open(UNKNOWN, UNKNOWN, request_id, exchange.header(b"x-headgate-call-id")).close("failed")
            await exchange.respond(401, headers, vendor.error(401, "invalid x-api-key", request_id))
            return None
        # Plans are Anthropic's; a credential that is used for both vendors has none at the other.
        plan = credential.plan if vendor.name == "anthropic" else Plan(())
        return _Visit(exchange, vendor, credential, request_id, body, plan)

    def _open(self, visit: _Visit, model: str) -> Entry:
        call_id = visit.exchange.header(b"x-headgate-call-id")
        return self.books.open(visit.credential.name, model, visit.request_id, call_id)

    def _chosen_fault(self, exchange: Exchange) -> str | None:
        try:
            return self.faults.choose(exchange.header(b"x-provider-fault"))
        except ValueError as error:
            raise RejectedError(400, str(error)) from error

    def _check_model(self, model: str) -> None:
        known = self.settings.models
        if known and not any(fnmatchcase(model, each) for each in known):
            raise RejectedError(404, f"model: {model}", param="model")

    def _recorded(self, visit: _Visit) -> tuple[RecordedTurn, MessagesHead] | None:
        session = visit.exchange.header(b"x-claude-code-session-id")
        if self._sessions is None or session is None or session not in self._sessions:
            return None
        head = read_head(visit.body)
        try:
            turn = self._sessions.find(session, head.messages)
        except SessionError as error:
            raise RejectedError(500, str(error)) from error
        return None if turn is None else (turn, head)

    def _read(self, visit: _Visit, dialect: Dialect) -> _Read:
        recorded = self._recorded(visit) if visit.vendor.name == "anthropic" else None
        if recorded is not None:
            return self._read_recorded(*recorded)
        asked = dialect.read(visit.body)
        self._check_model(asked.model)
        space = (visit.credential.name, asked.model)
        if visit.vendor.name == "openai":
            prompt, written = self._cache.automatic(space, asked.blocks, _now_s())
        elif asked.breakpoints:
            prompt, written = self._cache.marked(space, asked.blocks, asked.breakpoints, _now_s())
        else:
            prompt, written = Usage(input_tokens=asked.prompt_tokens), []
        answer = write(
            asked,
            mean_tokens=self.settings.mean_output_tokens,
            sigma=self.settings.output_sigma,
            call_tools=self.settings.tool_calls,
            dictated_tokens=_dictated_tokens(visit.exchange),
        )
        return _Read(asked, prompt, written, answer)

    def _read_recorded(self, turn: RecordedTurn, head: MessagesHead) -> _Read:
        self._check_model(head.model)
        asked = Asked(
            model=head.model,
            stream=head.stream,
            max_tokens=head.max_tokens,
            prompt_tokens=turn.usage.prompt_tokens,
            blocks=[],
            seed=seed_of(head.model, turn.session_id, turn.index),
        )
        usage = turn.usage
        prompt = Usage(
            input_tokens=usage.input_tokens,
            cache_read_tokens=usage.cache_read_tokens,
            cache_write_5m_tokens=usage.cache_write_5m_tokens,
            cache_write_1h_tokens=usage.cache_write_1h_tokens,
        )
        # Never longer than the caller allows: what a budget holds for the call rests on `max_tokens`.
        return _Read(asked, prompt, [], clip(recorded_answer(turn), head.max_tokens))

    async def _admit(self, visit: _Visit, entry: Entry, pool: Pool | None, asked: Asked, prompt: Usage) -> int | None:
        """Admit and charge a call; give what it reserved of OpenAI's tokens, or None when it was answered already."""
        now_s = _now_s()
        needed = _needed(visit, asked, prompt)
        objection = self._objection(visit, pool, asked.model, needed, now_s)
        if objection is not None:
            await self._turn_away(visit, entry, objection, pool)
            return None
        reserved = needed.get("tokens", 0)
        if pool is not None:
            pool.charge("requests", 1, now_s)
            pool.charge("tokens", reserved, now_s)
        if visit.fault in _BROKEN or visit.fault == "disconnect-before":
            # A failed call counts at OpenAI with all that it reserved; at Anthropic it is a request without tokens.
            entry.admitted(Usage(), reserved)
            await self._break(visit, entry, pool, visit.fault)
            return None
        if pool is not None:
            pool.charge("input_tokens", prompt.uncached_tokens, now_s)
        visit.plan.use(prompt.uncached_tokens, now_s, self._wall_s())
        entry.admitted(prompt, reserved)
        return reserved

    def _objection(
        self, visit: _Visit, pool: Pool | None, model: str, needed: dict[Dimension, int], now_s: float
    ) -> _Objection | None:
        """Give why a call may not run, or None; it has charged nothing then."""
        vendor, request_id, fault = visit.vendor, visit.request_id, visit.fault
        if fault in _FORBIDDEN:
            return _Objection(int(fault), vendor.error(int(fault), _FORBIDDEN[fault], request_id))
        spent = visit.plan.refusal(now_s)
        if spent is not None and isinstance(vendor, AnthropicVendor):
            body, headers = vendor.plan_limited(spent.window, spent.wait_s, request_id)
            return _Objection(429, body, headers, f"plan_{spent.window}")
        refusal = None if pool is None else pool.refusal(needed, now_s)
        if refusal is not None:
            body, headers = vendor.rate_limited(refusal, model, request_id)
            return _Objection(429, body, headers, refusal.bucket.dimension)
        if fault == "429":
            body = vendor.error(429, "This request would exceed the rate limit (injected).", request_id)
            return _Objection(429, body, [(b"retry-after", b"1")], "fault")
        if fault == "spend-limit":
            status, body = vendor.spend_limited(request_id)
            return _Objection(status, body, [(b"x-should-retry", b"false")], "spend")
        return None

    async def _break(self, visit: _Visit, entry: Entry, pool: Pool | None, fault: str) -> None:
        if fault == "disconnect-before":
            entry.close("failed")
            await visit.exchange.drop()
            return
        status = visit.vendor.overloaded_status() if fault == "529" else int(fault)
        body = visit.vendor.error(status, _BROKEN[fault], visit.request_id)
        await self._turn_away(visit, entry, _Objection(status, body), pool)

    async def _turn_away(self, visit: _Visit, entry: Entry, objection: _Objection, pool: Pool | None) -> None:
        # Closed before the answer leaves: a client that has it must find the call closed.
        entry.close("refused" if objection.refused_by else "failed", objection.refused_by)
        headers = [*_JSON, *objection.headers, *self._headers(visit, pool)]
        await visit.exchange.respond(objection.status, headers, objection.body)

    async def _reject(self, visit: _Visit, rejected: RejectedError) -> None:
        self._open(visit, UNKNOWN).close("failed")
        await self._send_error(visit, rejected)

    async def _send_error(self, visit: _Visit, rejected: RejectedError) -> None:
        body = visit.vendor.error(rejected.status, rejected.message, visit.request_id, param=rejected.param)
        await visit.exchange.respond(rejected.status, [*_JSON, *self._headers(visit, None)], body)

    def _headers(self, visit: _Visit, pool: Pool | None) -> Headers:
        """Give the headers of every answer: the request's id, and what is left."""
        now_s = _now_s()
        wall_s = self._wall_s()
        if visit.fault == "skew":
            wall_s += self.faults.settings.clock_skew_s
        headers: Headers = [(visit.vendor.request_id_header, visit.request_id.encode())]
        if not self.settings.tells_limits:
            return headers
        if pool is not None:
            headers += visit.vendor.limit_headers(pool, now_s, wall_s)
        return headers + visit.plan.headers(now_s, wall_s)

    def _call(self, visit: _Visit, read: _Read, entry: Entry, pool: Pool | None, dialect: Dialect) -> Call:
        reply = Reply(
            request_id=visit.request_id,
            created_s=int(self._wall_s()),
            asked=read.asked,
            answer=read.answer,
            usage=entry.usage,
            hides_usage=visit.fault == "missing-usage",
        )
        return Call(
            dialect=dialect,
            reply=reply,
            entry=entry,
            pool=pool,
            plan=visit.plan,
            wall_s=self._wall_s,
            headers=lambda: self._headers(visit, pool),
            first_token=lambda: self._cache.commit(read.written, _now_s()),
            fault=visit.fault,
            stall_s=self.faults.settings.stall_s,
            deltas=self.settings.deltas_per_stream,
        )


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _needed(visit: _Visit, asked: Asked, prompt: Usage) -> dict[Dimension, int]:
    """Give what must be there before a call runs (wire.md): Anthropic's output only has to be above nothing."""
    if visit.exchange.counting == "gemini":
        return {"requests": 1, "tokens": asked.prompt_tokens}
    if visit.exchange.counting == "bedrock":
        return {"requests": 1, "tokens": prompt.prompt_tokens + (asked.max_tokens or 0)}
    if visit.vendor.name == "anthropic":
        return {"requests": 1, "input_tokens": prompt.uncached_tokens, "output_tokens": 1}
    return {"requests": 1, "tokens": max(asked.max_tokens or 0, asked.prompt_tokens)}


def _settle_reservation(entry: Entry, pool: Pool | None, reserved: int, counting: Counting) -> None:
    if not reserved or pool is None:
        return
    usage = entry.usage
    if counting == "bedrock":
        unused = reserved - usage.uncached_tokens - _BEDROCK_OUTPUT_FACTOR * usage.output_tokens
    elif pool.limits.refund:
        unused = reserved - usage.prompt_tokens - usage.output_tokens
    else:
        return
    pool.refund("tokens", unused, _now_s())
    entry.refunded(unused)


def _dictated_tokens(exchange: Exchange) -> int | None:
    text = exchange.header(b"x-provider-output-tokens")
    if text is None:
        return None
    if not text.isdigit() or int(text) < 1:
        raise RejectedError(400, f"x-provider-output-tokens is {text!r}; expected a whole number, 1 or more")
    return int(text)
