"""`headgate provider` as a user starts and ends it."""

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_at_its_end_it_says_what_it_served_and_refused(ending):
    """Who loaded it had to ask `/_provider/usage` before it was ended, which `--help` does not say."""
    options = ["--listen", "127.0.0.1:0", "--requests-per-minute", "2", "--no-limit-headers", "--first-token-s", "0"]
    command = [sys.executable, "-m", "headgate", "provider", *options, "--tokens-per-second", "1e6"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as provider:
        assert provider.stdout is not None
        url = provider.stdout.readline().rpartition(" at ")[2].strip()
        body = json.dumps({"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": "Hello"}]}).encode()
        told: list[str] = []
        statuses: list[int] = []
        for _ in range(3):
            asked = urllib.request.Request(f"{url}/v1/messages", body, {"x-api-key": "k", "anthropic-version": "x"})
            try:
                with urllib.request.urlopen(asked, timeout=10) as answer:
                    status, headers = answer.status, answer.headers
            except urllib.error.HTTPError as refused:
                status, headers = refused.code, refused.headers
            statuses.append(status)
            told += headers
        provider.send_signal(ending)
        last = provider.stdout.read()
        assert provider.wait(10) == 0
    assert statuses == [200, 200, 429]
    assert not [name for name in told if "ratelimit" in name]
    start = (
        "headgate: simulated provider: 3 requests: 2 served, 1 refused with 429 (requests 1), 0 failed, 0 broken off; "
    )
    assert last.startswith(start)
    assert last.endswith(" output tokens\n")
    assert last.count("\n") == 1
