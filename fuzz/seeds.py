"""Seeds: bytes that are meant, and how they are spoiled.

One rule: the same number gives the same bytes, on every machine.
"""

import random
from pathlib import Path

_EXAMPLE = Path(__file__).parents[1] / "examples" / "headgate.toml"

_STREAM = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","model":"claude","usage":{"input_tokens":25,'
    b'"cache_read_input_tokens":3,"output_tokens":1}}}\n\nevent: ping\ndata: {"type": "ping"}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi"}}'
    b'\n\nevent: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":'
    b'{"output_tokens":15}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'
)
_CHUNKS = (
    b'data: {"id":"c","model":"gpt-5","choices":[{"index":0,"delta":{"content":"Hi"}}]}\r\n\r\n: keep\r\n\r\n'
    b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21,'
    b'"completion_tokens_details":{"reasoning_tokens":4}}}\n\ndata: [DONE]\n\n'
)
_RESPONSE = (
    b'event: response.completed\ndata: {"type":"response.completed","response":{"id":"r","model":"gpt-5","usage":'
    b'{"input_tokens":8,"input_tokens_details":{"cached_tokens":2},"output_tokens":3}}}\n\n'
)
_BODIES = (
    b'{"model":"claude-sonnet-4-5","max_tokens":1024,"stream":true,"system":[{"type":"text","text":"x",'
    b'"cache_control":{"type":"ephemeral","ttl":"1h"}}],"messages":[{"role":"user","content":[{"type":"image",'
    b'"source":{"type":"base64","media_type":"image/png","data":"iVBORw0KGgoAAAANSUhEUgAAAAEAAAAB"}},{"type":"text",'
    b'"text":"hi"}]}],"tools":[{"name":"t","input_schema":{}}]}',
    b'{"model":"gpt-5","stream":true,"stream_options":{"include_usage":false,"x":1},"n":2,"max_completion_tokens":64,'
    b'"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBOR"}}]}]}',
    b'{"model":"gpt-5","input":[{"role":"user","content":[{"type":"input_text","text":"hi"}]}],"max_output_tokens":9,'
    b'"tools":[{"type":"web_search"}]}',
    b'{"model":"davinci","prompt":["a","b"],"best_of":3,"n":1,"max_tokens":5,"stream":true}',
    b'{"model":"text-embedding-3-small","input":["one","two",[1,2,3]]}',
)
_DOCUMENTS = (
    b'{"id":"m","type":"message","model":"claude","content":[{"type":"text","text":"Hi"}],"usage":{"input_tokens":11,'
    b'"cache_creation_input_tokens":4,"cache_creation":{"ephemeral_1h_input_tokens":4},"output_tokens":5}}',
    b'{"id":"c","model":"gpt-5","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":12}}',
)
_HEADERS = (
    b"anthropic-ratelimit-requests-limit: 50\nanthropic-ratelimit-requests-remaining: 49\n"
    b"anthropic-ratelimit-requests-reset: 2026-12-01T12:00:00Z\nretry-after: 17\ndate: Tue, 01 Dec 2026 12:00:00 GMT\n"
    b"anthropic-ratelimit-unified-5h-utilization: 0.5\nanthropic-ratelimit-unified-5h-reset: 1790003600\n"
    b"anthropic-ratelimit-unified-status: allowed_warning",
    b"x-ratelimit-limit-requests: 500\nx-ratelimit-remaining-tokens: 29999\nx-ratelimit-reset-tokens: 6m0s\n"
    b"x-codex-primary-used-percent: 12.5\nx-codex-primary-window-minutes: 299\nx-codex-primary-reset-at: 1790003600\n"
    b"retry-after-ms: 1500",
    b"x-headgate-tags: team=search,stage=dev\nx-headgate-priority: 5\nx-headgate-max-wait: 30\nx-headgate-run: r1",
)
_QUERIES = (
    b"group_by=model,key&since=7d&until=2026-12-01T00:00:00%2B02:00&run=a1b2c3",
    b"account,key:ci,run:nightly-*,tag:team=search",
    b"2026-12-01T12:00:00Z",
    b"5000",
    b"12h",
    b"1790000000.25",
)

_REQUESTS = (
    b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhelloGET /healthz HTTP/1.1\r\nhost: a\r\n\r\n",
    b"POST /a?b=c HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nx: y\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://a/b HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\nGET /c HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    b"POST /d HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nhiPUT /e HTTP/1.0\r\ncontent-length: 1\r\n\r\nx",
)

SEEDS: dict[str, tuple[bytes, ...]] = {
    "events": tuple(b"\x07\xff" + each for each in (_STREAM, _CHUNKS, _RESPONSE)),
    "meter": tuple(
        bytes((choice, encoding)) + each
        for choice, each in (
            (5, _STREAM), (6, _CHUNKS), (0x86, _CHUNKS), (8, _RESPONSE), (0, _DOCUMENTS[0]), (1, _DOCUMENTS[1]),
        )
        for encoding in (0, 2)
    ),
    "decoder": tuple(bytes((choice, 9)) + _STREAM for choice in range(4)),
    "body": tuple(bytes((index % 5,)) + each for index, each in enumerate((*_BODIES, *_BODIES[1:])))
    + tuple(b"\x01" + each for each in _BODIES),
    "headers": _HEADERS,
    "parameters": _QUERIES,
    "http": tuple(b"\x05" + each for each in _REQUESTS),
    "config": (_EXAMPLE.read_bytes(),),
}  # fmt: skip

_ODD = (
    b"", b"\0", b"\r", b"\n", b"\r\n\r\n", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"=", b"-1", b"0", b"1e400", b"nan",
    b"inf", b"true", b"null", b"9" * 30, b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", "é".encode(), b"\\ud800", b"%00", b"&",
    b"data:", b"event: x\n", b"id: 1\n", b'"usage":', b'"stream":true', b'"model":"', b"[" * 200, b'{"a":' * 200, b"A" * 5000,
)  # fmt: skip


def spoiled(name: str, number: int) -> bytes:
    """Give the input of this number for a target: a seed with a few bytes taken, changed, doubled or put in."""
    chance = random.Random(number)  # noqa: S311 - bytes to fuzz with, no secret
    found = bytearray(chance.choice(SEEDS[name]))
    for _ in range(chance.choice((0, 1, 1, 2, 3, 8))):
        at = chance.randrange(len(found) + 1)
        match chance.randrange(6):
            case 0:
                del found[at : at + chance.choice((1, 2, 8, 64))]
            case 1 if at < len(found):
                found[at] ^= 1 << chance.randrange(8)
            case 2:
                found[at:at] = chance.choice(_ODD)
            case 3:
                found[at:at] = found[at : at + chance.choice((1, 4, 40, 400))]
            case 4:
                other = chance.choice(SEEDS[name])
                found[at:] = other[chance.randrange(len(other)) :]
            case _:
                found[at:at] = chance.randbytes(chance.choice((1, 2, 8)))
    return bytes(found)
