"""Workloads: what agents ask of a provider, round by round, before anybody decides what they get.

One rule: what is asked depends on the workload and its seed alone, never on a policy, so that policies are compared on
the same work. Nothing here is read from files, and nothing waits.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil

from headgate.core.usage import Usage

__all__ = ["MAX_OUTPUT_TOKENS", "Actor", "Program", "Round", "Workload", "alone", "scaled", "shared_among"]

MAX_OUTPUT_TOKENS = 32_000
"""What a call states as its bound where nothing says it: agents state 32,000 to 64,000 (wire.md section 1)."""

_SPREAD_S = 30.0
"""A copy of an actor comes up to so much later than the first: agents that were copied are no choir."""


@dataclass(frozen=True, slots=True)
class Round:
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


@dataclass(frozen=True, slots=True)
class Program:
    """Rounds that belong together: one request to an agent, until it is done.

    Programs of one `session` share a context, and its prompt cache. `interactive`: a person waits for the end of it.
    Scopes are named by `agent`, `session` and `key`.
    """

    session: str
    agent: str
    rounds: Sequence[Round]
    interactive: bool = False
    key: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Actor:
    """Somebody who works through programs one after another, from `starts_s` on."""

    starts_s: float
    programs: Iterator[Program]


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload that can be played any number of times: `actors` gives its actors anew, in the order of their begin.

    At `ends_s` it is broken off; None lets it run until all is served. `last_s` is when, on its own clock, the last
    thing comes that is known beforehand.
    """

    title: str
    actors: Callable[[], Iterable[Actor]]
    last_s: float
    ends_s: float | None = None


def alone(programs: Iterable[Program]) -> Iterator[Actor]:
    """Give each program to an actor of its own: it comes when it came in the recording, whatever became of others."""
    return (Actor(program.rounds[0].at_s, iter((program,))) for program in programs)


def shared_among(programs: Sequence[Program], actors: int) -> Iterator[Actor]:
    """Let so many actors work through programs together, each taking the next when it has ended its last."""
    queue = iter(programs)
    return (Actor(0.0, queue) for _ in range(min(actors, len(programs))))


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
        replace(each, pause_s=each.pause_s / speed, at_s=each.at_s / speed + later_s if each.at_s else 0.0)
        for each in program.rounds
    ]
    return replace(program, session=program.session + name, agent=program.agent + name, rounds=rounds)
