"""Changing a request's model and its effort of reasoning: what a body says of both, and the splice of a smaller one.

One rule: only these values are replaced, the rest stays as the client wrote it, and nothing is added: who did not speak
of reasoning still does not. Whether to change anything is the owner's rules' affair (`core.model_rules`).
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from headgate.adapters.providers.body import member_spans
from headgate.adapters.providers.endpoints import EndpointName
from headgate.adapters.providers.reading import UNREADABLE
from headgate.core.errors import CallerError
from headgate.core.model_rules import EFFORTS, Effort

__all__ = ["CHANGEABLE", "effort_of", "with_model"]

CHANGEABLE: frozenset[EndpointName] = frozenset({"messages", "chat", "responses"})
"""Where another model can answer: vectors of another model than the others' would be of no use."""

THINKING_TOKENS: Mapping[Effort, int] = {"low": 1_024, "medium": 4_096, "high": 16_384}
"""What an effort stands for where a body gives a budget of thinking. Anthropic takes no less than 1,024 ("Extended
thinking"); the steps above are ours, a factor of four each."""


class _Said(NamedTuple):
    """Where a body says how much to reason, as a word; `in_tokens` where it stands there as a number."""

    start: int
    end: int
    effort: str
    in_tokens: bool = False


def effort_of(endpoint: EndpointName, body: bytes) -> str | None:
    """Give the highest effort of reasoning that a body asks for, None if it says none that is known.

    Raises:
        CallerError: a field comes twice, or cannot be read.
    """
    said = [each.effort for each in _said(endpoint, body, _members(body))]
    return max(said, key=EFFORTS.index, default=None)


def with_model(endpoint: EndpointName, body: bytes, model: str, effort: Effort | None = None) -> bytes:
    """Give a body that asks for this model, and for no more than this effort.

    Raises:
        CallerError: a field comes twice or cannot be read, so that it cannot be told what a change would do.
    """
    spans = _members(body)
    edits = []
    if msgspec.json.decode(_cut(body, spans["model"])) != model:
        edits.append((*spans["model"], msgspec.json.encode(model)))
    if effort is not None:
        for said in _said(endpoint, body, spans):
            if EFFORTS.index(said.effort) > EFFORTS.index(effort):
                value = THINKING_TOKENS[effort] if said.in_tokens else effort
                edits.append((said.start, said.end, msgspec.json.encode(value)))
    for start, end, written in sorted(edits, reverse=True):  # from the end, so that what stands before keeps its place
        body = body[:start] + written + body[end:]
    return body


def _said(endpoint: EndpointName, body: bytes, spans: Mapping[str, tuple[int, int]]) -> Iterator[_Said]:
    match endpoint:
        case "chat":
            yield from _word(body, spans.get("reasoning_effort"))
        case "responses":
            yield from _word(body, _inside(body, spans.get("reasoning"), "effort"))
        case "messages":
            yield from _word(body, _inside(body, spans.get("output_config"), "effort"))
            yield from _tokens(body, _inside(body, spans.get("thinking"), "budget_tokens"))


def _members(body: bytes) -> dict[str, tuple[int, int]]:
    try:
        return member_spans(body)
    except UNREADABLE as error:
        raise CallerError(f"the body cannot be read: {error}") from error


def _inside(body: bytes, span: tuple[int, int] | None, name: str) -> tuple[int, int] | None:
    """Give where a member of an object within the body stands."""
    if span is None or not body.startswith(b"{", span[0]):
        return None
    found = _members(_cut(body, span)).get(name)
    return None if found is None else (span[0] + found[0], span[0] + found[1])


def _word(body: bytes, span: tuple[int, int] | None) -> Iterator[_Said]:
    if span is None:
        return
    try:
        word = msgspec.json.decode(_cut(body, span), type=str)
    except UNREADABLE:
        return
    if word in EFFORTS:
        yield _Said(*span, word)


def _tokens(body: bytes, span: tuple[int, int] | None) -> Iterator[_Said]:
    if span is None:
        return
    try:
        tokens = msgspec.json.decode(_cut(body, span), type=int)
    except UNREADABLE:
        return
    effort = next((effort for effort, most in THINKING_TOKENS.items() if tokens <= most), "xhigh")
    yield _Said(*span, effort, in_tokens=True)


def _cut(body: bytes, span: tuple[int, int]) -> bytes:
    return body[span[0] : span[1]]
