"""Terms: on which a caller's calls are served, where their owner has a choice.

One rule: every term has its usual value here, with which an answer is the provider's own, byte for byte. What a key's
owner says of it is read by `callers`.
"""

from typing import Literal, NamedTuple

__all__ = ["USUAL_TERMS", "Terms", "WhileWaiting"]

WhileWaiting = Literal["hold", "pings", "refuse"]
"""What a client hears while its call waits for its turn: nothing; signs of life, where it asked for a stream; or a 429
at once, where the wait is long."""


class Terms(NamedTuple):
    """How calls are served. `ping_every_s` and `refuse_after_s` say how `pings` and `refuse` are meant.

    With `coalesces` identical calls that are no streams are made once; with `batches` small requests for embeddings
    that come together are made as one.
    """

    while_waiting: WhileWaiting = "hold"
    ping_every_s: float = 15.0
    refuse_after_s: float = 1.0
    coalesces: bool = False
    batches: bool = False


USUAL_TERMS = Terms()
