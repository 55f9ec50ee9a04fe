"""`headgate reconcile`: say what became of calls whose process died, where no provider can be asked.

One rule: a lost call is settled once, its hold and its row together, whoever says so first; it goes through the store,
so it works beside a running gateway and without one. What a provider can tell by itself, a start of Headgate asks it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headgate.core.amounts import MICRO_USD_PER_USD
from headgate.core.errors import CallerError

if TYPE_CHECKING:  # every command reads this file, and all of them are heavy
    from headgate.core.ledger import Attempt
    from headgate.ports import Cost, Fate
    from headgate.runtime.manager import Manager

MOST_USD = 1_000_000
"""A single call that costs more is a slip of the hand."""

BY_HAND = "by hand"
"""What stands in the ledger for the price version of a cost that somebody said."""


def reconcile(
    calls: Annotated[
        list[str] | None, typer.Argument(metavar="[CALL]...", help="Lost calls; without any: list.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="The configuration, as elsewhere.")] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Settle every lost call.")] = False,
    used_nothing: Annotated[
        bool, typer.Option("--used-nothing", help="It never ran: all that was held comes back.")
    ] = False,
    at_estimate: Annotated[bool, typer.Option("--at-estimate", help="Count it at what was held for it.")] = False,
    cost_usd: Annotated[
        str | None, typer.Option(metavar="DOLLARS", help="What the provider charged for it, such as 0.0123.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")] = False,
) -> None:
    """List the calls whose process died and whose use nobody knows, or settle them by what you know."""
    wanted = _Wanted(tuple(calls or ()), every=every)
    verdict = _verdict(used_nothing=used_nothing, at_estimate=at_estimate, cost_usd=cost_usd)
    if verdict is None and wanted:
        raise CallerError("say what became of the call: --used-nothing, --cost-usd DOLLARS or --at-estimate")
    if verdict is not None and not wanted:
        raise CallerError("name the call, or --all; `headgate reconcile` lists the lost ones")
    if verdict is not None and verdict.cost_micro_usd is not None and (every or len(wanted.names) > 1):
        raise CallerError("--cost-usd is the cost of one call: name one")
    import asyncio  # noqa: PLC0415 - heavy, and `--help` does not need it

    asyncio.run(_reconcile(config, wanted, verdict, as_json=as_json))


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which lost calls are meant: by the id of the call or of its attempt."""

    names: tuple[str, ...]
    every: bool

    def __bool__(self) -> bool:
        return bool(self.names) or self.every

    def among(self, lost: "Sequence[Attempt]") -> "list[Attempt]":
        """Choose them.

        Raises:
            CallerError: one of them is not lost.
        """
        known = {name for row in lost for name in (row.id, row.call)}
        for name in self.names:
            if name not in known:
                raise CallerError(
                    f"no lost call {name!r}: it was settled, is on its way, or never was; "
                    "`headgate reconcile` lists the lost ones"
                )
        return [row for row in lost if self.every or row.id in self.names or row.call in self.names]


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What is said of a call: it used nothing, it cost so much, or (neither) what was held for it."""

    used_nothing: bool = False
    cost_micro_usd: int | None = None

    def on(self, row: "Attempt") -> "tuple[Fate, Cost]":
        """Say it of one call: its tokens stay an estimate, unless there are none."""
        from headgate.core.usage import NO_USAGE  # noqa: PLC0415 - heavy, as above
        from headgate.ports import Cost, Fate  # noqa: PLC0415 - heavy, as above

        if self.used_nothing:
            return Fate(NO_USAGE, arrived=False), Cost(0, BY_HAND)
        if self.cost_micro_usd is None:
            return Fate(row.usage), Cost(row.held_micro_usd, row.price_version)
        return Fate(row.usage), Cost(self.cost_micro_usd, BY_HAND)


def _verdict(*, used_nothing: bool, at_estimate: bool, cost_usd: str | None) -> _Verdict | None:
    said = sum((used_nothing, at_estimate, cost_usd is not None))
    if said > 1:
        raise CallerError("--used-nothing, --cost-usd and --at-estimate exclude each other: give one of them")
    if not said:
        return None
    return _Verdict(used_nothing, None if cost_usd is None else _micro_usd(cost_usd))


def _micro_usd(text: str) -> int:
    try:
        dollars = Decimal(text)
    except InvalidOperation:
        dollars = Decimal("NaN")
    if not (dollars.is_finite() and 0 <= dollars <= MOST_USD):
        raise CallerError(f"--cost-usd {text!r}: expected dollars between 0 and {MOST_USD:,}, such as 0.0123")
    return -int(-dollars * MICRO_USD_PER_USD // 1)  # a fraction counts as a whole one: the safe side


async def _reconcile(config: Path | None, wanted: _Wanted, verdict: _Verdict | None, *, as_json: bool) -> None:
    from headgate.compose import open_house, read_config  # noqa: PLC0415 - heavy, and `--help` does not need it

    async with open_house(read_config(config, credentials=False), start=False) as house:
        lost = await house.manager.lost()
        if verdict is None:
            _show(lost, as_json=as_json)
        else:
            await _settle(house.manager, wanted.among(lost), verdict, as_json=as_json)


def _show(lost: "Sequence[Attempt]", *, as_json: bool) -> None:
    from headgate.cli.tables import print_table  # noqa: PLC0415 - heavy
    from headgate.gateway.parameters import rfc3339  # noqa: PLC0415 - heavy

    shapes = [
        {
            "id": row.id,
            "call": row.call,
            **{kind: getattr(row.scopes, kind) for kind in ("account", "key", "run", "agent", "session")},
            "model": row.model,
            "admitted_at": rfc3339(row.admitted_s),
            "pending_micro_usd": row.held_micro_usd,
        }
        for row in lost
    ]
    if as_json:
        _say(json.dumps({"lost": shapes}))
    elif not lost:
        _say("no call is lost")
    else:
        cells = [
            [
                row.id,
                row.scopes.account or "-",
                row.scopes.run or row.scopes.key or "-",
                row.model,
                _pending(row),
                (rfc3339(row.admitted_s) or "-").split(".")[0].replace("T", " "),
            ]
            for row in lost
        ]
        print_table(["call", "account", "run or key", "model", "pending", "since (UTC)"], cells, names=4)


async def _settle(manager: "Manager", rows: "Sequence[Attempt]", verdict: _Verdict, *, as_json: bool) -> None:
    from headgate.cli.wording import usd_text  # noqa: PLC0415 - not needed to say no

    shapes = []
    for row in rows:
        fate, cost = verdict.on(row)
        settled = await manager.settle_lost(row, fate, cost)
        shapes.append(
            {
                "id": row.id,
                "settled": settled.row,
                "hold_settled": settled.hold,
                "cost_micro_usd": cost.micro_usd,
                "pending_micro_usd": row.held_micro_usd,
            }
        )
        if as_json:
            continue
        if not settled.row:
            _say(f"{row.id}: another process has settled it meanwhile")
        elif settled.hold:
            _say(f"{row.id}: settled at {usd_text(cost.micro_usd)}; {_pending(row)} was pending for it")
        else:
            _say(f"{row.id}: settled at {usd_text(cost.micro_usd)}; nothing was held for it any more")
    if as_json:
        _say(json.dumps({"settled": shapes}))
    elif not rows:
        _say("no call is lost")


def _pending(row: "Attempt") -> str:
    from headgate.cli.wording import usd_text  # noqa: PLC0415 - not needed to say no

    return usd_text(row.held_micro_usd)


def _say(line: str) -> None:
    print(line)  # noqa: T201 - what was asked for
