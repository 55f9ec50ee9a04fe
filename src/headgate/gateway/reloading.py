"""Reloading: the configuration is read again and put in force, over the control API.

One rule: it is checked as a whole first, and then applied as a whole or not at all; only an administrator may, and the
log says so.
"""

import logging
from typing import TypedDict

from headgate.core.errors import CallerError, HeadgateError
from headgate.gateway.asked import Asked
from headgate.gateway.operations import Operation

log = logging.getLogger("headgate.gateway")

RELOAD_PATH = "/api/v1/reload"


class Reloaded(TypedDict):
    """What has changed, a line each."""

    changed: list[str]


async def reload(asked: Asked) -> Reloaded:
    """Answer `POST /api/v1/reload`.

    Raises:
        CallerError: the configuration cannot be used, or not without a restart; or the gateway was not
            started from a file. Nothing has changed then.
    """
    if asked.reload is None:
        raise CallerError("this gateway serves one run, with the configuration that it began with; start the run anew")
    try:
        changed = await asked.reload()
    except HeadgateError as error:
        log.warning("not reloaded over the control API, nothing has changed:\n%s", error)
        raise
    # What is in force has changed while the gateway runs: whoever reads its log later has to see it.
    log.warning("%s", "\n  ".join([f"reloaded over the control API, {len(changed) or 'no'} changes", *changed]))
    return {"changed": list(changed)}


RELOAD = Operation(
    reload,
    Reloaded,
    "Read the configuration again and put it in force",
    fails=(529,),
    only_admin="reload the configuration",
)
