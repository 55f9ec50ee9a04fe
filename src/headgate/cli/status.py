"""`headgate status`: how the gateway that runs is, at a glance.

One rule: only the gateway knows; where none answers that is said, with exit code 1, and nothing is guessed.
"""

import asyncio
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from headgate.cli.options import ConfigOption, JsonOption


def status(
    config: ConfigOption = None,
    gateway: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The gateway to ask, instead of the configured address; key: HEADGATE_KEY."),
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Show how the gateway that runs is: its process, calls, accounts, the limits most used, connections."""
    show_status(config, gateway, as_json=as_json)


def show_status(config_path: Path | None, gateway: str | None, *, as_json: bool) -> None:
    """Print what the gateway at `gateway`, or at the configured address, says of itself.

    Raises:
        CallerError: the address is none, or the configuration leaves it to the system.
        HeadgateError: no gateway answers there.
    """
    from headgate.cli.questions import print_json  # noqa: PLC0415 - heavy
    from headgate.cli.running_gateway import address_of, ask_gateway  # noqa: PLC0415 - heavy
    from headgate.compose import read_config  # noqa: PLC0415 - heavy
    from headgate.core.errors import CallerError, HeadgateError  # noqa: PLC0415 - as the others
    from headgate.gateway.status import STATUS_PATH  # noqa: PLC0415 - heavy

    config = read_config(config_path, credentials=False)
    if gateway is None and config.server.port == 0:
        raise CallerError("the configuration leaves the gateway's port to the system; name it with --gateway URL")
    url = gateway or address_of(config)
    told, why_not = asyncio.run(ask_gateway(url, config, STATUS_PATH, "calls"))
    if told is None:
        raise HeadgateError(why_not)
    if as_json:
        print_json(told)
    else:
        _show(url, told)


def _show(url: str, told: Mapping[str, Any]) -> None:
    from headgate.cli.tables import print_table  # noqa: PLC0415 - heavy
    from headgate.cli.wording import amount_text, limit_text, per_text, share_text, usd_text  # noqa: PLC0415 - as the others

    calls, hour, process = told["calls"], told["last_hour"], told["process"]
    _say(f"{url}  headgate {told['version']}")
    if process is not None:
        up_s = _instant_s(told["at"]) - _instant_s(process["since"])
        _say(
            f"{_who(told, process)}: up {_span(up_s)}, {process['memory_bytes'] / 2**20:.0f} MiB, "
            f"{process['cpu_s']:.1f} s of CPU, {process['open_files']} files"
        )
        for each in told.get("workers", ()):
            up_s = _instant_s(told["at"]) - _instant_s(each["since"])
            _say(f"  process {each['pid']}: up {_span(up_s)}, {each['memory_bytes'] / 2**20:.0f} MiB")
    for worker in told.get("unanswered", ()):
        _say(f"  {worker} did not answer: its calls and figures are missing here")
    waits = f", the longest for {_span(calls['longest_wait_s'])}" if calls["waiting"] else ""
    _say(f"calls: {calls['in_flight']:,} on their way, {calls['waiting']:,} waiting{waits}")
    _say(
        f"last hour: requests {hour['requests']:,}, attempts that failed {hour['failed']:,}, "
        f"calls refused {hour['refused']:,}, {usd_text(hour['cost_micro_usd'])}"
        + (f" and {hour['unknown_cost']:,} without a known price" if hour["unknown_cost"] else "")
    )
    _say("")
    print_table(
        ["account", "health", "in flight", ""],
        [
            [each["account"], each["health"] or "?", f"{each['in_flight']:,}", each["why"] or ""]
            for each in told["accounts"]
        ],
        names=2,
    )
    if told["tightest"]:
        _say("")
        rows = [
            [
                limit_text(each["scope"], None, each["dimension"]) + per_text(each["per"]),
                share_text(each["share"]),
                amount_text(each["dimension"], each["free"]),
            ]
            for each in told["tightest"]
        ]
        print_table(["limit", "used", "free"], rows, names=1)
    if told["connections"]:
        _say("")
        columns = ["host", "open", "in use", "may be", "waiting", "opened", "reused"]
        words = ("open", "in_use", "bound", "waiting", "opened", "reused")
        print_table(
            columns, [[each["host"], *(f"{each[word]:,}" for word in words)] for each in told["connections"]], names=1
        )


def _who(told: Mapping[str, Any], process: Mapping[str, Any]) -> str:
    workers = told.get("workers", ())
    return f"{len(workers)} processes" if workers else f"process {process['pid']}"


def _instant_s(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _span(seconds: float) -> str:
    for length_s, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= length_s:
            return f"{seconds / length_s:.1f} {unit}"
    return f"{seconds:.0f} s"


def _say(line: str) -> None:
    print(line)  # noqa: T201 - what was asked for
