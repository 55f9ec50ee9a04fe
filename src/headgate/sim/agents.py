"""Generated agents: `agents:N[:HOURS]`, coding agents as published figures describe them.

One rule: every figure stands in `PUBLISHED` or `ASSUMED`, with where it is from; what is drawn follows from these and
the seed. An agent's draws are its own, so they do not depend on when it is served.

Figures: TraceLab (uw-syfi/TraceLab, `artifacts/*/README.md` at commit 0b8a262, data CC BY 4.0), 4,265 sessions and
357,000 rounds of coding agents. None of its text is here. A lognormal is given by its median and sigma; sigma is
ln(p90 / median) / 1.2816 where a p90 is published, ln(p99 / median) / 2.3263 for a p99, and for a mean the square root
of 2 ln(mean / median).
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from headgate.core.errors import CallerError
from headgate.sim.workload import Actor, Prefix, Program, Round, Workload

__all__ = ["ASSUMED", "PUBLISHED", "Assumed", "Lognormal", "Published", "agents_of", "generated_agents"]

MOST_AGENTS = 20_000
MOST_HOURS = 24 * 31.0


@dataclass(frozen=True, slots=True)
class Lognormal:
    """A skewed positive quantity by its median and shape, cut at `most`."""

    median: float
    sigma: float
    most: float

    def draw(self, chooser: random.Random) -> float:
        """Draw one."""
        return min(self.most, self.median * math.exp(self.sigma * chooser.gauss(0.0, 1.0)))


@dataclass(frozen=True, slots=True)
class Published:
    """What is published of coding agents."""

    requests_per_session: Lognormal = Lognormal(1.0, 2.115, 400.0)
    """Median 1, mean 9.2, p99 137 (session_internal_counts)."""

    rounds_per_request: Lognormal = Lognormal(3.0, 1.5, 300.0)
    """Mean 9.3: 8.3 rounds that a tool started for each that a person did. The shape is that of the time to answer a
    request: median 38 s, mean 258 s, p90 384 s (session_timing_distribution)."""

    new_tokens: Lognormal = Lognormal(251.0, 1.79, 100_000.0)
    """Fresh input a round beside the answer before it: median 251 (prefix_append), mean 1,245, for 19.0 % of the 2.34 G
    tokens that 357,000 rounds appended are fresh (redundant_prefill)."""

    output_tokens: Lognormal = Lognormal(252.0, 1.4, 32_000.0)
    """Median 252, p90 below 1,700, p99 some thousands (token_length_distribution)."""

    tool_s: Lognormal = Lognormal(0.3, 2.976, 600.0)
    """Median 0.3 s, p90 13.6 s (session_timing_distribution), p99 of a shell 235 s (tool_category_dashboard)."""

    person_s: Lognormal = Lognormal(86.0, 2.08, 50_000.0)
    """Median 86 s, p90 1,236 s, p99 some 14 h (human_input_wait)."""


@dataclass(frozen=True, slots=True)
class Assumed:
    """What is not published, and what is taken for it."""

    shared_tokens: int = 27_000
    """System prompt and tools, the same for all agents: of the first prompt of the session of Claude Code that TraceLab
    shows whole, 32,272 tokens, 27,217 had been written to the cache by sessions before it."""

    first_tokens: Lognormal = Lognormal(5_000.0, 0.8, 70_000.0)
    """What a session's first prompt adds to that: 5,055 tokens there."""

    window_tokens: int = 200_000
    compact_at: float = 0.92
    compact_to: float = 0.22
    """A context is compacted at 92 % of its window to 22 % of what it was; nothing of it is in the cache then."""

    unattended: float = 0.5
    """Part of the agents that nobody talks to: they begin the next request when the last is done, as in a fleet."""

    starts_within: float = 1 / 6
    """Attended agents begin within the first part of the time; the others begin at once, as a fleet does."""


PUBLISHED = Published()
ASSUMED = Assumed()


def agents_of(text: str, seed: int) -> Workload:
    """Read `agents:N[:HOURS]`.

    Raises:
        CallerError: a number is missing or outside what is allowed.
    """
    expected = f"expected agents:N or agents:N:HOURS, with 1 to {MOST_AGENTS:,} agents and up to {MOST_HOURS:g} hours"
    _, *numbers = text.split(":")
    if len(numbers) not in (1, 2):
        raise CallerError(f"workload {text!r}: {expected}")
    try:
        agents, hours = int(numbers[0]), float(numbers[1]) if len(numbers) > 1 else 1.0
    except ValueError:
        raise CallerError(f"workload {text!r}: {expected}") from None
    if not (1 <= agents <= MOST_AGENTS and 0 < hours <= MOST_HOURS):
        raise CallerError(f"workload {text!r}: {expected}")
    return generated_agents(agents, hours * 3600.0, seed)


def generated_agents(agents: int, ends_s: float, seed: int, assumed: Assumed = ASSUMED) -> Workload:
    """Give agents that work until the end."""

    def actors() -> Sequence[Actor]:
        made = [_actor(number, ends_s, seed, assumed) for number in range(agents)]
        return sorted(made, key=lambda actor: actor.starts_s)

    hours = ends_s / 3600
    many = "agent" if agents == 1 else "agents"
    return Workload(f"{agents:,} coding {many}, {hours:g} h", actors, ends_s, ends_s)


def _actor(number: int, ends_s: float, seed: int, assumed: Assumed) -> Actor:
    chooser = random.Random(f"{seed}/agent/{number}")  # noqa: S311 - draws that can be repeated, not a secret
    # Spread evenly by the golden ratio: exactly the assumed part, whatever the number of agents.
    attended = (number * 0.618_033_988_749_895) % 1.0 >= assumed.unattended
    starts_s = chooser.uniform(0.0, ends_s * assumed.starts_within)
    if not attended:
        starts_s = 0.0
    return Actor(starts_s, _programs(f"agent-{number}", chooser, assumed, attended=attended))


def _programs(agent: str, chooser: random.Random, assumed: Assumed, *, attended: bool) -> Iterator[Program]:
    """Draw an agent's requests, session after session, without end."""
    session = 0
    pause_s = 0.0
    prefix = Prefix("agents", assumed.shared_tokens) if assumed.shared_tokens else None
    while True:
        name = f"{agent}/{session}"
        context = _Context(assumed.shared_tokens + int(assumed.first_tokens.draw(chooser)), 0)
        for _ in range(max(1, round(PUBLISHED.requests_per_session.draw(chooser)))):
            rounds = max(1, round(PUBLISHED.rounds_per_request.draw(chooser)))
            made = _rounds(rounds, pause_s, context, chooser, assumed)
            yield Program(name, agent, made, interactive=attended, prefix=prefix)
            pause_s = (PUBLISHED.person_s if attended else PUBLISHED.tool_s).draw(chooser)
        session += 1


@dataclass(slots=True)
class _Context:
    """What the next round of a session sends, and how much of it the round before sent too."""

    tokens: int
    known_tokens: int


def _rounds(count: int, pause_s: float, context: _Context, chooser: random.Random, assumed: Assumed) -> Sequence[Round]:
    rounds: list[Round] = []
    for _ in range(count):
        output_tokens = max(1, int(PUBLISHED.output_tokens.draw(chooser)))
        rounds.append(Round(context.tokens, output_tokens, context.known_tokens, pause_s))
        pause_s = PUBLISHED.tool_s.draw(chooser)
        context.known_tokens = context.tokens
        context.tokens += output_tokens + max(1, int(PUBLISHED.new_tokens.draw(chooser)))
        if context.tokens > assumed.compact_at * assumed.window_tokens:
            context.tokens, context.known_tokens = int(context.tokens * assumed.compact_to), 0
    return rounds
