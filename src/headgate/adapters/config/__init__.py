"""Configuration: `headgate.toml` and the environment, read and checked once.

One rule: what comes out of `load_config` needs no further check, and every problem of a file is told in one error. It
starts and opens nothing, and the only file that it reads is the configuration itself.
"""

from headgate.adapters.config.budgets import above_its_parents
from headgate.adapters.config.changes import changes_in_words, needs_restart
from headgate.adapters.config.limits import limit_rules, limits_in_words
from headgate.adapters.config.loading import load_config
from headgate.adapters.config.settings import (
    Config,
    ConfiguredAccount,
    ConfiguredKey,
    Secret,
    Server,
    Store,
    Timeouts,
)

__all__ = [
    "Config",
    "ConfiguredAccount",
    "ConfiguredKey",
    "Secret",
    "Server",
    "Store",
    "Timeouts",
    "above_its_parents",
    "changes_in_words",
    "limit_rules",
    "limits_in_words",
    "load_config",
    "needs_restart",
]
