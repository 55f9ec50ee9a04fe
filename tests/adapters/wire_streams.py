"""What the tests of the wire share: ways to cut a stream, to carry it through a meter, and SDKs without a network."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import anthropic
import httpx2
import openai

from headgate.adapters.providers.endpoints import Endpoint, endpoint_of
from headgate.adapters.providers.meters import Meter, open_meter

SSE = b"text/event-stream; charset=utf-8"
JSON = b"application/json"
Respond = Callable[[httpx2.Request], httpx2.Response]


def endpoint(path: str) -> Endpoint:
    found = endpoint_of(path, [])
    assert found is not None
    return found


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in pairwise(bounds) if start < end]


def carry(
    path: str, content_type: bytes, chunks: Iterable[bytes], *, encoding: bytes = b"", hides_usage: bool = False
) -> tuple[bytes, Meter]:
    meter = open_meter(endpoint(path), content_type, encoding, hides_usage=hides_usage)
    passed = b"".join(meter.feed(chunk) for chunk in chunks)
    return passed + meter.close(), meter


def anthropic_client(respond: Respond, **options: Any) -> anthropic.Anthropic:
    http = httpx2.Client(transport=httpx2.MockTransport(respond))
    return anthropic.Anthropic(api_key="key", base_url="http://gateway", http_client=http, **options)


def openai_client(respond: Respond, **options: Any) -> openai.OpenAI:
    http = httpx2.Client(transport=httpx2.MockTransport(respond))
    return openai.OpenAI(api_key="key", base_url="http://gateway/v1", http_client=http, **options)
