"""What passes through the gateway, endpoint by endpoint: requests and answers with everything that gateways break.

One rule: a case says what a client sends and what a provider answers, as bytes; what may differ on the way is
`EXCEPTIONS`, and nothing else. `python tests/conformance/cases.py` writes the matrix into the reference.
"""

import gzip
from dataclasses import dataclass, field
from pathlib import Path

Headers = list[tuple[bytes, bytes]]

EXCEPTIONS = (
    "`authorization`, `x-api-key`, `api-key`, `proxy-authorization` and `cookie` of a request are left out, and the account's own credential stands at the end",
    "headers of one connection (`connection` and what it names, `keep-alive`, `te`, `trailer`, `transfer-encoding`, `upgrade`, `expect`, `host`, `content-length`) are those of the next connection; `set-cookie`, `proxy-authenticate` and `access-control-...` of an answer are left out",
    "names of headers arrive in lower case, both ways",
    "`accept-encoding` of calls that are metered says `identity`",
    "`x-headgate-...` of a request stays here; an answer has Headgate's own beside the provider's, but none of the provider's",
    'a streamed chat or completion is asked for its usage (`"stream_options":{"include_usage":true}`); the chunk that tells it is taken out of the answer where the client did not ask for it',
)

ANTHROPIC: Headers = [
    (b"anthropic-version", b"2023-06-01"),
    (b"anthropic-beta", b"context-1m-2025-08-07,a-beta-of-tomorrow"),
    (b"x-claude-code-session-id", b"s-1"),
]
OPENAI: Headers = [(b"openai-beta", b"assistants=v2"), (b"openai-organization", b"org-1")]
ODD: Headers = [
    (b"user-agent", b"agent/1.0 (caf\xe9)"),
    (b"x-repeated", b"one"),
    (b"x-repeated", b"two"),
    (b"x-empty", b""),
    (b"x-stainless-retry-count", b"0"),
]
# Key order, white space, escapes that need not be, numbers that no double holds, and fields that nobody knows.
_ODD = rb'"unknown" : {"big":123456789012345678901234567890,"e":1.0e2,"n":null , "z":[1,2,{}]},"text\u0065":"\ud83d\ude00 \u00e9\/"'
_SAYS = rb'"messages":[{"role":"user","content":"\u0068\ud83d\ude00"},{"role":"assistant","content":[{"type":"thinking","thinking":"\u00e9","signature":"EqQB+/=="}]},{"role":"user","content":"go on"}]'


@dataclass(frozen=True)
class Case:
    """A call: what the client sends, what the provider answers, and what may differ on the way."""

    endpoint: str
    kind: str
    method: str
    target: str
    headers: Headers
    body: bytes
    answer: bytes
    content_type: bytes = b"application/json"
    status: bytes = b"200 OK"
    answer_headers: Headers = field(default_factory=list)
    sent: bytes | None = None
    got: bytes | None = None

    @property
    def is_stream(self) -> bool:
        """Whether the answer is a stream of events."""
        return self.content_type.startswith(b"text/event-stream")

    def __str__(self) -> str:
        return f"{self.method} {self.endpoint}, {self.kind}"


def _messages_stream(*, ends: bool = True) -> bytes:
    start = rb'{"type":"message_start","message":{"id":"msg_1","model":"claude-opus-4-6","usage":{"input_tokens":11,"cache_read_input_tokens":7,"output_tokens":1}}}'
    events = [
        b": a comment\r\n\r\n",
        b"event: message_start\r\ndata: " + start + b"\r\n\r\n",
        b"event: ping\ndata: {}\n\n",
        b'event: content_block_delta\ndata:{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"a/+="}}\n\n',
        b"retry: 10\nid: 7\nevent: of_tomorrow\ndata: {\ndata: }\n\n",
        b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"\\u00e9\xc3\xa9"}}\r\r',
    ]
    if ends:
        events += [
            b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":9}}\n\n',
            b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
        ]
    else:
        events.append(
            b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'
        )
    return b"".join(events)


_USAGE = b'data: {"id":"c","object":"chat.completion.chunk","model":"gpt-x","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}\n\n'


def _chat_stream(piece: bytes) -> tuple[bytes, bytes]:
    """Give what a provider sends, and what of it a client gets that asked for no usage."""
    before = b"".join(
        (
            b": OPENROUTER PROCESSING\n\n",
            b'data: {"id":"c","model":"gpt-x","choices":[{"index":0,%b,"finish_reason":null}],"obfuscation":"x\\u0041"}\n\n'
            % piece,
            b'data: {"id":"c","model":"gpt-x","choices":[{"index":0,%b,"finish_reason":"stop"}]}\r\n\r\n' % piece,
        )
    )
    after = b"data: [DONE]\n\n"
    return before + _USAGE + after, before + after


_CHAT_STREAM, _CHAT_HIDDEN = _chat_stream(b'"delta":{"content":"hi"}')
_TEXT_STREAM, _TEXT_HIDDEN = _chat_stream(b'"text":"hi"')
_RESPONSES_STREAM = (
    b'event: response.created\ndata: {"type":"response.created","response":{"id":"resp_1","status":"in_progress"}}\n\n'
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"h\\u0069"}\n\n'
    b'event: response.completed\ndata: {"type":"response.completed","response":{"id":"resp_1","model":"gpt-x","status":"completed",'
    b'"usage":{"input_tokens":5,"output_tokens":2}}}\n\n'
)
_EVENTS = b"text/event-stream; charset=utf-8"


def _body(start: bytes, *more: bytes) -> bytes:
    return b"{ " + b",\n".join((start, *more, _ODD)) + b" }\n"


def _asked(body: bytes) -> bytes:
    """Give a body that asks for usage, as the gateway makes it: the option stands first."""
    return b'{"stream_options":{"include_usage":true},' + body[1:]


_CLAUDE, _GPT, _TEXT = b'"model":"claude-opus-4-6"', b'"model":"gpt-5"', b'"model":"text-embedding-3-small"'
_STREAM, _PLAIN = b'"stream":true', b'"stream":false'
_MESSAGE = rb'{ "id":"msg_1","type":"message","content":[{"type":"thinking","thinking":"\u00e9","signature":"EqQB+/=="}],"unknown":1e400,"huge":123456789012345678901234567890,"usage":{"input_tokens":3,"output_tokens":5}}'
_CHAT = b'{"id":"c","object":"chat.completion","model":"gpt-x","choices":[{"index":0,"message":{"content":"\\u00e9"},"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":2},"system_fingerprint":null }'
_RESPONSE = b'{"id":"resp_1","object":"response","model":"gpt-x","status":"completed","output":[],"usage":{"input_tokens":5,"output_tokens":2},"odd":1.50}'
_VECTORS = b'{"object":"list","data":[{"embedding":[0.10,-1e-07]}],"model":"text-embedding-3-small","usage":{"prompt_tokens":3,"total_tokens":3}}'
_ERROR = b'{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 210000 tokens"},"request_id":"req_1"}\n'

_messages = _body(_CLAUDE, b'"max_tokens" :  5', _SAYS, _PLAIN)
_messages_streamed = _body(b'"max_tokens":5', _STREAM, _CLAUDE, _SAYS)
_chat = _body(_GPT, b'"max_completion_tokens":5', rb'"messages":[{"role":"user","content":"h\u0069"}]')
_chat_streamed = _body(_GPT, _STREAM, b'"max_tokens":5', rb'"messages":[{"role":"user","content":"h\u0069"}]')
_chat_asking = _body(
    _GPT, _STREAM, b'"stream_options":{ "include_usage":true,"x":1}', rb'"messages":[{"role":"user","content":"hi"}]'
)
_text = _body(_GPT, b'"prompt":["a","b"]', b'"max_tokens":5')
_text_streamed = _body(_GPT, b'"prompt":"h\\u0069"', b'"max_tokens":5', _STREAM)
_response = _body(_GPT, b'"input":"h\\u0069"', b'"max_output_tokens":50')
_response_streamed = _body(_GPT, b'"input":"h\\u0069"', b'"max_output_tokens":50', _STREAM)
_gzipped = gzip.compress(_MESSAGE, mtime=0)
_MULTIPART = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n\x00\xff{}\r\n--x--\r\n'
_FORM: Headers = [(b"content-type", b"multipart/form-data; boundary=x")]

CASES = (
    Case("/v1/messages", "plain", "POST", "/v1/messages?beta=true", ANTHROPIC, _messages, _MESSAGE),
    Case("/v1/messages", "streamed", "POST", "/v1/messages", ANTHROPIC, _messages_streamed, _messages_stream(), _EVENTS),
    Case("/v1/messages", "an error in mid-stream", "POST", "/v1/messages", ANTHROPIC, _messages_streamed, _messages_stream(ends=False), _EVENTS),
    Case("/v1/messages", "gzip", "POST", "/v1/messages", ANTHROPIC, _messages, _gzipped, answer_headers=[(b"Content-Encoding", b"gzip")]),
    Case("/v1/messages", "an unknown encoding", "POST", "/v1/messages", ANTHROPIC, _messages, b"(\xb5/\xfd" + _gzipped, answer_headers=[(b"Content-Encoding", b"zstd")]),
    Case("/v1/messages", "an error", "POST", "/v1/messages", ANTHROPIC, _messages, _ERROR, status=b"400 Bad Request", answer_headers=[(b"request-id", b"req_1"), (b"x-should-retry", b"false")]),
    Case("/v1/messages/count_tokens", "plain", "POST", "/v1/messages/count_tokens?beta=true", ANTHROPIC, _body(_CLAUDE, _SAYS), b'{ "input_tokens":210000}'),
    Case("/v1/messages/count_tokens", "not served", "POST", "/v1/messages/count_tokens", ANTHROPIC, _body(_CLAUDE, _SAYS), b"404 page not found\n", b"text/plain", b"404 Not Found"),
    Case("/v1/chat/completions", "plain", "POST", "/v1/chat/completions", OPENAI, _chat, _CHAT),
    Case("/v1/chat/completions", "streamed", "POST", "/v1/chat/completions", OPENAI, _chat_streamed, _CHAT_STREAM, _EVENTS, sent=_asked(_chat_streamed), got=_CHAT_HIDDEN),
    Case("/v1/chat/completions", "streamed, usage asked for", "POST", "/v1/chat/completions", OPENAI, _chat_asking, _CHAT_STREAM, _EVENTS),
    Case("/v1/completions", "plain", "POST", "/v1/completions", OPENAI, _text, _CHAT),
    Case("/v1/completions", "streamed", "POST", "/v1/completions", OPENAI, _text_streamed, _TEXT_STREAM, _EVENTS, sent=_asked(_text_streamed), got=_TEXT_HIDDEN),
    Case("/v1/responses", "plain", "POST", "/v1/responses", OPENAI, _response, _RESPONSE),
    Case("/v1/responses", "streamed", "POST", "/v1/responses", OPENAI, _response_streamed, _RESPONSES_STREAM, _EVENTS),
    Case("/v1/responses/ID", "get", "GET", "/v1/responses/resp_1?include%5B%5D=x&stream=true", OPENAI, b"", _RESPONSES_STREAM, _EVENTS),
    Case("/v1/responses/ID", "delete", "DELETE", "/v1/responses/resp_1", OPENAI, b"", b'{"id":"resp_1","deleted":true}'),
    Case("/v1/responses/input_tokens", "plain", "POST", "/v1/responses/input_tokens", OPENAI, _response, b'{"input_tokens":5}'),
    Case("/v1/embeddings", "plain", "POST", "/v1/embeddings", OPENAI, _body(_TEXT, b'"input":["h\\u0069",""]'), _VECTORS),
    Case("/v1/models", "Anthropic's shape", "GET", "/v1/models?limit=2&after_id=x", ANTHROPIC, b"", b'{"data":[],"has_more":false }'),
    Case("/v1/models", "OpenAI's shape", "GET", "/v1/models", OPENAI, b"", b'{"object":"list","data":[]}'),
    Case("/v1/models/ID", "get", "GET", "/v1/models/gpt-5", OPENAI, b"", b'{"id":"gpt-5"}'),
    Case("/v1/messages/batches", "create", "POST", "/v1/messages/batches", ANTHROPIC, b'{"requests" :[{"custom_id":"\\u0061"}]}', b'{"id":"msgbatch_1"}'),
    Case("/v1/messages/batches/ID/results", "get", "GET", "/v1/messages/batches/msgbatch_1/results", ANTHROPIC, b"", b'{"custom_id":"a"}\n{"custom_id":"b"}\n', b"application/x-jsonl"),
    Case("/v1/batches", "create", "POST", "/v1/batches", OPENAI, b'{"input_file_id":"file-1"}', b'{"id":"batch_1" }'),
    Case("/v1/batches/ID/cancel", "cancel", "POST", "/v1/batches/batch_1/cancel", OPENAI, b"", b'{"id":"batch_1"}'),
    Case("/v1/files", "upload", "POST", "/v1/files", [*OPENAI, *_FORM], _MULTIPART, b'{"id":"file-1"}'),
    Case("/v1/files", "Anthropic's", "POST", "/v1/files", [*ANTHROPIC, *_FORM], _MULTIPART, b'{"id":"file_1"}'),
    Case("/v1/files/ID/content", "get", "GET", "/v1/files/file-1/content", OPENAI, b"", bytes(range(256)) * 300, b"application/octet-stream"),
    Case("/v1/files/ID", "delete", "DELETE", "/v1/files/file-1", OPENAI, b"", b'{"deleted":true}'),
    Case("any other path", "HEAD", "HEAD", "/v1/files/file-1", OPENAI, b"", b""),
    Case("any other path", "POST", "POST", "/v1/audio/speech?x=%C3%A9", OPENAI, b'{"input":"h\\u0069"}', bytes(range(256)), b"audio/mpeg"),
    Case("any other path", "PUT", "PUT", "/v1/of/tomorrow", OPENAI, b"\x00\xff", b"", status=b"204 No Content"),
)  # fmt: skip

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "conformance.md"


def matrix(clients: dict[str, str]) -> str:
    """Give the text of the reference; `clients` are the real ones that are tested, and by what."""
    lines = [
        "# Conformance",
        "",
        "What a provider receives through the gateway is what its client sent, and what the client receives is what the provider sent, byte for byte. Each row is a test over real sockets",
        "(`tests/conformance`), with each of: a request with its length and in chunks; an answer with its length, in chunks, and ended by its connection; cut into single bytes, into odd pieces, and whole. This page is written by",
        "`python tests/conformance/cases.py`.",
        "",
        "## What may differ",
        "",
        *(f"- {each}" for each in EXCEPTIONS),
        "",
        "A provider that breaks off in the middle of a stream is told by an error event behind what it sent.",
        "",
        "## Endpoints",
        "",
        "| endpoint | case | request | answer |",
        "|---|---|---|---|",
    ]
    for case in CASES:
        sent = "as it is" if case.sent is None else "asked for its usage"
        got = "as it is" if case.got is None else "without the chunk that was asked for"
        lines.append(f"| `{case.endpoint}` | {case.method}: {case.kind} | {sent} | {got} |")
    lines += ["", "## Clients", "", "| client | tested |", "|---|---|"]
    lines += [f"| {client} | {tested} |" for client, tested in clients.items()]
    return "\n".join(lines) + "\n"


CLIENTS = {
    "anthropic SDK, sync and async": "messages, streams, count_tokens, models, refusals (`tests/gateway/test_sdks.py`)",
    "openai SDK, sync and async": "chat, responses, embeddings, streams, models, refusals (`tests/gateway/test_sdks.py`)",
    "raw HTTP/1.1": "every row above (`tests/conformance/test_conformance.py`)",
    "Claude Code": "`-p`, streamed, with a tool call and its result (`tests/clients`, after `make clients`)",
    "Codex": "`exec`, responses streamed, with a command and its output (`tests/clients`)",
    "langchain-anthropic, langchain-openai": "messages, chat and responses with a tool call, streams, embeddings (`tests/clients`)",
    "pydantic-ai": "messages and chat with a tool call (`tests/clients`)",
    "openai-agents": "responses with a tool call, plain and streamed (`tests/clients`)",
    "litellm as a client": "messages and chat, plain and streamed (`tests/clients`)",
}

if __name__ == "__main__":
    REFERENCE.write_text(matrix(CLIENTS), encoding="utf-8")
