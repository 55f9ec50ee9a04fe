"""What the simulated rows share: a configuration with one account and limits of so much a minute.

One rule: it is written and read as a user's is, so that defaults such as a bucket's depth are the product's own.
"""

import tempfile
from pathlib import Path

from headgate.adapters.config import Config
from headgate.compose import read_config


def config_of(*, burst_s: float | None = None, **per_minute: int) -> Config:
    """Give the configuration of one Anthropic account; `input_tokens_per_minute=...` and so on."""
    lines = [f"{word} = {amount}" for word, amount in per_minute.items()]
    if burst_s is not None:
        lines.append(f"burst_s = {burst_s}")
    with tempfile.TemporaryDirectory(prefix="headgate-simulated-") as folder:
        path = Path(folder) / "headgate.toml"
        path.write_text(
            '[[account]]\nname = "main"\nprovider = "anthropic"\napi_key = "env:HEADGATE_BENCH_KEY"\n'
            '[[limit]]\nscope = "account:main"\n' + "\n".join(lines)
        )
        return read_config(path, credentials=False)
