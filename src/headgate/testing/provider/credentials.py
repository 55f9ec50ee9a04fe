"""Credentials: who calls, with the pools and plan windows that are theirs.

One rule: a key is never kept or told; a credential goes by its configured name, or by the last 4 characters of its key.
"""

import hashlib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from headgate.testing.provider.buckets import Bucket, Pool
from headgate.testing.provider.plan_windows import Plan
from headgate.testing.provider.settings import ModelLimits, ProviderSettings

__all__ = ["UNKNOWN", "Credential", "Credentials"]

UNKNOWN = "unknown"
_ANONYMOUS = "anonymous"
# Without configured keys everybody is let in; past this many nobody new is, so that memory stays bounded.
_CREDENTIALS_LIMIT = 10_000
_TOLD_CHARACTERS = 4


class Credential:
    """One caller's name, pools and plan."""

    __slots__ = ("_limits", "_pools", "name", "plan")

    def __init__(self, name: str, settings: ProviderSettings) -> None:
        self.name = name
        self.plan = Plan(settings.plan)
        self._limits = [row for row in settings.limits if fnmatchcase(name, row.credentials)]
        self._pools: dict[ModelLimits, Pool] = {}

    def pool(self, model: str, now_s: float) -> Pool | None:
        """Give the pool that a model draws from; None when it is unlimited."""
        for row in self._limits:
            if fnmatchcase(model, row.models):
                pool = self._pools.get(row)
                if pool is None:
                    pool = self._pools[row] = Pool(row, now_s)
                return pool
        return None

    def buckets(self, started_s: float) -> list[dict[str, Any]]:
        """Give every bucket that was used; times are seconds since `started_s`."""
        return [
            {"credential": self.name, "models": pool.limits.models, **_told(bucket, started_s)}
            for pool in self._pools.values()
            for bucket in pool.buckets
        ]


def _told(bucket: Bucket, started_s: float) -> dict[str, Any]:
    first_s, last_s = bucket.first_charge_s, bucket.last_charge_s
    offered = bucket.offered_total()
    return {
        "dimension": bucket.dimension,
        "rate": bucket.rate_per_period,
        "period_s": bucket.period_s,
        "capacity": int(bucket.capacity),
        "charged_total": bucket.charged_total,
        "first_charge_s": None if first_s is None else first_s - started_s,
        "last_charge_s": None if last_s is None else last_s - started_s,
        "offered_total": offered,
        "share_used": bucket.charged_total / offered if offered else 0.0,
    }


class Credentials:
    """Finds the credential of a request by its key."""

    def __init__(self, settings: ProviderSettings) -> None:
        self._settings = settings
        self._open = not settings.keys
        self._by_digest = {
            _digest(secret.encode()): Credential(name, settings) for name, secret in settings.keys.items()
        }

    def identify(self, headers: Mapping[bytes, bytes]) -> Credential | None:
        """Give the caller, or None when its key is missing or wrong."""
        key = _key(headers)
        found = self._by_digest.get(_digest(key))
        if found is not None or not self._open or len(self._by_digest) >= _CREDENTIALS_LIMIT:
            return found
        found = Credential(self._fresh_name(key), self._settings)
        self._by_digest[_digest(key)] = found
        return found

    def all(self) -> list[Credential]:
        """Give every credential that is known."""
        return list(self._by_digest.values())

    def _fresh_name(self, key: bytes) -> str:
        if not key:
            return _ANONYMOUS
        # The end of a short key would be all of it.
        told = key[-_TOLD_CHARACTERS:].decode("latin-1") if len(key) >= 2 * _TOLD_CHARACTERS else "key"
        taken = {credential.name for credential in self._by_digest.values()}
        name, number = told, 2
        while name in taken:
            name, number = f"{told}~{number}", number + 1
        return name


def _key(headers: Mapping[bytes, bytes]) -> bytes:
    given = headers.get(b"x-api-key") or headers.get(b"api-key")
    if given:
        return given
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


def _digest(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=16).digest()
