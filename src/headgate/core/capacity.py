"""Capacity: how many more agents of a kind can start now, which limit binds, and when that changes.

One rule: an agent fits where every limit bears its mean use beside all that goes on already, for a stated stretch of
time; what is unknown is said and never counted as nothing. Where the means come from is the caller's affair.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import floor
from typing import Literal

from headgate.core.amounts import Dimension
from headgate.core.levels import Kind
from headgate.core.wording import level_text

Light = Literal["green", "yellow", "red"]

HORIZON_S = 600.0
"""A rate must bear the agents for so long, its burst spread over that, and so must what never resets. A window must
bear them until it resets."""

NEARLY_FULL = 0.8
"""From this share on a limit is nearly full: the same at which sessions and budgets warn."""

FEW = 0.2
"""Fewer than this share of those at work: not much more can start."""

MOST_AGENTS = 1_000_000
"""What is told of agents that use next to nothing."""


@dataclass(frozen=True, slots=True)
class Room:
    """What one limit has left.

    `refill_per_s` is 0 for all but rates. `spent_per_s` is what all callers together use of it now (None: unknown).
    `resets_s` is when a window begins anew, and when a rate is full again. `waiting` calls wait for it now.
    """

    limit: str
    dimension: Dimension
    kind: Kind
    amount: int
    free: int
    refill_per_s: float = 0.0
    spent_per_s: float | None = 0.0
    resets_s: float | None = None
    waiting: int = 0

    @property
    def share(self) -> float:
        """The share in use, 0 to 1."""
        return 1 - self.free / self.amount if self.amount > 0 else 1.0


@dataclass(frozen=True, slots=True)
class AgentNeed:
    """What one agent of the kind uses on average: units per second of work, and of slots how many at once.

    A dimension that is absent is unknown. `at_work` is the mean number of such agents that were measured, `per_call`
    what one of their calls used on average. With `some_unnamed` some calls named neither agent nor session:
    all such calls of a key are taken for one agent's.
    """

    per_s: Mapping[Dimension, float]
    at_work: float = 0.0
    per_call: Mapping[Dimension, float] = field(default_factory=dict)
    some_unnamed: bool = False


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many more can start now; None if nothing is known of such agents, or if no limit bounds them.

    `binding` is the limit that allows the fewest, `changes_s` when that limit resets or has filled again (None: only a
    call that ends can change it). `by_limit` has the number of every limit that could be judged. `closed` says why no
    agent can start whatever the limits have left: the account does not serve.
    """

    agents: int | None
    binding: str | None
    changes_s: float | None
    light: Light
    assumed: str
    by_limit: tuple[tuple[str, int], ...] = ()
    closed: str | None = None


def capacity(rooms: Sequence[Room], need: AgentNeed | None, now_s: float, *, horizon_s: float = HORIZON_S) -> Capacity:
    """Say how many more agents with a need fit into every one of the limits that such an agent meets.

    Two agents that start together count as two: the answer is for all who ask at the same time.
    """
    known = need.per_s if need is not None else {}
    per_call = need.per_call if need is not None else {}
    fits = {room.limit: fit for room in rooms if (fit := _fits(room, known, per_call, now_s, horizon_s)) is not None}
    unjudged = [room.limit for room in rooms if room.limit not in fits]
    by_limit = tuple(fits.items())
    fullest = max((room.share for room in rooms), default=0.0)
    if not fits:
        light: Light = "yellow" if fullest >= NEARLY_FULL else "green"
        return Capacity(None, None, None, light, _assumed(rooms, need, unjudged, horizon_s))
    binding = min(rooms, key=lambda room: fits.get(room.limit, MOST_AGENTS + 1))
    agents = fits[binding.limit]
    few = need is not None and agents < FEW * need.at_work
    light = "red" if agents == 0 else "yellow" if few or fullest >= NEARLY_FULL else "green"
    changes_s = binding.resets_s if binding.resets_s is not None and binding.resets_s > now_s else None
    return Capacity(agents, binding.limit, changes_s, light, _assumed(rooms, need, unjudged, horizon_s), by_limit)


def doubted(told: Capacity, model: str) -> Capacity:
    """Give a capacity for a model that no list knows: it may be new, or a slip of the pen, and is not plainly green."""
    light: Light = "yellow" if told.light == "green" else told.light
    return replace(told, light=light, assumed=f"no list knows a model {model!r} (is the name right?); {told.assumed}")


def closed(told: Capacity, why: str, until_s: float | None) -> Capacity:
    """Give the capacity of an account that does not serve, perhaps until an instant: none, whatever its limits bear."""
    return replace(
        told, agents=0, binding=None, changes_s=until_s, light="red", assumed=f"{why}; {told.assumed}", closed=why
    )


def _fits(
    room: Room,
    known: Mapping[Dimension, float],
    per_call: Mapping[Dimension, float],
    now_s: float,
    horizon_s: float,
) -> int | None:
    """Give how many agents a limit bears; None if that cannot be known.

    One that calls wait for, that is full, or a rate that has not enough for one more call now, bears none.
    """
    if room.waiting:
        return 0
    needed = known.get(room.dimension)
    if room.kind == "rate" and room.free < min(room.amount, max(1.0, per_call.get(room.dimension, 1.0))):
        return 0
    if room.kind == "gauge":
        return 0 if room.free <= 0 else None if needed is None else _whole(room.free, needed)
    if room.free <= 0 and room.kind == "window":
        return 0
    if needed is None or room.spent_per_s is None:
        return None
    for_s = horizon_s if room.kind == "rate" or room.resets_s is None else max(1.0, room.resets_s - now_s)
    return _whole(room.free / for_s + room.refill_per_s - room.spent_per_s, needed)


def _whole(spare: float, needed: float) -> int:
    if spare <= 0:
        return 0
    # A millionth of doubt: 0.3 / 0.1 is 2.9999999999999996, and three agents fit.
    return MOST_AGENTS if needed * MOST_AGENTS <= spare else floor(spare / needed + 1e-6)


def _assumed(rooms: Sequence[Room], need: AgentNeed | None, unjudged: Sequence[str], horizon_s: float) -> str:
    if not rooms:
        return "no limit bounds such agents"
    said = [
        f"{room.waiting} {'call waits' if room.waiting == 1 else 'calls wait'} for {level_text(room.limit)}"
        for room in rooms
        if room.waiting
    ]
    if need is None:
        said.append("no such agent was at work lately, so what one uses is unknown")
    else:
        said.append(
            f"a new agent uses as much as one of those that were measured ({need.at_work:.2g} at work at a time), and "
            "these go on as they do"
        )
        if need.some_unnamed:
            said.append(
                "some calls named neither agent nor session: all that a key makes so counts as one agent, so more of "
                "them may fit than is told"
            )
        said.append(f"rates and what never resets must bear it for {horizon_s:g} s, windows until they reset")
        if unjudged:
            said.append(f"not judged, for its use is unknown: {', '.join(map(level_text, unjudged))}")
    return "; ".join(said)
