"""Used: what an attempt is taken to have used, and what that costs, where its provider told less than all of it.

One rule: what nobody told is never nothing because it was not told; it is nothing only where nothing can have been
used. What was told goes before what is thought. What a provider charges for it is one of `core.usage.CHARGES`.
"""

from headgate.core.retries import Failure
from headgate.core.usage import NO_USAGE, Usage
from headgate.ports import Cost, Prices


def used(estimate: Usage, told: Usage | None, failure: Failure | None, *, sent: bool, cut: bool) -> Usage:
    """Give what an attempt used; `cut` if its caller left while it was on its way to the provider or back."""
    if told is not None:
        if cut or failure is not None or told.reported or told.output_tokens:
            return told
        return told._replace(output_tokens=estimate.output_tokens)  # whole, and its output could not be read
    if not sent or (failure is not None and failure.kind != "connection"):
        return NO_USAGE
    if cut or failure is not None:
        return estimate._replace(output_tokens=0)  # the prompt may have been read before the connection ended
    return estimate


def cost_of(prices: Prices, model: str, model_served: str | None, usage: Usage, at_s: float) -> Cost:
    """Price a usage at the model that answered or, where that name has no price, at the one that was asked for."""
    cost = prices.cost(model_served or model, usage, at_s)
    if cost.micro_usd is None and model_served not in (None, model):
        return prices.cost(model, usage, at_s)
    return cost
