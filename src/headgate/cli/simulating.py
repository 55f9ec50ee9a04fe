"""`headgate simulate`: what would happen, in virtual time, before it is tried.

One rule: it spends nothing, changes nothing and asks no provider, and the same question has the same answer, byte for
byte; what is said of progress goes to stderr. Playing is `sim`'s, showing is `simulation`'s.
"""

import json
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headgate.cli.options import MOST_WHOLE, number, whole
from headgate.core.errors import CallerError

if TYPE_CHECKING:  # every command reads this file, and all of them are heavy
    from headgate.cli.simulation.table import Comparison
    from headgate.sim.workload import Workload

MOST_SPEED = 1_000_000.0

_OF_REAL_LIFE = tuple(f"headgate.{part}" for part in ("accounts", "admission", "learning", "limits", "plan_windows"))
"""Who logs what becomes of calls: of simulated ones the figures tell it, and a warning would look like a real one."""


def simulate(
    workload: Annotated[
        str, typer.Argument(help="A trace, a folder of recorded sessions, or agents:N[:HOURS] to generate.")
    ],
    config: Annotated[Path | None, typer.Option("--config", help="The configuration, as elsewhere.")] = None,
    *,
    policy: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="To compare; may be repeated; all for every one.")
    ] = None,
    agents_scale: Annotated[
        list[float] | None,
        typer.Option(parser=number("--agents-scale"), metavar="X", help="So many times the agents; may be repeated."),
    ] = None,
    limits_scale: Annotated[
        list[float] | None,
        typer.Option(
            parser=number("--limits-scale"),
            metavar="X",
            help="So many times the limits, but for budgets in dollars; may be repeated.",
        ),
    ] = None,
    provider_limits: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[ACCOUNT:]X", help="What is really enforced of the limits, or WORD=N,...; may be repeated."
        ),
    ] = None,
    outage: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[ACCOUNT:]FROM:FOR[:KIND]",
            help="The provider is down: 10m:2m, main:1h:90s:stall; may be repeated.",
        ),
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="[ACCOUNT:]KIND=SHARE", help="A part of the calls fails: 529=0.02; may be repeated."),
    ] = None,
    no_limit_headers: Annotated[
        bool, typer.Option("--no-limit-headers", help="Answers say nothing of limits: only 429s teach them.")
    ] = False,
    speed: Annotated[
        float, typer.Option(parser=number("--speed"), metavar="X", help="Arrivals and pauses pass so much faster.")
    ] = 1.0,
    hours: Annotated[
        float | None, typer.Option(parser=number("--hours"), metavar="H", help="Only the first hours of a trace.")
    ] = None,
    agents: Annotated[
        int | None,
        typer.Option(
            parser=whole("--agents", 1, 100_000),
            metavar="N",
            help="Who work through recorded sessions; 10 unless you say.",
        ),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Configured keys that agents work under in turn; may be repeated."),
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="The model of all calls.")] = None,
    max_wait: Annotated[
        float | None,
        typer.Option(parser=number("--max-wait"), metavar="S", help="How long a call waits; else as configured."),
    ] = None,
    first_token_s: Annotated[
        float, typer.Option(parser=number("--first-token-s"), metavar="S", help="Time to the first token.")
    ] = 1.0,
    tokens_per_second: Annotated[
        float, typer.Option(parser=number("--tokens-per-second"), metavar="N", help="Pace after it.")
    ] = 53.0,
    seed: Annotated[
        int, typer.Option(parser=whole("--seed", -MOST_WHOLE), metavar="N", help="Of all that is drawn.")
    ] = 0,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with plots.")] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a picture; needs headgate\\[plot].")] = None,
    no_cache_boost: Annotated[
        bool, typer.Option("--no-cache-boost", help="Calls whose cache is about to die get no preference.")
    ] = False,
    no_warm_up: Annotated[
        bool, typer.Option("--no-warm-up", help="Calls with one prefix go at once, not one of them first.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")] = False,
) -> None:
    """Play a workload under policies, in virtual time: use of limits, waits, fairness, cost, side by side."""
    from headgate.cli.simulation.notes import notes_of  # noqa: PLC0415 - heavy, and `--help` does not need it
    from headgate.cli.simulation.page import write_page  # noqa: PLC0415 - as above
    from headgate.cli.simulation.picture import check_picture, write_picture  # noqa: PLC0415 - as above
    from headgate.cli.simulation.progress import Progress  # noqa: PLC0415 - as above
    from headgate.cli.simulation.table import Comparison  # noqa: PLC0415 - as above
    from headgate.cli.simulation.told import truth_told  # noqa: PLC0415 - as above
    from headgate.cli.simulation.truth import check_outages, read_truth  # noqa: PLC0415 - as above
    from headgate.compose import read_config  # noqa: PLC0415 - as above
    from headgate.core.scheduling import POLICIES  # noqa: PLC0415 - as above
    from headgate.sim.provider import Pace  # noqa: PLC0415 - as above
    from headgate.sim.simulation import CONFIGURED, Circumstances, scenarios_of  # noqa: PLC0415 - as above
    from headgate.sim.simulation import simulate as play  # noqa: PLC0415 - as above

    _check_number("--speed", speed, 1 / MOST_SPEED, MOST_SPEED)
    _check_number("--first-token-s", first_token_s, 0.0, 3600.0)
    _check_number("--tokens-per-second", tokens_per_second, 0.001, 1e9)
    if hours is not None:
        _check_number("--hours", hours, 0.001, 24 * 366.0)
    if max_wait is not None:
        _check_number("--max-wait", max_wait, 0.0, 7 * 86_400.0)
    for option, file in (("--html", html), ("--png", png)):  # before an hour is played for nothing
        if file is not None:
            _check_file(option, file)
    if png is not None:
        check_picture(png)
    names = [name for each in policy or [CONFIGURED] for name in (POLICIES if each == "all" else [each])]
    scenarios = scenarios_of(names, agents_scale or [1.0], limits_scale or [1.0])
    truth = read_truth(provider_limits or (), outage or (), fault or (), tells=not no_limit_headers)
    configured = read_config(config, credentials=False)
    played = _read(workload, hours, agents, seed)
    check_outages(truth, played.ends_s)
    circumstances = Circumstances(
        model=model,
        pace=Pace(first_token_s, tokens_per_second),
        truth=truth,
        keys=tuple(key or ()),
        max_wait_s=max_wait,
        cache_boost=not no_cache_boost,
        warm_up=not no_warm_up,
        seed=seed,
    )
    for name in _OF_REAL_LIFE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    progress = Progress(len(scenarios))
    columns = list(play(played, configured, scenarios, circumstances, speed=speed, progress=progress))
    progress.ended()
    comparison = Comparison(played.title, speed, seed, columns, truth_told(truth))
    _show(comparison, as_json=as_json)
    # After the answer: what cannot be written must not take it along.
    if html is not None:
        write_page(comparison, html)
    if png is not None:
        write_picture(comparison, png)
    _note(notes_of(columns, truth))


def _show(comparison: "Comparison", *, as_json: bool) -> None:
    from headgate.cli.simulation.table import as_object, print_comparison  # noqa: PLC0415 - as above

    if as_json:
        print(json.dumps(as_object(comparison)), flush=True)  # noqa: T201 - the answer
    else:
        print_comparison(comparison)


def _note(notes: Iterable[str]) -> None:
    for told in notes:
        print(f"headgate: {told}", file=sys.stderr)  # noqa: T201 - beside the answer


def _read(workload: str, hours: float | None, agents: int | None, seed: int) -> "Workload":
    from headgate.sim.agents import agents_of  # noqa: PLC0415 - as above
    from headgate.sim.traces import read_trace  # noqa: PLC0415 - as above

    if workload.startswith("agents:"):
        kind, number, *_ = workload.split(":")
        if hours is not None:
            raise CallerError(f"--hours {hours:g} is for traces; say {kind}:{number}:{hours:g} instead")
        if agents is not None:
            of = ":".join((kind, str(agents), *workload.split(":")[2:]))
            raise CallerError(f"--agents {agents} is for recorded sessions; say {of} instead")
        return agents_of(workload, seed)
    if not workload.strip():
        raise CallerError(
            f"workload {workload!r}: nothing is named; expected a trace, a folder of recorded sessions (. for this "
            "one), or agents:N[:HOURS]"
        )
    return read_trace(Path(workload), hours=hours, agents=agents, seed=seed)


def _check_file(option: str, file: Path) -> None:
    if not file.parent.is_dir():
        raise CallerError(f"{option} {file}: it cannot be written: there is no folder {file.parent}")
    if os.path.isdir(file):  # noqa: PTH112 - `Path.is_dir` raises where a name is too long
        name = file / f"simulation.{option.removeprefix('--')}"
        raise CallerError(f"{option} {file}: it cannot be written: it is a folder; name a file, such as {name}")
    if not os.access(file if os.path.exists(file) else file.parent, os.W_OK):  # noqa: PTH110 - as above
        raise CallerError(f"{option} {file}: it cannot be written: you have no right to write there")


def _check_number(option: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise CallerError(f"{option} {value:g}: expected a number from {least:g} to {most:,g}")
