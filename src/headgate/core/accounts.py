"""Accounts: which provider credential serves a call.

One rule: a choice is a pure function of what is configured; the first account that serves the model is taken. Choosing
by headroom, price and health comes here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from headgate.core.errors import UnknownModelError
from headgate.core.usage import Dialect


@dataclass(frozen=True, slots=True)
class Account:
    """One provider credential: the dialect it speaks and the globs of the models it serves."""

    name: str
    dialect: Dialect
    models: tuple[str, ...] = ("*",)

    def serves(self, model: str) -> bool:
        """Whether a model is one of this account's."""
        return any(fnmatchcase(model, glob) for glob in self.models)


def choose_account(accounts: Sequence[Account], dialect: Dialect, model: str) -> Account:
    """Give the account that serves a model in a dialect.

    Raises:
        UnknownModelError: none does; the message says which are configured.
    """
    for account in accounts:
        if account.dialect == dialect and account.serves(model):
            return account
    spoken = [f"{account.name} ({', '.join(account.models)})" for account in accounts if account.dialect == dialect]
    variable = "ANTHROPIC_API_KEY" if dialect == "anthropic" else "OPENAI_API_KEY"
    known = "; ".join(spoken) if spoken else f"none; set {variable}, or write [[account]] in headgate.toml"
    raise UnknownModelError(f"no account serves model {model[:200]!r}; configured: {known}")
