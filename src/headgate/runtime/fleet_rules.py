"""What a fleet is told and what it tells: its bounds, its events, its end.

One rule: values only, so that a progress bar or a log needs to know nothing else of the fleet.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal

from headgate.core.jobs import Job
from headgate.ports import Desk

__all__ = ["Desks", "EventKind", "FleetEnd", "FleetEvent", "FleetRules"]

EventKind = Literal[
    "taken_over",  # its runner died; it is claimed again at once
    "started",
    "retried",  # it failed and is queued again; `delay_s` is the back-off
    "ended",  # done or failed for good
    "given_back",  # the fleet stops; it is queued as if the attempt had not been
    "superseded",  # another runner holds the lease; what this attempt does counts no more
    "not_ended",  # its agent did not end within the bound; its lease will run out
    "desk_not_cleared",  # the attempt counts, what was to be tidied after it was not
    "store_troubled",  # the database refused a step, which is tried again
    "draining",
    "stopping",
]
Desks = Callable[[Job], AbstractAsyncContextManager[Desk]]
"""Sets an attempt's desk up (a key of its own, a folder) and clears it afterwards."""


@dataclass(frozen=True, slots=True)
class FleetRules:
    """The bounds of a fleet.

    `most_s` bounds one attempt. `end_within_s` bounds how long agents may take to end when they are told to; it is
    longer than what an agent takes by itself. `patience_s` is how long a step that the database refuses is tried again.
    """

    agents: int = 10
    lease_s: float = 60.0
    first_retry_s: float = 1.0
    most_retry_s: float = 60.0
    most_s: float = 86_400.0
    end_within_s: float = 30.0
    patience_s: float = 20.0
    output_characters: int = 65_536

    @property
    def most_cooling(self) -> int:
        """How many failed jobs may wait out their back-off; when more fail than that, new ones are left alone too."""
        return 4 * self.agents


@dataclass(frozen=True, slots=True)
class FleetEvent:
    """What happened, for those who watch; `job` is the job after it."""

    kind: EventKind
    job: Job | None = None
    delay_s: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class FleetEnd:
    """Why the fleet ended, and how many jobs are in which state."""

    why: Literal["finished", "drained", "stopped"]
    queued: int
    running: int
    done: int
    failed: int
