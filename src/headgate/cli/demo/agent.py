"""The example's agent: a small coding agent in plain Python, as a user would write one for `headgate run --python`.

One rule: it knows nothing of limits. It calls an Anthropic-compatible endpoint with the key it was given, reads the
stream, and goes on with a longer conversation, as agents do; who may call when is Headgate's affair.
"""

from typing import Any

import msgspec

from headgate.adapters.providers.http import HttpClient, Timeouts, parse_url
from headgate.ports import Desk

_CACHED = {"type": "ephemeral"}
_TIMEOUTS = Timeouts(first_byte_s=900.0)


async def work(task: dict[str, Any], desk: Desk) -> str:
    """Work on one task: `turns` calls, each with the tool results of the last one (`reads_bytes` each) appended."""
    client = HttpClient()
    messages: list[dict[str, Any]] = [{"role": "user", "content": [_text(task["prompt"])]}]
    try:
        for turn in range(task["turns"]):
            said = await _ask(client, desk, task, messages)
            messages[-1]["content"][-1].pop("cache_control", None)
            messages.append({"role": "assistant", "content": [_text(said or "(nothing)")]})
            messages.append({"role": "user", "content": [_text(_tool_result(task, turn))]})
    finally:
        await client.close()
    return f"{task['turns']} turns, {sum(len(str(message)) for message in messages):,} characters of context"


async def _ask(client: HttpClient, desk: Desk, task: dict[str, Any], messages: list[dict[str, Any]]) -> str:
    messages[-1]["content"][-1]["cache_control"] = _CACHED
    body = msgspec.json.encode(
        {
            "model": task["model"],
            "max_tokens": 400,
            "stream": True,
            "system": [{**_text(task["system"]), "cache_control": _CACHED}],
            "messages": messages,
        }
    )
    origin, path = parse_url(desk.anthropic_base_url)
    headers = [
        (b"content-type", b"application/json"),
        (b"anthropic-version", b"2023-06-01"),
        (b"x-api-key", desk.key.encode()),
    ]
    target = path.rstrip(b"/") + b"/v1/messages"
    async with client.send("POST", origin, target, headers=headers, body=body, timeouts=_TIMEOUTS) as reply:
        answer = await reply.read(4 * 1024 * 1024)
    if reply.status != 200:  # noqa: PLR2004 - HTTP's word for success
        raise RuntimeError(f"status {reply.status}: {answer[:300].decode(errors='replace')}")
    return "".join(_pieces(answer))


def _pieces(answer: bytes) -> list[str]:
    pieces = []
    for line in answer.split(b"\n"):
        if line.startswith(b"data:") and b'"text_delta"' in line:
            event = msgspec.json.decode(line[5:])
            pieces.append(str(event["delta"]["text"]))
    return pieces


def _tool_result(task: dict[str, Any], turn: int) -> str:
    size = int(task["reads_bytes"])
    line = f"{task['name']}: result {turn} of the tools that were called. "
    return (line * (size // len(line) + 1))[:size]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}
