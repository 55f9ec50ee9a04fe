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


def notes_of(columns: Sequence[Simulated], truth: Truth) -> Iterator[str]:
    """Say what was played in vain, and what one run for all agents did; each once."""
    took_s = max(column.figures.took_s for column in columns)
    for outage in truth.outages:
        if outage.from_s >= took_s:
            yield (
                f"--outage: one begins after {span_text(outage.from_s)}, and all was over after {span_text(took_s)}: "
                "nothing was down"
            )
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
