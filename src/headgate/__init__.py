"""Headgate: who may call an LLM provider now, who waits, for how long, and at what cost.

The public names are loaded when they are first used, so that `import headgate` is quick and does nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headgate.compose import House, open_house, open_manager, read_config
    from headgate.core.amounts import Amounts, usd
    from headgate.core.errors import (
        BudgetError,
        CallerError,
        ConfigError,
        DeadlineError,
        HeadgateError,
        LimitError,
        ProviderError,
        StoreError,
    )
    from headgate.core.scopes import Scopes
    from headgate.core.usage import Usage
    from headgate.runtime.calls import Call, Grant
    from headgate.runtime.manager import Manager

_HOMES = {
    "Amounts": "core.amounts",
    "BudgetError": "core.errors",
    "Call": "runtime.calls",
    "CallerError": "core.errors",
    "ConfigError": "core.errors",
    "DeadlineError": "core.errors",
    "Grant": "runtime.calls",
    "HeadgateError": "core.errors",
    "House": "compose",
    "LimitError": "core.errors",
    "Manager": "runtime.manager",
    "ProviderError": "core.errors",
    "Scopes": "core.scopes",
    "StoreError": "core.errors",
    "Usage": "core.usage",
    "open_house": "compose",
    "open_manager": "compose",
    "read_config": "compose",
    "usd": "core.amounts",
}

__all__ = [
    "Amounts",
    "BudgetError",
    "Call",
    "CallerError",
    "ConfigError",
    "DeadlineError",
    "Grant",
    "HeadgateError",
    "House",
    "LimitError",
    "Manager",
    "ProviderError",
    "Scopes",
    "StoreError",
    "Usage",
    "open_house",
    "open_manager",
    "read_config",
    "usd",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'headgate' has no attribute {name!r}")
    return getattr(importlib.import_module(f"headgate.{_HOMES[name]}"), name)
