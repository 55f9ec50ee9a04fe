"""A gateway that runs elsewhere, for the runner of a fleet: the `RunGateway` over its control API.

One rule: what goes wrong on the way is told by address and cause and tried again within a bound; a key is in no message
and in no file.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from headgate.adapters.providers.http import HttpClient, Timeouts, parse_url
from headgate.cli.run_gateway import GROUPS, KEY_LIFE_S, SHOWN_KINDS, LentKey, RunBooks, RunNow, is_shown, shown_limits
from headgate.core.errors import CallerError, HeadgateError, ProviderError
from headgate.core.jobs import Job
from headgate.core.ledger import Attempt
from headgate.core.scopes import scope_name
from headgate.gateway.run_books import attempt_of, limit_of

log = logging.getLogger("headgate")

PATIENCE_S = 60.0
"""How long a gateway that is not there is waited for: it may be starting anew."""
LOOK_AGAIN_S = 1.5
"""How old figures may be that are shown: a gateway is there for calls, not for those who watch."""
MOST_ROWS = 1_000_000
"""As many as a ledger gives of a run."""

_TIMEOUTS = Timeouts(pool_s=30.0, connect_s=5.0, first_byte_s=60.0, idle_s=30.0)
_END_WITHIN_S = 10.0
"""An agent that is told to end must not hang on a gateway that does not answer."""
_MOST_ANSWER_BYTES = 64 * 1024 * 1024
_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.25, 5.0
_DONE, _UNAUTHORIZED, _NOT_FOUND = (200, 201), 401, 404
_COMING_BACK = (502, 503, 504)
"""It drains, or something before it finds it gone."""


class OtherGateway:
    """One run at a gateway elsewhere; `key` is the user's own there, None where none is needed."""

    def __init__(self, client: HttpClient, url: str, run: str, key: str | None) -> None:
        """Speak for `run`; nothing is sent yet.

        Raises:
            CallerError: `url` is no address.
        """
        try:
            self._origin, _ = parse_url(url)
        except ValueError as error:
            raise CallerError(f"--gateway: {error}") from error  # not the address: it may hold a password
        self.url = f"{self._origin.scheme}://{self._origin.label}"
        self._client = client
        self._run = run
        self._key = key
        self._under: str | None = None
        self._last: tuple[float, RunNow] | None = None

    async def check(self) -> None:
        """Return when the gateway is there and makes keys for this run's agents.

        Raises:
            CallerError: it does not.
        """
        try:
            self._under = (await self._lend([])).get("under")
        except ProviderError as error:
            raise CallerError(f"--gateway {self.url}: {error}") from error

    async def lend_key(self, job: Job) -> LentKey:
        """Give a key for one attempt of a job; waits for a gateway that is away."""
        answer = await self._lend([job.name], patience_s=PATIENCE_S)
        (made,) = answer["keys"]
        return LentKey(made["id"], made["key"])

    async def end_key(self, key: LentKey) -> None:
        """End a key; when that cannot be done it is said, and the key ends by itself."""
        try:
            async with asyncio.timeout(_END_WITHIN_S):
                await self._ask("DELETE", f"/api/v1/keys/{key.id}")
        except (HeadgateError, TimeoutError) as error:
            log.warning("key %s was not ended and will expire: %s", key.id, str(error) or "no answer in time")

    def refused_for_good(self, secret: str) -> str | None:
        """Give None: what agents are told elsewhere is not heard here."""
        del secret
        return None

    async def now(self) -> RunNow:
        """Say what goes on, at most `LOOK_AGAIN_S` ago."""
        now_s = asyncio.get_running_loop().time()
        if self._last is None or now_s - self._last[0] >= LOOK_AGAIN_S:
            usage = {"group_by": ",".join(GROUPS), "run": self._run}
            answers = await asyncio.gather(
                self._ask("GET", "/api/v1/limits", {"scope": ",".join((*SHOWN_KINDS, "key"))}),
                self._ask("GET", "/api/v1/queue"),
                self._ask("GET", "/api/v1/usage", usage),
            )
            limits, queue, used = answers
            shown = [row for row in limits["limits"] if is_shown(row["scope"], self._run, self._under)]
            waiting = [row for row in queue["waiting"] if row["run"] == self._run]
            self._last = (now_s, RunNow(limits=shown, waiting=waiting, usage=used["groups"]))
        return self._last[1]

    def look_anew(self) -> None:
        """Let the next look see what is there, however short ago the last one was."""
        self._last = None

    async def books(self) -> RunBooks:
        """Give the run's rows and limits; waits for a gateway that is away."""
        run = f"/api/v1/runs/{quote(self._run, safe='')}"
        calls: list[Attempt] = []
        after: int | None = 0
        while after is not None and len(calls) < MOST_ROWS:
            page = await self._ask("GET", f"{run}/attempts", {"after": str(after)}, patience_s=PATIENCE_S)
            calls += map(attempt_of, page["attempts"])
            after = page["next"]
        met = await self._ask("GET", f"{run}/limits", patience_s=PATIENCE_S)
        return RunBooks(calls, shown_limits([*map(limit_of, met["limits"])], calls, self._run, self._under))

    async def _lend(self, agents: list[str], *, patience_s: float = 0.0) -> dict[str, Any]:
        # What the gateway would make of a longer name anyhow.
        wish = {"run": self._run, "agents": [scope_name(agent) for agent in agents], "expires_in_s": KEY_LIFE_S}
        return await self._ask("POST", "/api/v1/keys", body=json.dumps(wish).encode(), patience_s=patience_s)

    async def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: bytes = b"",
        patience_s: float = 0.0,
    ) -> dict[str, Any]:
        """Ask the control API, again and again within `patience_s` while the gateway is not there.

        Raises:
            CallerError: it refuses.
            ProviderError: it cannot be reached.
        """
        target = f"{path}?{urlencode(query)}" if query else path
        give_up_s = asyncio.get_running_loop().time() + patience_s
        pause_s = _FIRST_PAUSE_S
        while True:
            late = asyncio.get_running_loop().time() + pause_s > give_up_s
            try:
                status, answer = await self._send(method, target, body)
            except ProviderError as error:
                if late or not error.failure.retryable:
                    raise
            else:
                if late or status not in _COMING_BACK:
                    return self._understood(status, answer, path)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MOST_PAUSE_S)

    async def _send(self, method: str, target: str, body: bytes) -> tuple[int, bytes]:
        headers = [(b"content-type", b"application/json")] if body else []
        if self._key is not None:
            headers.append((b"x-api-key", self._key.encode()))
        async with self._client.send(
            method, self._origin, target.encode(), headers=headers, body=body, timeouts=_TIMEOUTS
        ) as reply:
            return reply.status, await reply.read(_MOST_ANSWER_BYTES)

    def _understood(self, status: int, answer: bytes, path: str) -> dict[str, Any]:
        try:
            shape = json.loads(answer)
        except ValueError:
            shape = None
        if status in _DONE and isinstance(shape, dict):
            return shape
        error = shape.get("error") if isinstance(shape, dict) else None
        said = error.get("message") if isinstance(error, dict) else None
        hint = ""
        if status == _UNAUTHORIZED:
            hint = "; put one of its keys into HEADGATE_KEY"
        elif status == _NOT_FOUND and said is None:
            hint = "; is there a Headgate of this version?"
        raise CallerError(f"--gateway {self.url} answered {status} at {path}: {said or 'no reason given'}{hint}")
