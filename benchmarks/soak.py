"""Row SOAK: memory and open files of a gateway over 200,000 calls of three kinds.

    python -m benchmarks SOAK [--quick]

JSON calls, streams and large bodies take turns, each call of them with every limit, hold and row of the ledger. What is
looked at is the growth from a tenth of the calls, when caches and pools are full, to their end. There is no rival;
others report growth to gigabytes (BerriAI/litellm #27954, #12685).
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks import gateways
from benchmarks.__main__ import Options, Result
from benchmarks.a_gateway import SCENARIOS, Contender, check_ledger, failures, measure, provider
from benchmarks.process_tree import cores, kept_to

TITLE = "memory and open files of a gateway over 200,000 calls"

CALLS, QUICK_CALLS = 200_000, 3_000
STEPS = 20
KINDS = ((SCENARIOS[0], 0.90), (SCENARIOS[2], 0.08), (SCENARIOS[4], 0.02))
"""What takes turns, and its part of the calls."""

WARM_STEPS = 2
MOST_GROWTH_MIB = 8.0
MOST_FILES = 64
"""Connections to the provider that a burst opened, and that are kept for five minutes: as many as calls are at once."""
_STEP_BOUND_S = 110.0


def run(options: Options) -> Result:
    """Let the calls come, and look at the gateway after each twentieth of them."""
    calls = QUICK_CALLS if options.quick else CALLS
    of_gateway, of_load = cores() or (None, None)
    with tempfile.TemporaryDirectory(prefix="headgate-soak-") as kept, ExitStack() as stack, kept_to(of_load):
        folder = Path(kept)
        _, port = stack.enter_context(provider(folder))
        contender = Contender(stack.enter_context(gateways.headgate(port, folder, of_gateway)))
        tree = contender.gateway.tree
        seen: list[tuple[int, float, int]] = []
        options.say(f"    {'calls':>9}{'memory, MiB':>13}{'open files':>12}")
        for _ in range(STEPS):
            for scenario, part in KINDS:
                most_calls = max(8, round(calls * part / STEPS))
                measure(contender, scenario, _STEP_BOUND_S, counts=False, most_calls=most_calls)
            seen.append((contender.answered - 1, tree.memory_mib(), tree.open_files()))
            options.say(f"    {seen[-1][0]:9,}{seen[-1][1]:13.1f}{seen[-1][2]:12,}")
        notes = check_ledger(contender)
    warm = seen[WARM_STEPS - 1]
    growth_mib, files = max(each[1] for each in seen[WARM_STEPS:]) - warm[1], seen[-1][2] - warm[2]
    counted, memory_mib, _files = seen[-1]
    found = {"calls": counted, "growth, MiB": round(growth_mib, 1), "files": files, "memory, MiB": round(memory_mib)}
    met = not contender.failures and growth_mib <= MOST_GROWTH_MIB and files <= MOST_FILES
    note = "; ".join([*notes, *failures([contender]), f"growth from {warm[0]:,} calls on"])
    return Result(found, None, {"growth, MiB": MOST_GROWTH_MIB, "files": MOST_FILES}, met, note)
