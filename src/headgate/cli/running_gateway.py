"""The gateway of a configuration, asked over its control API while it runs.

One rule: it is asked with the key of HEADGATE_KEY or the configuration's admin token, and whatever goes wrong is a
sentence that says what to do.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

from headgate.adapters.config import Config
from headgate.adapters.providers.http import HttpClient, Timeouts, parse_url
from headgate.core.errors import CallerError, ProviderError

__all__ = ["address_of", "ask_gateway"]

_TIMEOUTS = Timeouts(pool_s=2.0, dns_s=2.0, connect_s=2.0, tls_s=2.0, first_byte_s=10.0, idle_s=10.0)
_MOST_ANSWER_BYTES = 16 * 1024 * 1024
_OK = 200


async def ask_gateway(url: str, config: Config, path: str, member: str) -> tuple[Mapping[str, Any] | None, str]:
    """Give what a gateway answers at a path, an object that has `member`; or None, and why not.

    Raises:
        CallerError: `url` is no address.
    """
    try:
        origin, _ = parse_url(url)
    except ValueError as error:
        raise CallerError(f"--gateway: {error}") from error
    token = config.server.admin_token.reveal() if config.server.admin_token is not None else None
    key = os.environ.get("HEADGATE_KEY") or token
    headers = [] if key is None else [(b"x-api-key", key.encode())]
    client = HttpClient()
    try:
        async with client.send("GET", origin, path.encode(), headers=headers, timeouts=_TIMEOUTS) as reply:
            status, body = reply.status, await reply.read(_MOST_ANSWER_BYTES)
    except ProviderError as error:
        return None, f"no gateway answers: {error}; one elsewhere is named with --gateway URL"
    finally:
        await client.close()
    try:
        shape = json.loads(body)
    except ValueError:
        shape = None
    if status != _OK or not isinstance(shape, dict) or member not in shape:
        return None, f"{url} answered {status}; put its admin token or a key into HEADGATE_KEY, or is it a Headgate?"
    return shape, ""


def address_of(config: Config) -> str:
    """Give where the gateway of a configuration listens."""
    host = f"[{config.server.host}]" if ":" in config.server.host else config.server.host
    return f"http://{host}:{config.server.port}"
