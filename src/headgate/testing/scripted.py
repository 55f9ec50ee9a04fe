"""Scripted doubles of the ports that a test of the runtime needs: a provider that follows a script, and flat prices.

One rule: they keep the ports' promises (an answer that is left early is cancelled, a failure carries its facts), so
that what passes with them passes with the real ones. For the wire and real limits there is the simulated provider.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from math import ceil

from headgate.core.bounds import Reach
from headgate.core.errors import ProviderError
from headgate.core.notices import NO_NOTICES, Notices
from headgate.core.retries import Failure
from headgate.core.usage import Usage
from headgate.ports import Cost, Fate, Headers, Request

_SOME_USAGE = Usage(100, output_tokens=50)
_COMMON_REACH = Reach(context_window=200_000, max_output_tokens=32_000)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the provider does with one call: it fails, or answers in pieces, `pause_s` before each, and tells its usage.

    The head comes after `head_s`; after `breaks_after` pieces the connection breaks. The input is told with the first
    piece, the output with the last, which may restate the input.
    """

    usage: Usage = _SOME_USAGE
    pieces: int = 2
    pause_s: float = 0.0
    failure: Failure | None = None
    breaks_after: int | None = None
    restated_input: int | None = None
    notices: Notices = NO_NOTICES
    head_s: float = 0.0


@dataclass(slots=True)
class ScriptedAnswer:
    """An answer on its way, as `ports.Answer` has it."""

    reply: Reply
    status: int
    failure: Failure | None
    headers: Headers = ((b"content-type", b"text/event-stream"),)
    usage: Usage | None = None
    output_seen_tokens: int = 0
    model_served: str | None = None
    provider_request: str | None = None

    def notices(self, now_s: float) -> Notices:  # noqa: ARG002 - the script knows no clock
        """Tell of limits what the script says."""
        return self.reply.notices

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Give the pieces in virtual or real time."""
        for number in range(self.reply.pieces):
            if self.reply.pause_s:
                await asyncio.sleep(self.reply.pause_s)
            if self.reply.breaks_after == number:
                raise ProviderError("the connection broke", Failure("connection", "connection_broken"))
            self.usage = self.reply.usage
            if number == self.reply.pieces - 1 and self.reply.restated_input is not None:
                self.usage = self.usage._replace(input_tokens=self.reply.restated_input)
            if number < self.reply.pieces - 1:
                self.usage = self.usage._replace(output_tokens=0, reported=False)
            yield b"piece %d" % number


@dataclass(slots=True)
class ScriptedProvider:
    """Follows a script, one reply a call, the last one for all that come after; remembers what it was sent.

    `fates` answers `look_up`. `open` counts answers on their way, `cancelled` those that were left early.
    """

    script: Sequence[Reply] | Callable[[Request], Reply] = (Reply(),)
    fates: dict[str, Fate] = field(default_factory=dict)
    sent: list[tuple[float, Request]] = field(default_factory=list)
    open: int = 0
    most_open: int = 0
    cancelled: int = 0

    @asynccontextmanager
    async def send(self, request: Request) -> AsyncIterator[ScriptedAnswer]:
        """Answer by the script."""
        reply = self._next(request)
        self.sent.append((asyncio.get_running_loop().time(), request))
        if reply.head_s:
            await asyncio.sleep(reply.head_s)
        if reply.failure is not None and reply.failure.status is None:
            raise ProviderError("no answer", reply.failure)
        status = 200 if reply.failure is None else reply.failure.status or 500
        answer = ScriptedAnswer(reply, status, reply.failure)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            yield answer
        except BaseException:
            self.cancelled += 1
            raise
        finally:
            self.open -= 1

    async def look_up(self, call_id: str) -> Fate | None:
        """Tell a fate that the test knows."""
        return self.fates.get(call_id)

    def _next(self, request: Request) -> Reply:
        if callable(self.script):
            return self.script(request)
        return self.script[min(len(self.sent), len(self.script) - 1)]


@dataclass(frozen=True, slots=True)
class FlatPrices:
    """So many micro-dollars per million tokens, whatever the model; models named in `unknown` have no price.

    All models reach equally far.
    """

    input_micro_usd: int = 3_000_000
    output_micro_usd: int = 15_000_000
    unknown: frozenset[str] = frozenset()
    reaches: Reach = _COMMON_REACH

    def cost(self, model: str, usage: Usage, at_s: float) -> Cost:  # noqa: ARG002 - flat in time too
        """Price a usage."""
        if model in self.unknown:
            return Cost(None, None)
        micro = usage.prompt_tokens * self.input_micro_usd + usage.output_tokens * self.output_micro_usd
        return Cost(ceil(micro / 1_000_000), "flat")

    def reach(self, model: str) -> Reach:  # noqa: ARG002 - as `ports.Prices` has it
        """Give how far any model reaches."""
        return self.reaches
