"""What a 429 names in its words, and the word by which an owner allows overage."""

import json

import pytest

from headgate.adapters.config import load_config
from headgate.adapters.providers.failures import read_failure


@pytest.mark.parametrize(
    ("message", "dimension"),
    [
        ("This request would exceed the rate limit of 8,000 output tokens per minute for claude.", "output_tokens"),
        ("... your organization's rate limit of 40,000 input tokens per minute", "input_tokens"),
        ("Rate limit reached for gpt-5 on tokens per min (TPM): Limit 40000, Used 39000", "tokens"),
        ("Rate limit reached for gpt-5 on requests per min (RPM): Limit 3", "requests"),
        ("Rate limit reached on requests per day (RPD): Limit 200", "requests"),
        ("x" * 5_000 + " output tokens per minute", None),
        (["not a text"], None),
    ],
)
def test_a_429_tells_in_its_words_which_limit_it_is(message, dimension):
    body = json.dumps({"error": {"type": "rate_limit_error", "message": message}}).encode()
    assert read_failure(429, (), body).dimension == dimension
    assert read_failure(500, (), body).dimension is None


def test_overage_is_allowed_by_a_word_of_the_account(tmp_path):
    path = tmp_path / "headgate.toml"
    account = '[[account]]\nname = "main"\nprovider = "anthropic"\napi_key = "env:K"\n'
    path.write_text(account)
    assert load_config(path, {"K": "sk"}).accounts[0].account.overage is False
    path.write_text(account + "overage = true\n")
    assert load_config(path, {"K": "sk"}).accounts[0].account.overage is True
