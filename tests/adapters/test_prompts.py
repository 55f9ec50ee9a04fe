"""Prompts: what a body holds is never taken for less than a vendor may count it, and what it only names is unknown."""

import json
import struct
import zlib
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.adapters.prices import GenaiPrices
from headgate.adapters.providers.pictures import picture_tokens
from headgate.adapters.providers.prompts import prompt_bound
from headgate.adapters.windows import WindowOverride
from headgate.core.bounds import OVERHEAD_TOKENS, PromptBound, Reach

CLAUDE, GPT = "claude-opus-4-6", "gpt-5"


def png(width: int, height: int) -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + head + struct.pack(">I", zlib.crc32(head)) + bytes(200)


def jpeg(width: int, height: int, metadata_bytes: int = 20) -> bytes:
    metadata = b"\xff\xe1" + struct.pack(">H", metadata_bytes + 2) + bytes(metadata_bytes)
    return b"\xff\xd8" + metadata + b"\xff\xc0" + struct.pack(">HBHH", 17, 8, height, width) + bytes(40)


def webp(chunk: bytes, size: bytes) -> bytes:
    return b"RIFF\x99\x99\0\0WEBP" + chunk + bytes(4) + size + bytes(40)


WEBPS = [
    webp(b"VP8X", bytes(4) + (1119).to_bytes(3, "little") + (559).to_bytes(3, "little")),
    webp(b"VP8L", b"\x2f" + (1119 | 559 << 14).to_bytes(4, "little")),
    webp(b"VP8 ", bytes(3) + b"\x9d\x01\x2a" + struct.pack("<HH", 1120, 560)),
]


def base64(raw: bytes) -> str:
    return b64encode(raw).decode()


def bound(endpoint: Any, model: str, **body: Any) -> PromptBound:
    return prompt_bound(endpoint, model, json.dumps({"model": model, **body}).encode())


def image(data: str) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def said(*parts: Any, role: str = "user") -> list[Any]:
    return [{"role": role, "content": list(parts)}]


# --- pictures


@pytest.mark.parametrize("picture", [png(1120, 560), jpeg(1120, 560), jpeg(1120, 560, 30_000), *WEBPS])
def test_a_picture_counts_by_the_size_in_its_head(picture: bytes) -> None:
    assert picture_tokens(CLAUDE, base64(picture)) == 40 * 20
    assert picture_tokens("openai/gpt-4.1-nano", base64(picture)) == -(-35 * 18 * 246 // 100)


@pytest.mark.parametrize(
    "picture",
    [png(8000, 8000), jpeg(8000, 8000), jpeg(100, 100, 60_000), b"GIF89a\1\0\1\0" + bytes(90), b"nothing", png(0, 9)],
)
def test_a_picture_whose_size_is_not_told_is_the_largest(picture: bytes) -> None:
    assert picture_tokens(CLAUDE, base64(picture)) == 4_784
    assert picture_tokens(GPT, base64(picture)) == 24_600


def test_small_pictures_are_scaled_up_by_some_and_other_models_rules_are_not_known() -> None:
    assert picture_tokens("gpt-4o", base64(png(1, 1))) == 1_445
    assert picture_tokens("gpt-4o-mini", base64(png(1, 1))) == 48_169
    assert picture_tokens("qwen-vl-max", base64(png(1, 1))) is None
    assert picture_tokens(CLAUDE, "é not base64") == 4_784


@given(st.binary(max_size=80), st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"RIFF....WEBPVP8X", b"RIFF", b""]))
def test_no_bytes_make_a_picture_free_or_break_the_reader(rest: bytes, magic: bytes) -> None:
    tokens = picture_tokens(CLAUDE, base64(magic + rest))
    assert tokens is not None
    assert 1 <= tokens <= 4_784


# --- what is in a body


def test_text_counts_a_token_for_each_of_its_bytes() -> None:
    body = json.dumps(
        {"model": CLAUDE, "system": "s", "messages": said({"type": "text", "text": "7391" * 999})}
    ).encode()
    assert prompt_bound("messages", CLAUDE, body) == PromptBound(len(body), OVERHEAD_TOKENS)


def test_embedded_pictures_are_taken_out_of_the_text_wherever_they_stand() -> None:
    data = base64(png(1120, 560))
    result = {"type": "tool_result", "tool_use_id": "t", "content": [image(data), {"type": "text", "text": "ok"}]}
    page = {"type": "document", "source": {"type": "content", "content": [image(data)]}}
    found = bound("messages", CLAUDE, messages=said(image(data), result, page))
    assert (found.extra_tokens, found.unknown) == (OVERHEAD_TOKENS + 3 * 800, None)
    assert 0 < found.text_bytes < 700
    url = f"data:image/png;base64,{data}"
    found = bound("chat", GPT, messages=said({"type": "image_url", "image_url": {"url": url, "detail": "low"}}))
    assert (found.extra_tokens, found.unknown) == (OVERHEAD_TOKENS + 1_550, None)
    items = [
        *said({"type": "input_image", "image_url": url}),
        {"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot", "image_url": url}},
    ]
    found = bound("responses", GPT, input=items)
    assert (found.extra_tokens, found.unknown) == (OVERHEAD_TOKENS + 2 * 1_550, None)


PDF = base64(b"%PDF-1.7\n1 0 obj<</Type/Page>>stream\n" + zlib.compress(b"BT (word) Tj ET " * 9_999) + b"\nendstream")
URL = {"type": "url", "url": "https://example.com/a"}


@pytest.mark.parametrize(
    ("endpoint", "model", "body"),
    [
        ("messages", CLAUDE, {"messages": said({"type": "document", "source": {"type": "base64", "data": PDF}})}),
        ("messages", CLAUDE, {"messages": said({"type": "document", "source": URL})}),
        ("messages", CLAUDE, {"messages": said({"type": "document", "source": {"type": "file", "file_id": "f"}})}),
        ("messages", CLAUDE, {"messages": said({"type": "image", "source": URL})}),
        ("messages", CLAUDE, {"messages": said({"type": "image", "source": {"type": "file", "file_id": "f"}})}),
        ("messages", CLAUDE, {"system": [{"type": "document", "source": URL}]}),
        (
            "messages",
            CLAUDE,
            {"messages": said({"type": "tool_result", "content": [{"type": "image", "source": URL}]})},
        ),
        ("messages", CLAUDE, {"messages": said({"type": "container_upload", "file_id": "f"})}),
        ("messages", CLAUDE, {"container": "c"}),
        ("messages", CLAUDE, {"messages": said({"type": "of tomorrow"})}),
        ("messages", CLAUDE, {"messages": said({"type": ["text"]})}),
        ("messages", CLAUDE, {"messages": said("text")}),
        ("messages", "qwen-vl", {"messages": said(image(base64(png(9, 9))))}),
        ("chat", GPT, {"messages": said({"type": "image_url", "image_url": {"url": "https://example.com/a"}})}),
        ("chat", GPT, {"messages": said({"type": "file", "file": {"file_id": "f"}})}),
        ("chat", GPT, {"messages": said({"type": "file", "file": {"file_data": PDF}})}),
        ("chat", GPT, {"messages": said({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}})}),
        ("chat", GPT, {"messages": [{"role": "assistant", "audio": {"id": "a"}}]}),
        ("responses", GPT, {"input": "go on", "previous_response_id": "resp_1"}),
        ("responses", GPT, {"input": "go on", "conversation": {"id": "conv_1"}}),
        ("responses", GPT, {"prompt": {"id": "pmpt_1"}}),
        ("responses", GPT, {"input": said({"type": "input_image", "file_id": "f"})}),
        ("responses", GPT, {"input": said({"type": "input_image", "image_url": "https://example.com/a"})}),
        ("responses", GPT, {"input": said({"type": "input_file", "file_url": "https://example.com/a"})}),
        ("responses", GPT, {"input": [{"type": "item_reference", "id": "i"}]}),
        ("responses", GPT, {"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}),
        ("responses", GPT, {"input": [{"type": "compaction", "encrypted_content": "x"}]}),
    ],
)
def test_what_a_body_only_names_or_packs_is_unknown(endpoint: Any, model: str, body: dict[str, Any]) -> None:
    assert bound(endpoint, model, **body).unknown


def test_a_name_written_with_escapes_is_found_too() -> None:
    assert prompt_bound("responses", GPT, rb'{"model":"gpt-5","previous_r\u0065sponse_id":"resp_1"}').unknown
    assert prompt_bound("responses", GPT, b"[]").unknown
    assert prompt_bound("responses", GPT, b"{").unknown


def test_what_agents_send_is_known() -> None:
    anthropic = said(
        {"type": "thinking", "thinking": "", "signature": "x" * 99},
        {"type": "tool_use", "id": "t", "input": {"url": "u"}},
    )
    tools = [{"name": "read", "input_schema": {"properties": {"file_id": {"type": "string"}}}}]
    found = bound("messages", CLAUDE, system=[{"type": "text", "text": "s"}], messages=anthropic, tools=tools)
    assert (found.unknown, found.turns) == (None, 1)
    codex = [
        *said({"type": "input_text", "text": "go"}),
        {"type": "reasoning", "summary": [], "encrypted_content": "gAAA"},
        {"type": "function_call", "name": "shell", "arguments": '{"url": "u"}'},
        {"type": "function_call_output", "call_id": "c", "output": "done"},
    ]
    found = bound("responses", GPT, input=codex, tools=[{"type": "function", "name": "shell"}])
    assert (found.unknown, found.turns) == (None, 1)


@pytest.mark.parametrize(
    ("endpoint", "body", "turns"),
    [
        ("messages", {"tools": [{"type": "web_search_20260209", "name": "web_search"}]}, None),
        ("messages", {"mcp_servers": [{"url": "https://example.com"}]}, None),
        ("messages", {"context_management": {"edits": [{"type": "compact_20260112"}]}}, None),
        ("messages", {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, 1),
        ("messages", {"tools": [{"type": "bash_20250124", "name": "bash"}, {"type": "custom", "name": "c"}]}, 1),
        ("chat", {"web_search_options": {}}, None),
        ("chat", {"tools": [{"type": "function"}]}, 1),
        ("responses", {"tools": [{"type": "web_search"}]}, None),
        ("responses", {"tools": [{"type": "web_search"}], "max_tool_calls": 2}, 3),
        ("responses", {"tools": [{"type": "local_shell"}, {"type": "custom"}], "max_tool_calls": 2}, 1),
    ],
)
def test_tools_that_the_provider_runs_read_the_prompt_more_than_once(
    endpoint: Any, body: Any, turns: int | None
) -> None:
    assert bound(endpoint, CLAUDE if endpoint == "messages" else GPT, **body).turns == turns


def test_embeddings_of_many_texts_are_not_bound_by_one_window() -> None:
    found = bound("embeddings", "text-embedding-3-small", input=["a" * 9_000] * 9)
    assert (found.windowed, found.unknown, found.text_bytes > 81_000) == (False, None, True)


# --- how far models reach


@pytest.mark.parametrize(
    ("model", "reach"),
    [
        ("claude-sonnet-4-5", Reach(200_000, 128_000)),
        ("anthropic/claude-opus-4-6", Reach(1_000_000, 128_000)),
        ("gpt-4.1", Reach(1_050_000, 32_768)),
        ("gpt-5-pro", Reach(420_000, 272_000)),
        ("o3", Reach(210_000, 100_000)),
        ("o3-mini", Reach(210_000, 100_000)),
        ("of-nobody", Reach()),
        ("x" * 300, Reach()),
    ],
)
def test_how_far_a_model_reaches(model: str, reach: Reach) -> None:
    assert GenaiPrices().reach(model) == reach


def test_the_owner_s_word_wins_and_leaves_the_rest_to_what_is_known() -> None:
    prices = GenaiPrices(
        (), [WindowOverride("gpt-*", max_output_tokens=9_000, server_tool_turns=2), WindowOverride("*", 7_000)]
    )
    assert prices.reach("gpt-4.1") == Reach(1_050_000, 9_000, 2)
    assert prices.reach("of-nobody") == Reach(7_000, None)
