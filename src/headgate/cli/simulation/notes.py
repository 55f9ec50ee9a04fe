"""Notes on what was played that the figures do not say by themselves, for stderr.

One rule: each says what came out otherwise than one thinks, why, and what to do.
"""

from collections.abc import Iterator, Sequence

from headgate.cli.simulation.told import limit_told
from headgate.cli.wording import share_text, span_text
from headgate.sim.provider import Truth
from headgate.sim.simulation import Simulated

__all__ = ["notes_of"]

_MOST_OF_THEM = 0.5
_ALL_SPENT = 0.97


def notes_of(columns: Sequence[Simulated], truth: Truth) -> Iterator[str]:
    """Say what was played in vain, and what one run for all agents did; each once."""
    took_s = max(column.figures.took_s for column in columns)
    for outage in truth.outages:
        if outage.from_s >= took_s:
            yield (
                f"--outage: one begins after {span_text(outage.from_s)}, and all was over after {span_text(took_s)}: "
                "nothing was down"
            )
    yield from _too_small(columns)
    shares: dict[str, float] = {}
    for column in columns:
        for each in column.figures.refusals:
            if each.limit.startswith("run:"):
                share = each.calls / column.figures.offered
                shares[each.limit] = max(share, shares.get(each.limit, 0.0))
    for limit, share in shares.items():
        if share > _MOST_OF_THEM:
            yield (
                f"{limit_told(limit)} refused {share_text(share)} of the calls: all simulated agents are one run "
                '(run:simulated) and share it; for a limit of each agent write scope = "agent:*"'
            )


def _too_small(columns: Sequence[Simulated]) -> Iterator[str]:
    """Say which limits refused calls while a part of them was never spent."""
    spent: dict[str, float] = {}
    for column in columns:
        for each in column.figures.refusals:
            if each.holds_bounds and each.most_spent is not None and each.most_spent < _ALL_SPENT:
                spent[each.limit] = min(each.most_spent, spent.get(each.limit, 1.0))
    for limit, share in spent.items():
        yield (
            f"{limit_told(limit)} refused calls though no more than {share_text(share)} of it was spent: what was left "
            "was less than the most that a call could use, which is held while it runs; a smaller max_tokens holds "
            'less, and so does hold = "likely" beside the limit, which can then be exceeded'
        )
