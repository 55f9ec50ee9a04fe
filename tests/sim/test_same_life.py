"""The simulator carries calls as `runtime.calls` does: of the same workload every attempt goes at the same instant."""

import random
from collections import Counter

import pytest
from real_life import Life, live
from sim_stage import ACCOUNT, config

from headgate.core.scheduling import Scheduling
from headgate.sim.provider import Caches, Fault, Outage, Pace, Terms, Truth
from headgate.sim.simulation import Circumstances, Scenario, play_scenario
from headgate.sim.workload import Actor, Prefix, Program, Round, Workload
from headgate.testing.scripted import FlatPrices

PACE = Pace(first_token_s=0.713_7, tokens_per_second=41.3)
TWO = ACCOUNT + ACCOUNT.replace('"main"', '"second"')
OPENAI = ACCOUNT.replace('"anthropic"', '"openai"')
INPUT = 'scope = "account:{}"\ninput_tokens_per_minute = 60_000'
OUTPUT = 'scope = "account:main"\noutput_tokens_per_minute = 2_000'


def agents(count: int, *, prefix: Prefix | None = None, at_once: bool = False) -> Workload:
    """Give agents whose contexts grow; times are drawn, so that no two things happen at one instant."""

    def actors() -> list[Actor]:
        return [Actor(0.0 if at_once else number * 0.917, iter(programs(number))) for number in range(count)]

    def programs(number: int) -> list[Program]:
        chooser = random.Random(f"life/{number}")
        made, tokens, known = [], 4_000 + chooser.randrange(4_000), 0
        for _ in range(3):
            rounds = []
            for _ in range(4):
                output = 20 + chooser.randrange(160)
                rounds.append(Round(tokens, output, known, chooser.uniform(0.1, 9.0)))
                known, tokens = tokens, tokens + output + chooser.randrange(2_000)
            made.append(Program(f"s{number}", f"a{number}", rounds, interactive=number % 3 == 0, prefix=prefix))
        return made

    return Workload("life", actors, 1.0)


CASES = {
    "limits bind": (ACCOUNT, [INPUT.format("main"), OUTPUT], agents(12), Truth()),
    "requests bind": (ACCOUNT, ['scope = "account:main"\nrequests_per_minute = 40\nburst_s = 2'], agents(12), Truth()),
    "less than is configured": (ACCOUNT, [INPUT.format("main")], agents(12), Truth({"*": Terms(0.5)})),
    "nothing configured": (ACCOUNT, [], agents(12), Truth({"*": Terms(per_minute={"input_tokens": 40_000})})),
    "only 429s tell": (
        ACCOUNT,
        [],
        agents(12),
        Truth({"*": Terms(per_minute={"input_tokens": 40_000})}, tells=False),
    ),
    "only 429s tell of output": (
        ACCOUNT,
        [],
        agents(12),
        Truth({"*": Terms(per_minute={"output_tokens": 3_000})}, tells=False),
    ),
    "an outage": (ACCOUNT, [INPUT.format("main")], agents(8), Truth(outages=(Outage(20.0, 30.0),))),
    "faults": (ACCOUNT, [], agents(8), Truth(faults=(Fault("500", 0.1), Fault("disconnect", 0.1)))),
    "nobody answers": (ACCOUNT, [], agents(4), Truth(faults=(Fault("stall", 0.05),))),
    "two accounts": (TWO, [INPUT.format("main"), INPUT.format("second")], agents(12), Truth()),
    "one of two is down": (
        TWO,
        [INPUT.format("main"), INPUT.format("second")],
        agents(12),
        Truth(outages=(Outage(10.0, 60.0, account="main"),)),
    ),
    "one prefix at once": (
        ACCOUNT,
        [INPUT.format("main")],
        agents(10, prefix=Prefix("shared", 4_000), at_once=True),
        Truth(),
    ),
    "openai": (
        OPENAI,
        ['scope = "account:main"\ntokens_per_minute = 300_000\nrequests_per_minute = 60'],
        agents(6),
        Truth(),
    ),
    "a budget": (ACCOUNT, ['scope = "agent:*"\nusd_per_hour = 0.9'], agents(4), Truth()),
    "slots": (ACCOUNT, ['scope = "account:main"\nslots = 3'], agents(10), Truth()),
}


@pytest.mark.parametrize("policy", ["fifo", "fair"])
@pytest.mark.parametrize("case", CASES)
def test_every_attempt_goes_at_the_same_instant(tmp_path, monkeypatch, case, policy):
    account, limits, workload, truth = CASES[case]
    configured = config(tmp_path, *limits, account=account)
    arrivals: list[tuple[str, float]] = []
    read = Caches.read

    def seen(caches: Caches, session: str, asked: Round, now_s: float, prefix: Prefix | None = None):
        arrivals.append((session, now_s))
        return read(caches, session, asked, now_s, prefix)

    monkeypatch.setattr(Caches, "read", seen)
    model = "gpt-5" if account is OPENAI else "claude-sonnet-4-5"
    circumstances = Circumstances(model=model, truth=truth, pace=PACE, max_wait_s=120.0)
    played = play_scenario(workload, configured, Scenario(policy), circumstances, FlatPrices())
    simulated, arrivals[:] = sorted(arrivals), []
    life = Life(workload, configured, FlatPrices(), model, truth, PACE, Scheduling(policy=policy), max_wait_s=120.0)
    ledger = live(life)
    real = sorted(arrivals)
    assert [session for session, _ in simulated] == [session for session, _ in real]
    assert [at_s for _, at_s in simulated] == pytest.approx([at_s for _, at_s in real], abs=1e-3)
    states = Counter(row.state for row in ledger._final.values())
    assert played.tally.served == states["done"]
    assert played.tally.refused + played.tally.failed >= states["refused"]
