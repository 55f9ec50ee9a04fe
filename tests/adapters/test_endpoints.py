"""Which paths are known, which pass, and whether what passes spends anything."""

from pathlib import Path

import pytest

from headgate.adapters.providers import endpoints
from headgate.adapters.providers.endpoints import endpoint_of

ANTHROPIC = [(b"anthropic-version", b"2023-06-01")]


@pytest.mark.parametrize(
    ("method", "path", "headers", "expected"),
    [
        ("POST", "/v1/messages", [], ("messages", "anthropic", True, False)),
        ("POST", "/v1/completions", [], ("completions", "openai", True, False)),
        ("GET", "/v1/models", ANTHROPIC, ("models", "anthropic", False, False)),
        ("GET", "/v1/models/claude-x", ANTHROPIC, ("models", "anthropic", False, True)),
        ("GET", "/v1/models/gpt-x", [], ("models", "openai", False, True)),
        ("POST", "/v1/messages/batches", [], ("message_batches", "anthropic", True, True)),
        ("GET", "/v1/messages/batches/b_1/results", [], ("message_batches", "anthropic", False, True)),
        ("POST", "/v1/messages/batches/b_1/cancel", [], ("message_batches", "anthropic", False, True)),
        ("POST", "/v1/batches", [], ("batches", "openai", True, True)),
        ("POST", "/v1/files", [], ("files", "openai", False, True)),
        ("POST", "/v1/files", ANTHROPIC, ("files", "anthropic", False, True)),
        ("GET", "/v1/files/f_1/content?x=1", [], ("files", "openai", False, True)),
        ("POST", "/v1/uploads/u_1/parts", [], ("files", "openai", False, True)),
        ("GET", "/v1/responses/r_1", [], ("stored_responses", "openai", False, True)),
        ("DELETE", "/v1/responses/r_1", [], ("stored_responses", "openai", False, True)),
        ("POST", "/v1/responses/input_tokens", [], ("stored_responses", "openai", False, True)),
        ("POST", "/v1/responses/compact", [], ("stored_responses", "openai", True, True)),
        ("POST", "/v1/images/generations", [], ("other", "openai", True, True)),
        ("POST", "/v1/messages/what", [], ("other", "anthropic", True, True)),
        ("POST", "/v1/filesystem", [], ("other", "openai", True, True)),
    ],
)
def test_a_path_is_known_or_passes(method, path, headers, expected):
    found = endpoint_of(path, headers, method)
    assert found is not None
    assert (found.name, found.dialect, found.metered, found.passes) == expected


@pytest.mark.parametrize("path", ["/", "/v1", "/v2/messages", "/api/v1/usage", "/healthz", "/metrics"])
def test_what_is_no_providers_does_not_pass(path):
    assert endpoint_of(path, [], "GET") is None


def test_the_reference_has_every_path():
    text = (Path(__file__).parents[2] / "docs" / "reference" / "endpoints.md").read_text(encoding="utf-8")
    assert [path for path in endpoints._ENDPOINTS if f"| `{path}` | POST |" not in text] == []
    passed = [start for start, _, _ in endpoints._PASSED if start not in {"/v1/messages", "/v1/chat/completions"}]
    assert [start for start in passed if f"`{start}" not in text] == []
