"""Progress: what a fleet is doing, on a terminal as a picture that moves, elsewhere as a line now and then.

One rule: it only reads. Figures that cannot be had are missing from what is shown; they never end the work.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Literal

from rich.console import Console
from rich.live import Live

from headgate.cli.progress_picture import History, LimitRow, Snapshot, UsageRow, WaitingRow, line, picture
from headgate.cli.wording import clock_text
from headgate.core.errors import HeadgateError

__all__ = ["LimitRow", "ProgressConsole", "Snapshot", "UsageRow", "WaitingRow", "show_progress"]

Style = Literal["picture", "lines", "none"]

# Two pictures a second look alive and cost the fleet's process little; more than four would cost it for nothing.
_PICTURE_EVERY_S = 0.5
_LOOK_EVERY_S = 1.0
_LINE_EVERY_S = 5.0


class ProgressConsole(Console):
    """A console whose reader may leave: rich's own would exit the process, and the fleet with it."""

    def on_broken_pipe(self) -> None:
        """Say so to whoever prints."""
        raise BrokenPipeError


@asynccontextmanager
async def show_progress(
    run: str, read: Callable[[], Awaitable[Snapshot]], console: ProgressConsole, style: Style | None = None
) -> AsyncIterator[None]:
    """Show progress on the console while the block runs, the last state included.

    `read` gives a snapshot; it is asked at most twice a second. Without a `style` a terminal gets the picture, anything
    else lines: the first, the last, and between them one every five seconds at the most, when something has changed.
    """
    if style == "none":
        yield
        return
    shown = (
        _Picture(console)
        if (style or ("picture" if console.is_terminal else "lines")) == "picture"
        else _Lines(console)
    )
    loop = asyncio.get_running_loop()
    history = History(run, loop.time())

    async def look(*, last: bool = False) -> None:
        history.add(await _read(read, history), loop.time())
        shown.show(history, loop.time(), last=last)

    async def keep_looking() -> None:
        with suppress(OSError):  # nobody reads any more, as with `| head`: the work goes on unwatched
            while True:
                await look()
                await asyncio.sleep(shown.every_s)

    looking = asyncio.create_task(keep_looking(), name="progress")
    shown.begin()
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.wait({looking})
        with suppress(OSError):
            try:
                await look(last=True)
            finally:
                shown.end()


async def _read(read: Callable[[], Awaitable[Snapshot]], history: History) -> Snapshot:
    try:
        return await read()
    except HeadgateError as error:
        before = history.snapshots[-1][1] if history.snapshots else Snapshot({})
        return replace(before, note=f"no figures: {error}")


class _Picture:
    """Draws over what it drew before."""

    every_s = _PICTURE_EVERY_S

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=False, vertical_overflow="crop")

    def begin(self) -> None:
        self._live.start()

    def show(self, history: History, now_s: float, *, last: bool) -> None:
        del now_s, last
        self._live.update(picture(history), refresh=True)

    def end(self) -> None:
        self._live.stop()


class _Lines:
    """Writes a line when there is something new to say, and not too often."""

    every_s = _LOOK_EVERY_S

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = ""
        self._said_s: float | None = None

    def begin(self) -> None:
        pass

    def show(self, history: History, now_s: float, *, last: bool) -> None:
        news = line(history)
        is_due = self._said_s is None or now_s - self._said_s >= _LINE_EVERY_S
        if news == self._said or not (is_due or last):
            return
        self._said, self._said_s = news, now_s
        at = clock_text(now_s - history.started_s)
        self._console.print(f"{at:>7}  {news}", markup=False, highlight=False, soft_wrap=True)

    def end(self) -> None:
        pass
