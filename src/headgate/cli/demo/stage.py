"""The example's stage: a simulated provider in a process of its own, and a configuration that points at it.

One rule: the provider outlives the runner for a while, so that a runner killed with -9 can be resumed against the same
provider, and what it counted can be compared. It ends by itself when nobody calls.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import psutil

from headgate.adapters.config import Config, load_config
from headgate.adapters.providers.http import HttpClient, HttpError, parse_url
from headgate.core.errors import CallerError, ProviderError
from headgate.core.retries import Failure

PROVIDER = (
    *("--requests-per-minute", "600", "--input-tokens-per-minute", "300000", "--output-tokens-per-minute", "90000"),
    *("--burst-s", "6", "--first-token-s", "0.4", "--tokens-per-second", "150", "--mean-output-tokens", "120"),
    *("--idle-exit-s", "300"),
)
_KEY = "HEADGATE_EXAMPLE_KEY"
_START_TRIES = 400


@dataclass(slots=True)
class Stage:
    """Where the example plays: its configuration, and the simulated provider's address (None: a real provider).

    `keep` leaves the provider running for a while, so that the run can be resumed against it.
    """

    config: Config
    provider: str | None
    keep: bool = False

    async def provider_usage(self) -> dict[str, Any] | None:
        """Ask the simulated provider what it counted; None where there is none or it does not answer."""
        if self.provider is None:
            return None
        origin, _ = parse_url(self.provider)
        client = HttpClient()
        try:
            async with client.send("GET", origin, b"/_provider/usage", headers=[]) as reply:
                found = json.loads(await reply.read(16 * 1024 * 1024))
        except HttpError:
            return None
        finally:
            await client.close()
        return found if isinstance(found, dict) else None


@asynccontextmanager
async def open_stage(
    folder: Path, *, wanted: bool, real: bool, note: Callable[[str], None]
) -> AsyncIterator[Stage | None]:
    """Set the example's stage in a run's folder, or find it as it stood when the runner was killed.

    Raises:
        CallerError: `real` was asked for, and there is no ANTHROPIC_API_KEY.
        ProviderError: the simulated provider did not start.
    """
    if not wanted:
        yield None
        return
    key = os.environ.get("ANTHROPIC_API_KEY")
    if real:
        if not key:
            raise CallerError("--real needs ANTHROPIC_API_KEY in the environment")
        note("the example uses your Anthropic account, for $2 at the most")
        yield Stage(_config(folder, "https://api.anthropic.com", key, reconcile=False), None)
        return
    if key:
        note("ANTHROPIC_API_KEY is set, but the example spends nothing: it uses the simulated provider (else --real)")
    else:
        note("no ANTHROPIC_API_KEY in the environment: the example uses the simulated provider, and spends nothing")
    process, address = await _provider(folder)
    stage = Stage(_config(folder, address, "sk-simulated-example", reconcile=True), address)
    try:
        yield stage
    finally:
        if not stage.keep:
            with suppress(psutil.NoSuchProcess):
                process.terminate()


async def _provider(folder: Path) -> tuple[psutil.Process, str]:
    pid_file, log = folder / "provider.json", folder / "provider.log"
    if pid_file.exists():
        kept = json.loads(pid_file.read_text())
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(kept["pid"])
            if process.create_time() == kept["created"]:
                return process, kept["address"]
    command = [sys.executable, "-m", "headgate", "provider", "--listen", "127.0.0.1:0", *PROVIDER]
    with log.open("wb") as out:
        # A session of its own: it must not die of the Ctrl-C or the kill that its runner gets.
        started = subprocess.Popen(  # noqa: S603, ASYNC220 - our own command; it returns at once
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    process = psutil.Process(started.pid)
    for _ in range(_START_TRIES):
        said = log.read_text()
        if "http://" in said:
            address = "http://" + said.split("http://")[1].split()[0]
            kept = {"pid": started.pid, "created": process.create_time(), "address": address}
            pid_file.write_text(json.dumps(kept))
            return process, address
        if started.poll() is not None:
            break
        await asyncio.sleep(0.025)
    message = f"the simulated provider did not start: {log.read_text()[-500:]}"
    raise ProviderError(message, Failure("connection", "not_started", sent=False))


def _config(folder: Path, address: str, key: str, *, reconcile: bool) -> Config:
    text = files("headgate.cli.demo").joinpath("headgate.toml").read_text(encoding="utf-8")
    text = text.replace("{provider}", address).replace("{reconcile}", str(reconcile).lower())
    # The store is the example's own, beside the runs.
    text = text.replace("sqlite:///headgate.sqlite", f"sqlite:///{folder.parent.parent}/headgate.sqlite")
    path = folder / "headgate.toml"
    path.write_text(text)
    return load_config(path, {**os.environ, _KEY: key})
