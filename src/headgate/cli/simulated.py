"""`headgate provider`: the simulated provider as a server.

One rule: what it enforces is what the options say; nothing is read from the environment.
"""

import asyncio
import contextlib
import math
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headgate.adapters.server import Message, Receive, Send, run, serve
from headgate.cli.serving import listen_address
from headgate.core.errors import CallerError
from headgate.testing.provider import FAULT_KINDS, Faults, Latency, ModelLimits, ProviderSettings, SimulatedProvider


@dataclass(frozen=True, slots=True)
class ProviderOptions:
    """The options of the command, as they were written."""

    listen: str
    requests_per_minute: int | None = None
    input_tokens_per_minute: int | None = None
    output_tokens_per_minute: int | None = None
    tokens_per_minute: int | None = None
    burst_s: float = 60.0
    quantum_s: float | None = None
    first_token_s: float = 0.8
    tokens_per_second: float = 70.0
    mean_output_tokens: int = 300
    sessions: Path | None = None
    tool_calls: bool = False
    faults: tuple[str, ...] = ()
    tells_limits: bool = True
    idle_exit_s: float | None = None


def serve_provider(options: ProviderOptions) -> None:
    """Serve until SIGTERM or SIGINT, or for `idle_exit_s` without a request.

    Raises:
        CallerError: an option cannot be used.
    """
    host, port = listen_address(options.listen, ("127.0.0.1", 8585))
    run(_serve(SimulatedProvider(settings_of(options)), host, port, options.idle_exit_s))


def settings_of(options: ProviderOptions) -> ProviderSettings:
    """Give the provider's settings.

    Raises:
        CallerError: an option cannot be used; numbers were read within their bounds.
    """
    if options.sessions is not None and not options.sessions.is_dir():
        raise CallerError(f"--sessions {options.sessions}: there is no such folder")
    limits = ModelLimits(
        requests_per_minute=options.requests_per_minute,
        input_tokens_per_minute=options.input_tokens_per_minute,
        output_tokens_per_minute=options.output_tokens_per_minute,
        tokens_per_minute=options.tokens_per_minute,
        burst_s=options.burst_s,
        quantum_s=options.quantum_s,
    )
    return ProviderSettings(
        limits=(limits,),
        tells_limits=options.tells_limits,
        latency=Latency(options.first_token_s, options.tokens_per_second),
        faults=Faults(probability=dict(_fault(text) for text in options.faults)),
        mean_output_tokens=options.mean_output_tokens,
        tool_calls=options.tool_calls,
        sessions=options.sessions,
    )


def _fault(text: str) -> tuple[str, float]:
    kind, _, share = text.partition("=")
    try:
        probability = float(share)
    except ValueError:
        probability = math.nan
    if kind not in FAULT_KINDS:
        raise CallerError(f"--fault {text[:40]}: expected one of {', '.join(FAULT_KINDS)}, such as 529=0.05")
    if not 0 <= probability <= 1:
        raise CallerError(f"--fault {text[:40]}: expected a probability from 0 to 1 behind the =, such as {kind}=0.05")
    return kind, probability


async def _serve(provider: SimulatedProvider, host: str, port: int, idle_exit_s: float | None) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    last_s = loop.time()
    on_way = 0

    async def counted(scope: Message, receive: Receive, send: Send) -> None:
        nonlocal last_s, on_way
        on_way += 1
        try:
            await provider(scope, receive, send)
        finally:
            on_way -= 1
            last_s = loop.time()

    def look() -> None:
        assert idle_exit_s is not None
        left_s = idle_exit_s - (loop.time() - last_s)
        if on_way == 0 and left_s <= 0:
            stopped.set()
        else:
            loop.call_later(max(left_s, 1.0), look)

    if idle_exit_s is not None:
        look()
    async with serve(counted, host, port, drain_s=1.0) as server:
        bound_host, bound_port = server.address
        print(f"headgate: simulated provider at http://{bound_host}:{bound_port}", flush=True)  # noqa: T201
        await stopped.wait()
    with contextlib.suppress(OSError):  # who started it and read its address may be gone
        print(_books_told(provider.usage()["total"]), flush=True)  # noqa: T201 - the last word


def _books_told(total: Mapping[str, Any]) -> str:
    """Say in one line what the books hold; a spend limit is no matter of waiting, and fails as other faults do."""
    by = {name: count for name, count in total["refused_by"].items() if name != "spend"}
    refused = sum(by.values())
    which = f" ({', '.join(f'{name} {count:,}' for name, count in sorted(by.items()))})" if by else ""
    failed = total["requests_failed"] + total["requests_refused"] - refused
    cached = total["cache_read_tokens"]
    written = total["cache_write_5m_tokens"] + total["cache_write_1h_tokens"]
    return (
        f"headgate: simulated provider: {total['requests_received']:,} requests: {total['requests_served']:,} served, "
        f"{refused:,} refused with 429{which}, {failed:,} failed, {total['requests_cancelled']:,} broken off; "
        f"{total['input_tokens'] + written:,} uncached input, {cached:,} cached input, "
        f"{total['output_tokens']:,} output tokens"
    )
