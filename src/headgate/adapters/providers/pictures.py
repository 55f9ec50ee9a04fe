"""Pictures in requests: the most tokens that one can count, from the size that stands in its first bytes.

One rule: a size that cannot be read is the largest there is, and a model whose vendor's rule is not known has none.
No picture is decoded.
"""

import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Callable

__all__ = ["picture_tokens"]

# Anthropic, "Images and vision" (platform.claude.com, 2026): 28 x 28 pixels are a token, and what is larger is scaled
# down to at most 4,784 tokens (2,576 pixels) on newer models and 1,568 on older ones.
_CLAUDE_PATCH_PX = 28
_CLAUDE_MOST_TOKENS = 4_784
# OpenAI, "Images and vision" (2026), at the dearest: patches of 32 x 32 pixels, at most 10,000 (detail "original"),
# times at most 2.46 (gpt-4.1-nano); by tiles at most 75 + 8 x 150 or 85 + 8 x 170, and a small one is scaled up.
_OPENAI_PATCH_PX = 32
_OPENAI_MOST_PATCHES = 10_000
_OPENAI_PERCENT = 246
_OPENAI_TILES_TOKENS = 1_445
# gpt-4o-mini counts tiles at 2,833 + 8 x 5,667.
_GPT_4O_MINI_TOKENS = 48_169
_OPENAI_NAME = re.compile(r"(?:ft:)?(?:gpt-[3456]|chatgpt-|o[134](?:-|$)|codex-)")

# A JPEG says its size after its metadata.
_HEAD_CHARS = 4 * 16 * 1024
_WEBP_HEAD_BYTES = 30


def picture_tokens(model: str, base64_text: str) -> int | None:
    """Give the most tokens that an embedded picture counts for a model; None if its vendor's rule is not known.

    A video or an animation is refused by both vendors or read by its first frame.
    """
    name = model.lower().rpartition("/")[2]
    size = _size(base64_text)
    if "claude" in name:
        return _CLAUDE_MOST_TOKENS if size is None else min(_CLAUDE_MOST_TOKENS, _patches(*size, _CLAUDE_PATCH_PX))
    if not _OPENAI_NAME.match(name):
        return None
    if "4o-mini" in name:
        return _GPT_4O_MINI_TOKENS
    patches = _OPENAI_MOST_PATCHES if size is None else min(_OPENAI_MOST_PATCHES, _patches(*size, _OPENAI_PATCH_PX))
    return max(_OPENAI_TILES_TOKENS, -(-patches * _OPENAI_PERCENT // 100))


def _patches(width: int, height: int, patch_px: int) -> int:
    return -(-width // patch_px) * -(-height // patch_px)


def _size(base64_text: str) -> tuple[int, int] | None:
    # GIF is left out: the frame that is shown may be larger than the size in the file's head.
    try:
        head = a2b_base64(base64_text[:_HEAD_CHARS])
    except (Base64Error, ValueError):
        return None
    for magic, read in _READERS:
        if head.startswith(magic):
            width, height = read(head) or (0, 0)
            return (width, height) if width and height else None
    return None


def _png(head: bytes) -> tuple[int, int] | None:
    if head[12:16] != b"IHDR" or len(head) < 24:  # noqa: PLR2004 - the end of its size
        return None
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


_SIZED_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE_MARKERS = frozenset((0x01, *range(0xD0, 0xD9)))
_FILL = 0xFF


def _jpeg(head: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(head) and head[at] == _FILL:
        marker = head[at + 1]
        if marker == _FILL:
            at += 1
        elif marker in _BARE_MARKERS:
            at += 2
        elif marker in _SIZED_FRAMES:
            return int.from_bytes(head[at + 7 : at + 9], "big"), int.from_bytes(head[at + 5 : at + 7], "big")
        else:
            at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return None


def _webp(head: bytes) -> tuple[int, int] | None:
    if head[8:12] != b"WEBP" or len(head) < _WEBP_HEAD_BYTES:
        return None
    match head[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
        case b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
        case _:
            return None


_READERS: tuple[tuple[bytes, Callable[[bytes], tuple[int, int] | None]], ...] = (
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"\xff\xd8", _jpeg),
    (b"RIFF", _webp),
)
