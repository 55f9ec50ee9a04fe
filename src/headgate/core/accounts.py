"""Accounts: which provider credential serves a call.

One rule: here is only what is configured. Which of several that could serve a call does is `pool`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from headgate.core.errors import UnknownModelError
from headgate.core.usage import Counting, Dialect


@dataclass(frozen=True, slots=True)
class Account:
    """One provider credential: the dialect it speaks and the globs of the models it serves.

    `overage`: its owner allows calls beyond a subscription plan's windows, which are billed. Beyond `soft_ceiling` (a
    part of a plan window) it serves only what no other account can. `vendor` is where it is, and `counting` how calls
    count against its limits there; where they are not said, those of the dialect's own.
    """

    name: str
    dialect: Dialect
    models: tuple[str, ...] = ("*",)
    overage: bool = False
    soft_ceiling: float = 1.0
    vendor: str = ""
    counting: Counting | None = None

    @property
    def provider(self) -> str:
        """The vendor's name, as the configuration says it."""
        return self.vendor or self.dialect

    @property
    def counts(self) -> Counting:
        """How its provider counts calls against its limits."""
        return self.counting or self.dialect

    def serves(self, model: str) -> bool:
        """Whether a model is one of this account's."""
        return any(fnmatchcase(model, glob) for glob in self.models)


def accounts_for(accounts: Sequence[Account], dialect: Dialect, model: str) -> list[Account]:
    """Give every account that serves a model in a dialect, in the order of the configuration.

    Raises:
        UnknownModelError: none does; the message says which are configured.
    """
    able = [account for account in accounts if account.dialect == dialect and account.serves(model)]
    if able:
        return able
    spoken = [f"{account.name} ({', '.join(account.models)})" for account in accounts if account.dialect == dialect]
    variable = "ANTHROPIC_API_KEY" if dialect == "anthropic" else "OPENAI_API_KEY"
    known = "; ".join(spoken) if spoken else f"none; set {variable}, or write [[account]] in headgate.toml"
    raise UnknownModelError(f"no account serves model {model[:200]!r}; configured: {known}")
