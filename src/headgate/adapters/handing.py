"""Handing on: one process accepts connections and hands each to the worker that has the fewest.

One rule: a connection is in one process at a time; what a worker that died was handed is gone with it, nothing else.
Nothing is read from a connection here. Where all workers are full or gone, new connections wait in the kernel.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

__all__ = ["Handed", "Handing"]

log = logging.getLogger("headgate.server")

_MOST_AT_ONCE = 64
"""Connections accepted or taken in one pass of the loop, so that messages and signals have their turn."""
_PAUSE_S = 0.01
"""After the kernel refused more descriptors, or no worker could take one: when it is tried again."""
_CLOSED = b"-"
_HANDED = b"+"
_READ_BYTES = 65_536
# Per process and per user there are only so many descriptors; both come back when connections end.
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS}


class Handing:
    """Accepts on listening sockets for the workers that were added."""

    def __init__(self, listeners: Sequence[socket.socket]) -> None:
        """Begin with no worker: nothing is accepted yet."""
        self._loop = asyncio.get_running_loop()
        self._listeners = list(listeners)
        self._channels: dict[int, socket.socket] = {}
        self._open: dict[int, int] = {}
        self._spared: set[int] = set()
        self._accepts = False
        self._again: asyncio.TimerHandle | None = None
        self._turn = 0
        self._held: socket.socket | None = None
        """A connection that nobody could take yet."""
        for listener in listeners:
            listener.settimeout(0)

    def add(self, worker: int, channel: socket.socket) -> None:
        """Hand connections to a worker at the other end of a channel from now on."""
        channel.settimeout(0)
        self._channels[worker], self._open[worker] = channel, 0
        self._loop.add_reader(channel.fileno(), self._count_closed, worker)
        self._look()

    def remove(self, worker: int) -> None:
        """Hand a worker nothing more; its channel is closed."""
        channel = self._channels.pop(worker, None)
        self._open.pop(worker, None)
        self._spared.discard(worker)
        if channel is not None:
            self._loop.remove_reader(channel.fileno())
            channel.close()
        self._look()

    def spare(self, worker: int, *, wanted: bool) -> None:
        """Hand a worker nothing while others can take it: it does not answer; or hand it its part again."""
        if wanted:
            self._spared.add(worker)
        else:
            self._spared.discard(worker)

    @property
    def counts(self) -> dict[int, int]:
        """How many connections each worker has."""
        return dict(self._open)

    def stop(self) -> None:
        """Accept nothing more, for good: whoever connects from now on is refused."""
        self._pause()
        if self._again is not None:
            self._again.cancel()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        if self._held is not None:
            self._held.close()

    def _look(self) -> None:
        """Accept while there is somebody to hand on to."""
        if self._channels and self._held is not None:
            held, self._held = self._held, None
            self._hand_on(held)
        if self._channels and self._held is None and not self._accepts:
            self._accepts = True
            for listener in self._listeners:
                self._loop.add_reader(listener.fileno(), self._accept, listener)
        elif not self._channels:
            self._pause()

    def _pause(self) -> None:
        if self._accepts:
            self._accepts = False
            for listener in self._listeners:
                self._loop.remove_reader(listener.fileno())

    def _pause_a_moment(self) -> None:
        self._pause()
        if self._again is None or self._again.cancelled() or self._again.when() <= self._loop.time():
            self._again = self._loop.call_later(_PAUSE_S, self._look)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_MOST_AT_ONCE):
            if not self._accepts:
                return
            try:
                connection, _address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                log.warning("a connection was not accepted for now: %s", error)
                self._pause_a_moment()
                return
            self._hand_on(connection)

    def _hand_on(self, connection: socket.socket) -> None:
        """Hand a connection to whoever has the fewest and can take it; among equals they take turns."""
        self._turn += 1
        turn, all_of_them = self._turn, len(self._open)

        def order(worker: int) -> tuple[bool, int, int]:
            return worker in self._spared, self._open[worker], (worker + turn) % all_of_them

        for worker in sorted(self._open, key=order):
            with suppress(OSError):  # it is full, or has just gone: its end is noticed elsewhere
                socket.send_fds(self._channels[worker], [_HANDED], [connection.fileno()])
                self._open[worker] += 1
                connection.close()
                return
        self._held = connection
        self._pause_a_moment()

    def _count_closed(self, worker: int) -> None:
        try:
            closed = self._channels[worker].recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            closed = b""
        if closed:
            self._open[worker] -= len(closed)
        else:
            self.remove(worker)


class Handed:
    """The end of a channel in a worker, which takes what is handed on over it."""

    def __init__(self, channel: socket.socket, take: Callable[[socket.socket], None]) -> None:
        """Give each connection to `take`, until `end`."""
        self._loop = asyncio.get_running_loop()
        self._channel = channel
        self._take = take
        self._closed = 0
        channel.settimeout(0)
        self._loop.add_reader(channel.fileno(), self._receive)

    def closed(self) -> None:
        """Tell that a connection that was handed on has ended."""
        self._closed += 1
        if self._closed == 1:
            self._loop.call_soon(self._tell)

    def end(self) -> None:
        """Take nothing more."""
        if self._channel.fileno() >= 0:
            self._loop.remove_reader(self._channel.fileno())
            self._channel.close()

    def _receive(self) -> None:
        for _ in range(_MOST_AT_ONCE):
            try:
                words, handed, _flags, _address = socket.recv_fds(self._channel, 1, 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                words, handed = b"", []
            for number in handed:
                self._take(socket.socket(fileno=number))
            if not words:
                self.end()
                return
            if not handed:
                self.closed()  # it came without its descriptor: there is no room for more in this process

    def _tell(self) -> None:
        try:
            self._closed -= self._channel.send(_CLOSED * self._closed)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._closed = 0  # nobody counts any more
        if self._closed:
            self._loop.call_later(_PAUSE_S, self._tell)
