"""Row A: what a gateway costs on the way of a call, Headgate with all checks on and durable, beside its rivals.

One rule: all gateways meet the same calls in the same run, in rounds that alternate; figures are medians. A gateway has
one core to itself; the provider and the load share the other. What decides is the processor time per call of its whole
process tree, which is steadier than calls per second where cores are shared.
"""

import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import psutil

from benchmarks import gateways
from benchmarks.__main__ import Options, Result
from benchmarks.gateways import MODEL, PATH, Gateway
from benchmarks.load_generator import STALL_S, Load, Seen
from benchmarks.mock_upstream import EVENTS
from benchmarks.process_tree import cores, kept_to
from benchmarks.rivals.environment import RivalMissingError

TITLE = "gateway: processor time per call, beside direct calls, nginx, Portkey (Node) and LiteLLM"

DIRECT, HEADGATE = "direct", "Headgate"
TARGETS = {"memory MiB": 80.0, "cold start s": 1.0}
RATIOS = {"LiteLLM": 100.0, "Portkey": 10.0}
"""How many times cheaper than a rival a JSON call has to be; each scenario may say otherwise."""

_FOLDER = Path(__file__).parent
_MOST_CALLS = 200_000
_RUN_BOUND_S = 150.0


@dataclass(frozen=True)
class Scenario:
    """Calls of one kind. `once` starts as many calls as connections and no more."""

    name: str
    connections: int
    target: float
    ratios: dict[str, float]
    unit: str = "us"
    events: int = 0
    pace_ms: int = 0
    text_bytes: int = 500
    once: bool = False

    @property
    def figure(self) -> str:
        return f"{self.name}, {self.unit}"

    def body(self) -> str:
        asked: dict[str, object] = {"model": MODEL, "max_tokens": 256, "temperature": 0.2}
        asked["messages"] = [
            {"role": "system", "content": "You are a helpful coding agent."},
            {"role": "user", "content": _text(self.text_bytes)},
        ]
        if self.events:
            asked |= {"stream": True, "stream_options": {"include_usage": True}}
        if self.pace_ms:
            asked["user"] = f"pace-{self.pace_ms}ms"
        return json.dumps(asked)


_JSON = {"LiteLLM": 100.0, "Portkey": 10.0}
SCENARIOS = (
    Scenario("JSON, 64 connections", 64, 130, _JSON, "CPU us"),
    Scenario("JSON, 1 connection", 1, 450, {}, "p50 us"),
    Scenario("stream, 16 connections", 16, 550, {"LiteLLM": 100.0, "Portkey": 4.0, "nginx": 0.5}, "CPU us", EVENTS),
    Scenario("64 streams, 20 ms apart", 64, 2_800, {"LiteLLM": 20.0, "Portkey": 3.0}, "CPU us", EVENTS, 20),
    Scenario("200 KB body, 8 connections", 8, 550, _JSON, "CPU us", text_bytes=200_000),
    Scenario("512 streams at once", 512, 0, {}, "stalls", EVENTS, 20, once=True),
)
