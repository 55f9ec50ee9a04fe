"""Row A2: what a second worker of `headgate serve --workers 2` brings.

One rule: one worker and two meet the same calls in one run, in rounds that alternate, and figures are medians. Load and
provider need a part of two cores too, so what decides is processor time: so many workers do so many times the calls, as
long as a call costs all of their processes together no more, and none waits for the store's lock. That is told beside.
"""

import tempfile
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median

from prometheus_client.parser import text_string_to_metric_families

from benchmarks import gateways
from benchmarks.__main__ import Options, Result
from benchmarks.a_gateway import SCENARIOS, Contender, check_ledger, failures, measure, provider
from benchmarks.gateways import PROVIDER_KEY

TITLE = "calls of two workers behind one port for each call of one, by processor time"
WORKERS = 2
TARGET = 1.8

_ADMIN = '\n[server]\nadmin_token = "env:BENCH_PROVIDER_KEY"\n'
_STORE = "headgate_store_"


def run(options: Options) -> Result:
    rounds, seconds = (5, 1.0) if options.quick else (12, 1.2)
    scenario = SCENARIOS[0]
    waited: dict[int, list[float]] = {1: [], WORKERS: []}
    with tempfile.TemporaryDirectory(prefix="headgate-a2-") as kept, ExitStack() as stack:
        _, port = stack.enter_context(provider(Path(kept)))
        by_number: dict[int, Contender] = {}
        for number in waited:
            folder = Path(kept) / str(number)
            folder.mkdir()
            more = ("--workers", str(number)) if number > 1 else ()
            gateway = stack.enter_context(gateways.headgate(port, folder, None, *more, more=_ADMIN))
            by_number[number] = Contender(gateway)
            measure(by_number[number], scenario, seconds / 3, counts=False)
        apart = [stack.enter_context(gateway_apart(port, Path(kept), number)) for number in range(WORKERS)]
        part = replace(scenario, connections=scenario.connections // WORKERS)
        for _ in range(rounds):
            for number, contender in by_number.items():
                before = store_figures(contender)
                measure(contender, scenario, seconds)
                used = {name: value - before[name] for name, value in store_figures(contender).items()}
                waited[number].append(used["lock_wait_seconds"] / seconds / number)
            with ThreadPoolExecutor(WORKERS) as threads:
                list(threads.map(lambda each: measure(each, part, seconds), apart))
        notes = [note for each in by_number.values() for note in check_ledger(each)]
    notes += failures([*by_number.values(), *apart])
    cpu_us = {number: median(contender.figures[scenario.label]) for number, contender in by_number.items()}
    per_s = {number: median(contender.calls_per_s[scenario.label]) for number, contender in by_number.items()}
    # Of each round by itself: what else runs on the machine changes more from round to round than within one.
    apart_us = [fmean(each) for each in zip(*(each.figures[part.label] for each in apart), strict=True)]
    one_us, several_us = (contender.figures[scenario.label] for contender in by_number.values())
    scaling = median(WORKERS * one / several for one, several in zip(one_us, several_us, strict=True))
    of_apart = median(each / several for each, several in zip(apart_us, several_us, strict=True))
    for number in by_number:
        options.say(
            f"    {number} worker{'s' * (number > 1)}: {cpu_us[number]:,.0f} CPU us a call, "
            f"{per_s[number]:,.0f} calls/s; {median(waited[number]):.1%} of the time a transaction waited for the lock"
        )
    options.say(f"    {WORKERS} gateways that share nothing: {median(apart_us):,.0f} CPU us a call")
    options.say(
        f"    {WORKERS} workers do {scaling:.2f} times the calls of one in the processor time of {WORKERS}, "
        f"and {of_apart:.2f} times those of {WORKERS} gateways that share nothing"
    )
    return Result(
        headgate={
            "scaling by CPU": round(scaling, 2),
            "beside two that share nothing": round(of_apart, 2),
            "CPU us, 2 workers": round(cpu_us[WORKERS]),
            "calls/s, 2 workers": round(per_s[WORKERS]),
            "share of time waiting for the lock": round(median(waited[WORKERS]), 3),
        },
        rival={
            "CPU us, 1 worker": round(cpu_us[1]),
            "calls/s, 1 worker": round(per_s[1]),
            "CPU us, 2 that share nothing": round(median(apart_us)),
        },
        target={"scaling by CPU": TARGET},
        met=scaling >= TARGET and not failures(list(by_number.values())),
        note="; ".join([f"medians of {rounds} alternating rounds; all share the cores", *notes]),
    )


@contextmanager
def gateway_apart(port: int, folder: Path, number: int) -> Iterator[Contender]:
    """Run a gateway with a store of its own: what two processes cost on this machine when they share nothing."""
    place = folder / f"apart-{number}"
    place.mkdir()
    with gateways.headgate(port, place, None, more=_ADMIN) as gateway:
        yield Contender(gateway)


def store_figures(contender: Contender) -> dict[str, float]:
    """Give how the store was used by all workers until now."""
    url = f"http://127.0.0.1:{contender.gateway.port}/metrics"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers={"x-api-key": PROVIDER_KEY})
    with opener.open(request, timeout=30) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {
            family.name.removeprefix(_STORE): sum(s.value for s in family.samples if s.name.endswith("_total"))
            for family in families
            if family.name.startswith(_STORE)
        }
