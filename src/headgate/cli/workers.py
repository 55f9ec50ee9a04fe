"""Several workers behind one port: the process that starts them, hands them connections and changes them together.

One rule: it serves nothing itself. A worker that ends is started anew, so often in a row at the most; what all go by is
kept here, and is changed in all that live or in none.
"""

import asyncio
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from headgate.adapters.config import Config
from headgate.adapters.handing import Handing
from headgate.adapters.server import listeners, run
from headgate.adapters.switchboard import MIDDLE, Switchboard, UnansweredError
from headgate.cli.serving import draining_line, ready_line, refuse_to_call_itself, reload_on, require_token, say
from headgate.cli.worker import Begin
from headgate.compose import open_stores, read_config
from headgate.core.errors import CallerError, HeadgateError
from headgate.core.scheduling import Scheduling

log = logging.getLogger("headgate.workers")

READY_WITHIN_S = 60.0
FIRST_PAUSE_S, MOST_PAUSE_S = 0.1, 30.0
"""Before a worker that ended is started anew; the pause doubles from one end to the next."""
SOUND_S = 60.0
"""A worker that served so long had no part in how the one before it ended."""
MOST_ENDS = 10
"""Ends in a row, each within SOUND_S, after which a worker is left down: two minutes of trying."""
END_GRACE_S = 15.0
"""Beyond `drain_s`, for what a worker settles and closes at its end; then it is killed."""
AGREE_WITHIN_S = 5.0
_CHANGE_BOUND_S = 35.0
WATCH_EVERY_S = 5.0
"""How often each worker is asked whether it answers; one that does not gets no new connections until it does."""

_T = TypeVar("_T")


def serve_with_workers(config: Config, host: str, port: int, workers: int) -> None:
    """Serve with so many processes until SIGTERM or SIGINT.

    Raises:
        HeadgateError: the configuration, the store or the address cannot be used.
    """
    require_token(config, host, port)
    found = listeners(host, port)
    try:
        address = found[0].getsockname()[:2]
        refuse_to_call_itself(config, address[1], host)
        code = run(Parent(config, host, address, workers).serve(found))
    finally:
        for listener in found:
            listener.close()
    if code:
        sys.exit(code)


@dataclass
class _Worker:
    process: asyncio.subprocess.Process
    connections: socket.socket
    began_s: float
    version: int = 0
    """Of what it goes by."""
    ready: asyncio.Event = field(default_factory=asyncio.Event)


class NotStartedError(HeadgateError):
    """A worker was not ready in time, or ended before, and has said why."""

    def __init__(self, why: str, code: int) -> None:
        """Keep the code that it ended with."""
        super().__init__(why)
        self.code = code


class Parent:
    """The process in the middle."""

    def __init__(self, config: Config, host: str, address: tuple[str, int], workers: int) -> None:
        """Begin with no worker."""
        self._config = config
        self._address = address
        path = None if config.path is None else str(config.path)
        self._in_force = Begin(path, config.text, host, address[1])
        self._version = 0
        self._numbers = range(1, workers + 1)
        self._workers: dict[int, _Worker] = {}
        self._have_served = False
        self._all_ready = asyncio.Event()
        self._stopping = asyncio.Event()
        self._changing = asyncio.Lock()
        self._changer: tuple[int, int] | None = None
        """Which worker changes something, and which of its changes that is."""
        self._change_bound: asyncio.TimerHandle | None = None

    async def serve(self, found: Sequence[socket.socket]) -> int:
        """Serve until a signal comes; give the exit code."""
        loop, hung_up = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, hung_up.set)
        async with open_stores(self._config):
            pass  # its schema is brought up to date once, and not by all at the same time
        self._handing = Handing(found)
        answers = {
            "what to begin with": self._tell_beginning,
            "ready": self._is_ready,
            "reload": lambda _body: self.reload(),
            "begin a change": self._begin_change,
            "end a change": self._end_change,
        }
        self._board = Switchboard(MIDDLE, answers)
        self._board.on_lost = self._lost
        keeping = [asyncio.create_task(self._keep(number), name=f"worker {number}") for number in self._numbers]
        reloads = asyncio.create_task(reload_on(hung_up, self.reload), name="reload on SIGHUP")
        watching = asyncio.create_task(self._watch(), name="watch the workers")
        try:
            await self._or_stopped(self._wait_ready(keeping))
            if not self._stopping.is_set():
                self._have_served = True
                say(f"{ready_line(self._config, self._address)}; {len(self._numbers)} workers")
                await self._or_stopped(asyncio.wait(keeping))
            if not self._stopping.is_set():
                log.error("no worker is left, and none can be started")
                return 1
            say(draining_line(self._config))
        except NotStartedError as error:
            log.error("%s", error)  # noqa: TRY400 - the worker has said more
            return error.code or 1
        finally:
            reloads.cancel()
            watching.cancel()
            self._stopping.set()
            self._handing.stop()
            await self._end_all(keeping)
            self._board.close()
        return 0

    # --- starting and ending

    async def _keep(self, number: int) -> None:
        """Run a worker, and another in its place when it ends or cannot be started, until that was too often."""
        loop, ends = asyncio.get_running_loop(), 0
        while not self._stopping.is_set():
            began_s, code, was_ready = loop.time(), 1, False
            try:
                worker = await self._start(number)
            except OSError as error:  # too many processes or open files, or no memory: it may pass
                how = f"worker {number} could not be started ({error})"
            else:
                began_s, code = worker.began_s, await worker.process.wait()
                was_ready = worker.ready.is_set()
                how = f"worker {number} (process {worker.process.pid}) {_how(code)}"
                self._workers.pop(number, None)
                self._handing.remove(number)
                worker.connections.close()
            if self._stopping.is_set():
                return
            if not self._have_served and not was_ready:
                raise NotStartedError(how, code)
            ends = 1 if loop.time() - began_s > SOUND_S else ends + 1
            pause_s = pause_after_s(ends)
            if pause_s is None:
                log.error("%s, %d times in a row: it stays down, and the others go on", how, ends)
                return
            log.warning("%s; another is started in %.3g s", how, pause_s)
            await self._or_stopped(asyncio.sleep(pause_s))

    async def _start(self, number: int) -> _Worker:
        """Start a worker; raises OSError, and keeps nothing open then."""
        with ExitStack() as ours:
            messages, its_messages = map(ours.enter_context, socket.socketpair())
            connections, its_connections = map(ours.enter_context, socket.socketpair())
            theirs = (its_messages.fileno(), its_connections.fileno())
            arguments = map(str, (number, len(self._numbers), *theirs))
            process = await asyncio.create_subprocess_exec(
                # -P: the working folder may have a package of this name.
                *(sys.executable, "-P", "-m", "headgate.cli.worker", *arguments),
                stdin=subprocess.DEVNULL,
                pass_fds=theirs,
            )
            ours.callback(process.kill)
            worker = self._workers[number] = _Worker(process, connections, asyncio.get_running_loop().time())
            ours.callback(self._workers.pop, number)
            await self._board.connect(number, messages)
            ours.pop_all()
        its_messages.close()
        its_connections.close()
        return worker

    async def _wait_ready(self, keeping: Sequence[asyncio.Task[None]]) -> None:
        """Return when all are ready; raises NotStartedError when one ends before, or they take too long."""
        ready = asyncio.create_task(self._all_ready.wait())
        await asyncio.wait({ready, *keeping}, timeout=READY_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        for task in keeping:
            if task.done():
                task.result()
        if not self._all_ready.is_set():
            raise NotStartedError(f"the workers were not ready within {READY_WITHIN_S:.0f} s", 1)

    async def _watch(self) -> None:
        """Hand new connections to no worker that does not answer, for as long as that lasts."""
        stuck: set[int] = set()
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            workers = self._ready
            answers = await self._ask_all(workers, "here", None)
            silent = {number for number, answer in zip(workers, answers, strict=True) if isinstance(answer, Exception)}
            for number in silent - stuck:
                log.warning("worker %d does not answer: new connections go to the others", number)
            for number in workers:
                self._handing.spare(number, wanted=number in silent)
            stuck = silent

    async def _end_all(self, keeping: Sequence[asyncio.Task[None]]) -> None:
        """Let all workers drain and end, and kill those that do not."""
        for number, end in ((signal.SIGTERM, self._config.server.drain_s + END_GRACE_S), (signal.SIGKILL, None)):
            for worker in list(self._workers.values()):
                with suppress(ProcessLookupError):
                    worker.process.send_signal(number)
            if any(not task.done() for task in keeping):
                await asyncio.wait(keeping, timeout=end)
        await asyncio.gather(*keeping, return_exceptions=True)

    async def _or_stopped(self, work: Awaitable[_T]) -> _T | None:
        """Wait for work, or only until this process is told to stop."""
        task = asyncio.ensure_future(work)
        stopped = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            for each in (task, stopped):
                each.cancel()
            await asyncio.gather(task, stopped, return_exceptions=True)

    # --- what all go by

    @property
    def _ready(self) -> list[int]:
        return [number for number, worker in self._workers.items() if worker.ready.is_set()]

    async def _tell_beginning(self, number: int) -> Any:
        self._workers[number].version = self._version
        return msgspec.to_builtins(self._in_force)

    async def _is_ready(self, number: int) -> bool:
        """Let a worker serve, once it goes by what all others do: that may have changed while it began."""
        worker = self._workers[number]
        async with self._changing:
            if worker.version != self._version:
                if self._in_force.text is not None:
                    await self._board.ask(number, "prepare", self._in_force.text, within_s=AGREE_WITHIN_S)
                    await self._board.ask(number, "decide", body=True, within_s=AGREE_WITHIN_S)
                await self._board.ask(number, "schedule", msgspec.to_builtins(self._in_force.scheduling))
                worker.version = self._version
            worker.ready.set()
            self._handing.add(number, worker.connections)
        if len(self._ready) == len(self._numbers):
            self._all_ready.set()
        return True

    async def reload(self) -> list[str]:
        """Let all workers go by the file as it is now, or none; say what has changed, a line each.

        Raises:
            HeadgateError: not all can: nothing has changed.
        """
        async with self._changing:
            path = self._config.path
            config = self._config if path is None else read_config(path)
            workers = self._ready
            answers = await self._ask_all(workers, "prepare", config.text)
            faults = [each for each in answers if isinstance(each, Exception)]
            if faults or not answers:
                for number in workers:
                    self._board.tell(number, "decide", body=False)
                raise _worst(faults)
            done = await self._ask_all(workers, "decide", body=True)
            self._config = config
            self._go_by(workers, text=config.text, scheduling=msgspec.convert(answers[0][1], Scheduling))
        told = [each for each in done if not isinstance(each, Exception)]
        return [*(told[0] if told else answers[0][0]), *_late(done)]

    async def _begin_change(self, asked: Any) -> bool:
        """Let a worker be the only one that changes something, if all are there to follow it."""
        number, which = asked
        change = (number, which)
        await self._changing.acquire()
        self._changer = change
        try:
            answers = await self._ask_all([each for each in self._ready if each != number], "here", None)
        except asyncio.CancelledError:  # the worker has given up meanwhile
            self._change_over(change)
            raise
        faults = [each for each in answers if isinstance(each, Exception)]
        if faults:
            self._change_over(change)
            raise _worst(faults)
        self._change_bound = asyncio.get_running_loop().call_later(_CHANGE_BOUND_S, self._change_over, change)
        return True

    async def _end_change(self, told: Any) -> bool:
        """Let all go by the scheduler that a worker has changed to, or (None) by what they did."""
        number, which, scheduling = told
        if self._changer != (number, which):
            raise UnansweredError("the change took too long, and the others did not follow it; make it again")
        if scheduling is not None:
            others = [each for each in self._ready if each != number]
            self._go_by([number, *others], text=self._in_force.text, scheduling=msgspec.convert(scheduling, Scheduling))
            _late(await self._ask_all(others, "schedule", scheduling))
        self._change_over((number, which))
        return True

    def _lost(self, number: int) -> None:
        if self._changer is not None and self._changer[0] == number:
            self._change_over(self._changer)

    def _change_over(self, change: tuple[int, int]) -> None:
        """Let others change something: this change is made, or will not be."""
        if self._changer == change:
            self._changer = None
            if self._change_bound is not None:
                self._change_bound.cancel()
                self._change_bound = None
            self._changing.release()

    def _go_by(self, workers: Sequence[int], *, text: str | None, scheduling: Scheduling) -> None:
        self._version += 1
        self._in_force = msgspec.structs.replace(self._in_force, text=text, scheduling=scheduling)
        for number in workers:
            if number in self._workers:
                self._workers[number].version = self._version

    async def _ask_all(self, workers: Sequence[int], word: str, body: Any) -> list[Any]:
        """Ask workers at once; give their answers, and the errors of those that have none."""
        asked = (self._board.ask(number, word, body, within_s=AGREE_WITHIN_S) for number in workers)
        return await asyncio.gather(*asked, return_exceptions=True)


def pause_after_s(ends: int) -> float | None:
    """Give how long to wait before a worker is started that has ended so often in a row; None: it stays down."""
    return min(MOST_PAUSE_S, FIRST_PAUSE_S * 2 ** (ends - 1)) if ends <= MOST_ENDS else None


def _worst(faults: Sequence[Exception]) -> Exception:
    """Give the fault to tell: what is wrong with what was asked, before who did not answer."""
    unfit = next((each for each in faults if isinstance(each, CallerError)), None)
    if unfit is not None:
        return unfit
    said = "; ".join(dict.fromkeys(map(str, faults))) or "no worker is there"
    return UnansweredError(f"{said}; nothing was changed")


def _late(answers: Sequence[Any]) -> list[str]:
    """Name who has not said yet that it goes by a change: what it was told waits in its socket."""
    late = [f"{each}: it follows as soon as it reads" for each in answers if isinstance(each, Exception)]
    for each in late:
        log.warning("%s", each)
    return late


def _how(code: int) -> str:
    """Say how a process ended."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
