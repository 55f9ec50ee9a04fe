"""Keys that stay, and calls with them, for tests of what each of their bearers may do and see."""

import json

from headgate.runtime.keys import make_key

CALL = json.dumps(
    {"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]}
).encode()


def bearing(secret: str) -> list[tuple[bytes, bytes]]:
    return [(b"x-api-key", secret.encode())]


async def a_standing_key(stack, name, **more):
    key = make_key(name, stack.house.clock.now_s(), **more)
    await stack.house.manager.keys.add([key.stored])
    return key


async def call(stack, secret):
    return (await stack.send("POST", "/v1/messages", CALL, [*bearing(secret), (b"x-headgate-max-wait", b"0")]))[0]
