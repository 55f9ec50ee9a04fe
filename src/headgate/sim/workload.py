"""Workloads: what agents ask of a provider, round by round, before anybody decides what they get.

One rule: what is asked depends on the workload and its seed alone, never on a policy, so that policies are compared on
the same work. Nothing here is read from files, and nothing waits.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import NamedTuple

from headgate.core.errors import CallerError
from headgate.core.usage import Usage

__all__ = [
    "AGENTS",
    "MAX_OUTPUT_TOKENS",
    "Actor",
    "Prefix",
    "Program",
    "Round",
    "Workload",
    "alone",
    "from_zero",
    "keyed",
    "longest_gap",
    "no_agents",
    "scaled",
    "shared_among",
    "within",
]

MAX_OUTPUT_TOKENS = 32_000
"""What a call states as its bound where nothing says it: agents state 32,000 to 64,000 (wire.md section 1)."""

AGENTS = 10
"""How many work through recorded sessions, unless somebody says it."""

_SPREAD_S = 30.0
"""A copy of an actor comes up to so much later than the first: agents that were copied are no choir."""


class Round(NamedTuple):
    """One call. `known_tokens` of its prompt are what the session's call before it sent: a warm cache has them.

    It comes `pause_s` after the answer before it, and not before `at_s` on the workload's clock. `recorded` is what its
    prompt was charged as when it was recorded, None where that is for the cache model to say; `text_bytes` is the size
    of what is sent, where that is known.
    """

    prompt_tokens: int
    output_tokens: int
    known_tokens: int = 0
    pause_s: float = 0.0
    at_s: float = 0.0
    recorded: Usage | None = None
    text_bytes: int | None = None
    max_output_tokens: int = MAX_OUTPUT_TOKENS


class Prefix(NamedTuple):
    """What many sessions' prompts begin with, such as a system prompt and tools: it is one prompt cache for all."""

    name: str
    tokens: int


class Program(NamedTuple):
    """Rounds that belong together: one request to an agent, until it is done.

    Programs of one `session` share a context, and its prompt cache. `interactive`: a person waits for the end of it.
    Scopes are named by `agent`, `session` and `key`. Its prompts begin with `prefix`. In its file it begins at `line`.
    """

    session: str
    agent: str
    rounds: Sequence[Round]
    interactive: bool = False
    key: str | None = None
    model: str | None = None
    prefix: Prefix | None = None
    line: int = 0


@dataclass(frozen=True, slots=True)
class Actor:
    """Somebody who works through programs one after another, from `starts_s` on."""

    starts_s: float
    programs: Iterator[Program]


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload that can be played any number of times: `actors` gives its actors anew, in the order of their begin.

    At `ends_s` it is broken off; None lets it run until all is served. `last_s` is when, on its own clock, the last
    thing comes that is known beforehand; `longest_gap` says before which row of a trace the most time passes.
    """

    title: str
    actors: Callable[[], Iterable[Actor]]
    last_s: float
    ends_s: float | None = None
    longest_gap: Callable[[], str] | None = None


def alone(programs: Iterable[Program]) -> Iterator[Actor]:
    """Give each program to an actor of its own: it comes when it came in the recording, whatever became of others."""
    return (Actor(program.rounds[0].at_s, iter((program,))) for program in programs)


def from_zero(programs: Sequence[Program]) -> list[Program]:
    """Let the first call come at 0 s, and all in the order of their coming."""
    first_s = min(program.rounds[0].at_s for program in programs)
    moved = [
        program._replace(rounds=tuple(each._replace(at_s=each.at_s - first_s) for each in program.rounds))
        for program in programs
    ]
    return sorted(moved, key=lambda program: program.rounds[0].at_s)


def within(name: str, programs: Sequence[Program], hours: float | None) -> Workload:
    """Make a workload of what a trace has within its first hours, or of all: each call comes when it did."""
    if hours is not None:
        kept = (
            program._replace(rounds=tuple(each for each in program.rounds if each.at_s < hours * 3600))
            for program in programs
        )
        programs = [program for program in kept if program.rounds]
    calls = sum(len(program.rounds) for program in programs)
    last_s = max(program.rounds[-1].at_s for program in programs)
    return Workload(
        f"{name}, {calls:,} calls", lambda: alone(programs), last_s, longest_gap=lambda: longest_gap(programs)
    )


def longest_gap(programs: Iterable[Program]) -> str:
    """Say where between the calls of a trace the most time passes; empty where there is one call."""
    moments = sorted(
        (each.at_s, program.line, index) for program in programs for index, each in enumerate(program.rounds)
    )
    gaps = ((after[0] - before[0], after) for before, after in pairwise(moments))
    gap_s, (_, line, index) = max(gaps, default=(0.0, (0.0, 0, 0)))
    if not line:
        return ""
    whose = "a call of the conversation that begins at line" if index else "the call at line"
    return f"{whose} {line:,} comes {gap_s / 86_400:,.1f} days after the one before it"


def no_agents(name: str, agents: int | None) -> None:
    """Return if nobody said how many agents work.

    Raises:
        CallerError: somebody did, of a trace whose calls come by themselves.
    """
    if agents is not None:
        raise CallerError(
            f"--agents {agents} is for recorded sessions; {name} says when its calls come: leave it out, or play "
            "so many times the calls with --agents-scale"
        )


def shared_among(sessions: Sequence[Sequence[Program]], actors: int) -> Iterator[Actor]:
    """Let so many actors work through sessions together, each taking the next when it has ended its last."""
    queue = iter(sessions)

    def work() -> Iterator[Program]:
        for session in queue:
            yield from session

    return (Actor(0.0, work()) for _ in range(min(actors, len(sessions))))


def keyed(workload: Workload, keys: Sequence[str]) -> Workload:
    """Give the workload with its actors working under these keys in turn, whatever the recording says."""
    if not keys:
        return workload

    def under(key: str, programs: Iterator[Program]) -> Iterator[Program]:
        return (program._replace(key=key) for program in programs)

    def actors() -> Iterator[Actor]:
        # One queue may be shared by all actors, and each has to put its own key on what it takes from there.
        return (
            Actor(actor.starts_s, under(keys[number % len(keys)], actor.programs))
            for number, actor in enumerate(workload.actors())
        )

    return Workload(f"{workload.title}, keys {', '.join(keys)}", actors, workload.last_s, workload.ends_s)


def scaled(workload: Workload, agents: float, speed: float, seed: int) -> Workload:
    """Give the workload with so many times the actors, and with everything that is no call passing so much faster.

    Whole times are copies under names of their own; what is left over is a part that is drawn by the seed.
    """
    if agents == 1 and speed == 1:
        return workload

    def actors() -> Sequence[Actor]:
        whole, part = divmod(agents, 1)
        chooser = random.Random(f"{seed}/scale")  # noqa: S311 - a draw that can be repeated, not a secret
        made: list[Actor] = []
        for number in range(ceil(agents)):
            copied = list(workload.actors())
            if number == whole:
                copied = [copied[at] for at in sorted(chooser.sample(range(len(copied)), round(part * len(copied))))]
            made += [_copy(actor, number, speed, chooser.uniform(0, _SPREAD_S) if number else 0.0) for actor in copied]
        return sorted(made, key=lambda actor: actor.starts_s)

    title = workload.title
    if agents != 1:
        title += f", {agents:g} times the agents"
    if speed != 1:
        title += f", {speed:g} times as fast"
    return Workload(title, actors, workload.last_s / speed, workload.ends_s)


def _copy(actor: Actor, number: int, speed: float, later_s: float) -> Actor:
    name = f"+{number}" if number else ""
    return Actor(actor.starts_s / speed + later_s, (_with(program, name, speed, later_s) for program in actor.programs))


def _with(program: Program, name: str, speed: float, later_s: float) -> Program:
    rounds = [
        each._replace(pause_s=each.pause_s / speed, at_s=each.at_s / speed + later_s if each.at_s else 0.0)
        for each in program.rounds
    ]
    return program._replace(session=program.session + name, agent=program.agent + name, rounds=rounds)
