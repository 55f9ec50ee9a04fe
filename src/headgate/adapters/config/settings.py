"""Settings: what can be configured, as values that the rest of the program trusts.

One rule: everything has the unit in its name and its default here, or no default at all. How it is written in a file is
not known here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hmac import compare_digest
from pathlib import Path
from typing import Literal

from headgate.adapters.cron import CronSpans
from headgate.adapters.prices import PriceOverride
from headgate.adapters.windows import WindowOverride
from headgate.core.accounts import Account
from headgate.core.model_rules import ModelRule
from headgate.core.retries import RetryRule
from headgate.core.scheduling import Scheduling
from headgate.core.scopes import LimitRule

__all__ = [
    "WHILE_WAITING",
    "Config",
    "ConfiguredAccount",
    "ConfiguredKey",
    "Secret",
    "Server",
    "Store",
    "Synchronous",
    "Timeouts",
    "WhileWaiting",
]

Synchronous = Literal["normal", "full"]
CredentialWord = Literal["bearer", "x-api-key", "api-key"]

WhileWaiting = Literal["hold", "pings", "refuse"]
WHILE_WAITING: Mapping[str, WhileWaiting] = {"hold": "hold", "pings": "pings", "refuse": "refuse"}


class Secret:
    """A value that no log, error or representation shows; `reveal` gives it where it is sent.

    Not a dataclass on purpose: `dataclasses.asdict` of what holds it would take it apart.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Give the value."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(not shown)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash(self._value)


@dataclass(frozen=True, slots=True)
class Server:
    """Where the gateway listens (port 0: any free one), and how long and large things may get.

    `allowed_hosts` are patterns of names by which it may be called beside this machine's own; without any, by all.
    `while_waiting` says what a client hears while its call waits for its turn: nothing (`hold`); a sign of life every
    `ping_every_s`, where it asked for a stream (`pings`); or a 429, where that takes more than `refuse_after_s`.
    """

    host: str = "127.0.0.1"
    port: int = 8484
    admin_token: Secret | None = None
    max_body_bytes: int = 32 * 1024 * 1024  # as Anthropic's own bound (wire.md section 2)
    max_wait_s: float = 600.0
    drain_s: float = 30.0
    allowed_hosts: tuple[str, ...] = ()
    while_waiting: WhileWaiting = "hold"
    # Half of the 30 s after which the most impatient proxies on the way cut a silent connection.
    ping_every_s: float = 15.0
    refuse_after_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Store:
    """Where what must last is kept. `full` syncs at every commit: safe against power cuts, not only against kill -9."""

    path: Path
    synchronous: Synchronous = "normal"


@dataclass(frozen=True, slots=True)
class ConfiguredAccount:
    """One provider credential. `base_url` is what the vendor's SDK would be given, without a slash at its end.

    `api_key` None: it needs none. `credential` is the header that the key goes in, where it is not the vendor's.
    `names` has the account's own names of models by those that calls use, and `api_version` what dates the provider's
    interface. `reconcile`: the provider can be asked what became of a call of a process that died.
    `first_byte_s` and `idle_s` are its own time-outs, where it has any.
    """

    account: Account
    base_url: str
    api_key: Secret | None
    reconcile: bool = False
    credential: CredentialWord | None = None
    api_version: str | None = None
    names: tuple[tuple[str, str], ...] = ()
    first_byte_s: float | None = None
    idle_s: float | None = None
    compress_requests: Literal["gzip"] | None = None


@dataclass(frozen=True, slots=True)
class ConfiguredKey:
    """To whom the calls with a Headgate key of this name are attributed, and how they stand among others that wait.

    Its limits are among the rules. Without `models` or `endpoints` it may call any.
    """

    name: str
    team: str | None = None
    tags: tuple[tuple[str, str], ...] = ()
    weight: float = 1.0
    priority: int = 0
    interactive: bool = False
    models: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    while_waiting: WhileWaiting | None = None
    coalesce: bool = False
    batch_embeddings: bool = False


MaintenanceAction = Literal["hold", "refuse"]


@dataclass(frozen=True, slots=True)
class ConfiguredMaintenance:
    """A maintenance window that comes again. `scope` "*" is every call; calls on their way end in any case.

    `hold` lets calls wait until it is over, `refuse` tells them at once when they could run.
    """

    cron: str
    spans: CronSpans
    scope: str = "*"
    models: str | None = None
    action: MaintenanceAction = "hold"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each part of a call to a provider may take, in seconds."""

    connect_s: float = 10.0
    first_byte_s: float = 600.0
    idle_s: float = 300.0
    dns_s: float = 5.0
    tls_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Config:
    """All that can be configured. In `limits` a rule for one scope stands after every pattern, so that it holds.

    `text` is what the file at `path` said when it was read.
    """

    store: Store
    path: Path | None = None
    text: str | None = field(default=None, repr=False, compare=False)
    server: Server = Server()
    accounts: tuple[ConfiguredAccount, ...] = ()
    limits: tuple[LimitRule, ...] = ()
    keys: tuple[ConfiguredKey, ...] = ()
    prices: tuple[PriceOverride, ...] = ()
    windows: tuple[WindowOverride, ...] = ()
    retries: RetryRule = field(default_factory=RetryRule)
    timeouts: Timeouts = Timeouts()
    scheduling: Scheduling = field(default_factory=Scheduling)
    maintenance: tuple[ConfiguredMaintenance, ...] = ()
    model_rules: tuple[ModelRule, ...] = ()
