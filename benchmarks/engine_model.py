"""A model of an LLM server with continuous batching, in virtual time: what a queue's order does to its clients.

One rule: the engine is the same for every queue, and a queue sees only what a scheduler in front of it could see.
It has the shape of S-LoRA's router (the VTC artifact runs on it): a pool of KV tokens, admission only when the peak of
what runs will fit, prefill that stops the decoding, one token per running call and step. Sampled outputs are known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

STEP_S_PER_TOKEN = 2.6e-6
PREFILL_S = 0.02
PREFILL_S_PER_TOKEN = 0.00033
"""A step reads 13.5 GB of weights and 0.5 MB per KV token at some 600 GB/s; a prefill runs at some 3,000 tokens/s."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What an engine has: KV tokens, decode steps between two looks for new calls, seconds of a step without any KV."""

    pool_tokens: int
    steps_between: int
    step_s: float


CALIBRATED = (
    Engine(9_000, 10, 0.01703),
    Engine(10_000, 10, 0.01878),
    Engine(10_500, 10, 0.01990),
    Engine(11_000, 10, 0.02097),
    Engine(12_000, 10, 0.02272),
    Engine(10_000, 5, 0.01878),
    Engine(11_000, 5, 0.02097),
    Engine(12_000, 5, 0.02272),
)
"""The artifact has 10,000 tokens and looks every 10 steps; with each of these FCFS gives about its 777 tokens/s."""


@dataclass(slots=True, eq=False)
class EngineCall:
    """A call and what became of it."""

    number: int
    came_s: float
    client: str
    input_tokens: int
    output_tokens: int
    produced: int = 0
    first_token_s: float = 0.0
    ended_s: float = 0.0


class Queue(Protocol):
    """Who goes next into the engine."""

    def add(self, call: EngineCall, now_s: float) -> None: ...

    def head(self, now_s: float) -> EngineCall | None: ...

    def admit(self, call: EngineCall, now_s: float) -> None: ...

    def produced(self, running: Sequence[EngineCall]) -> None: ...

    def ended(self, call: EngineCall) -> None: ...


def run_engine(calls: Sequence[EngineCall], queue: Queue, engine: Engine) -> float:
    """Serve all calls, ordered by arrival, through a queue; gives the time at which the last one ended."""
    now_s, arrived, step = 0.0, 0, 0
    running: list[EngineCall] = []
    while arrived < len(calls) or running or queue.head(now_s) is not None:
        if not running and queue.head(now_s) is None:
            now_s = max(now_s, calls[arrived].came_s)
        while arrived < len(calls) and calls[arrived].came_s <= now_s:
            queue.add(calls[arrived], now_s)
            arrived += 1
        if not running or step % engine.steps_between == 0:
            new = admit(running, queue, engine, now_s)
            if new:
                now_s += PREFILL_S + PREFILL_S_PER_TOKEN * sum(call.input_tokens for call in new)
                for call in new:
                    call.first_token_s = now_s
                    call.produced = 1
                queue.produced(new)
                running += new
        running = leave(running, queue, now_s)
        if running:
            held = sum(call.input_tokens + call.produced for call in running)
            now_s += engine.step_s + STEP_S_PER_TOKEN * held
            for call in running:
                call.produced += 1
            queue.produced(running)
        step += 1
    return now_s


def admit(running: Sequence[EngineCall], queue: Queue, engine: Engine, now_s: float) -> list[EngineCall]:
    new: list[EngineCall] = []
    while (call := queue.head(now_s)) is not None and fits([*running, *new, call], engine.pool_tokens):
        queue.admit(call, now_s)
        new.append(call)
    return new


def fits(calls: Sequence[EngineCall], pool_tokens: int) -> bool:
    """Say whether the pool holds these until each has ended: the peak comes just before one of them ends."""
    left = sorted(
        ((call.output_tokens - call.produced, call.input_tokens + call.produced) for call in calls), reverse=True
    )
    held = 0
    for number, (to_come, has) in enumerate(left, 1):
        held += has
        if held + to_come * number > pool_tokens:
            return False
    return True


def leave(running: Sequence[EngineCall], queue: Queue, now_s: float) -> list[EngineCall]:
    stays = []
    for call in running:
        if call.produced >= call.output_tokens:
            call.ended_s = now_s
            queue.ended(call)
        else:
            stays.append(call)
    return stays
