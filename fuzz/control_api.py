"""`python -m fuzz.control_api`: schemathesis against a gateway of its own, over the document that it serves.

One rule: nothing outside is asked: the provider is the simulated one, and both listen on loopback.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TOKEN = "admin-token-of-this-run"  # noqa: S105 - of a gateway that lives as long as this
CONFIG = """
[store]
url = "sqlite:///headgate.sqlite"
[server]
listen = "127.0.0.1:0"
admin_token = "env:ADMIN_TOKEN"
[[account]]
name = "main"
provider = "anthropic"
base_url = "http://127.0.0.1:9"
api_key = "env:PROVIDER_KEY"
models = ["claude-*"]
[[limit]]
scope = "account:main"
requests_per_minute = 50
usd_per_day = 5
[[limit]]
scope = "key:*"
tokens_per_hour = 10_000
[[key]]
name = "ci"
team = "search"
"""
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "ignored_auth,unsupported_method,negative_data_rejection"
)


def main() -> int:
    """Give the status of what schemathesis found."""
    asked = argparse.ArgumentParser(prog="python -m fuzz.control_api")
    asked.add_argument("--examples", type=int, default=200, help="for each operation and phase")
    asked.add_argument("--seed", type=int, default=1)
    said = asked.parse_args()
    command = Path(sys.executable).parent / "schemathesis"
    if not command.exists():
        print("SKIPPED: schemathesis is not installed (pip install -r fuzz/requirements.txt)", file=sys.stderr)
        return 0
    folder = Path(tempfile.mkdtemp(prefix="headgate-fuzz-"))
    (folder / "headgate.toml").write_text(CONFIG)
    environ = {**os.environ, "ADMIN_TOKEN": TOKEN, "PROVIDER_KEY": "none"}
    serve = [str(command.with_name("headgate")), "serve", "--config", str(folder / "headgate.toml")]
    with subprocess.Popen(serve, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as gateway:  # noqa: S603 - our own command
        try:
            assert gateway.stdout is not None
            first = gateway.stdout.readline()
            assert "serving http://" in first, first
            address = first.split()[2]
            options = ["--checks", CHECKS, "--exclude-path", "/api/v1/events", "--max-examples", str(said.examples)]
            options += ["--seed", str(said.seed), "--header", f"x-api-key: {TOKEN}", "--request-timeout", "30"]
            options += ["--continue-on-failure", "--no-color"]
            run = [str(command), "run", f"{address}/api/v1/openapi.json", *options]
            status = subprocess.run(run, check=False).returncode  # noqa: S603 - as above
            assert gateway.poll() is None, "the gateway has ended"
        finally:
            gateway.terminate()
            gateway.wait(timeout=60)
    shutil.rmtree(folder)
    return status


if __name__ == "__main__":
    sys.exit(main())
