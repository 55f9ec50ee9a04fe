"""`headgate keys`: make, list, replace and end the keys that Headgate hands out.

One rule: a secret is printed once, when it is made, and is nowhere else.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from headgate.adapters.config import Config, ConfiguredKey, above_its_parents, limit_rules, limits_in_words
from headgate.adapters.providers.endpoints import ENDPOINT_NAMES
from headgate.cli.stores import say_store
from headgate.cli.tables import print_table
from headgate.compose import WallClock, open_stores, read_config
from headgate.core.errors import CallerError
from headgate.core.scopes import unfit_name
from headgate.gateway.parameters import rfc3339, span_s
from headgate.runtime.keys import Keys, NewKey, in_force, make_key

T = TypeVar("T")

MOST_MODEL_CHARS = 200


@dataclass(frozen=True, slots=True)
class KeyWishes:
    """A key as it was asked for: `limits` and `tags` as name=value, `expires_in` as 30d, `models` as globs."""

    name: str
    limits: tuple[str, ...] = ()
    team: str | None = None
    tags: tuple[str, ...] = ()
    expires_in: str | None = None
    models: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()


def create_key(config_path: Path | None, wishes: KeyWishes, *, as_json: bool) -> None:
    """Make a key and print it.

    Raises:
        CallerError: a wish cannot be understood or is above what the key's team, tags or accounts have, or the name is
            taken.
    """
    tags = dict(_pair("--tag", text) for text in wishes.tags)
    _check(wishes, tags)
    life_s = None if wishes.expires_in is None else span_s(wishes.expires_in)
    limits = _limits(wishes.limits)
    rules = limit_rules(f"key:{wishes.name}", limits)
    config = read_config(config_path, credentials=False)
    above = above_its_parents(config, ConfiguredKey(wishes.name, wishes.team, tuple(tags.items())), rules)
    if above:
        raise CallerError("; ".join(above))
    scopes = {"team": wishes.team, "tags": tags, "models": wishes.models, "endpoints": wishes.endpoints}
    said = {name: value for name, value in scopes.items() if value}
    clock = WallClock()
    now_s = clock.now_s()
    new = make_key(
        wishes.name,
        now_s,
        limits=json.dumps(limits),
        scopes=json.dumps(said),
        expires_s=None if life_s is None else now_s + life_s,
    )

    async def add(keys: Keys) -> None:
        if any(key.name == wishes.name and in_force(key, now_s) for key in await keys.all()):
            raise CallerError(f"there is a key named {wishes.name!r}; rotate it, revoke it, or take another name")
        await keys.add([new.stored])

    _with_keys(config, add)
    _show_once(new, as_json=as_json)


def rotate_key(config_path: Path | None, name: str, grace: str | None, *, as_json: bool) -> None:
    """Make a key in the place of the one of this name, which ends now or after a grace of `30m`; print it.

    Raises:
        CallerError: no key of this name is in force, or the grace is none.
    """
    grace_s = 0 if grace is None else span_s(grace)
    new, ended = _with_keys(read_config(config_path, credentials=False), lambda keys: keys.rotate(name, grace_s))
    _show_once(new, as_json=as_json)
    ends = "has ended" if not grace_s else f"ends in {grace}"
    before = "the key before it" if ended == 1 else f"each of the {ended} keys before it"
    print(f"headgate: {before} {ends}", file=sys.stderr)  # noqa: T201 - beside the answer


def _show_once(new: NewKey, *, as_json: bool) -> None:
    if as_json:
        _say(json.dumps({"id": new.stored.id, "name": new.stored.name, "key": new.secret}))
    else:
        _say(new.secret)
        print("headgate: this key is shown once; keep it where secrets are kept", file=sys.stderr)  # noqa: T201


def _check(wishes: KeyWishes, tags: Mapping[str, str]) -> None:
    """Raise CallerError for a name, a span, an endpoint or a model that no key can have."""
    named = [("key name", wishes.name), *(("--tag", word) for pair in tags.items() for word in pair)]
    named += [("--team", wishes.team)] if wishes.team is not None else []
    for what, word in named:
        unfit = unfit_name(word)
        if unfit is not None:
            raise CallerError(f"{what} {word[:50]!r}: {unfit}")
    if wishes.expires_in is not None and span_s(wishes.expires_in) == 0:
        raise CallerError(f"--expires-in {wishes.expires_in}: such a key never lets anybody in; expected 1s or more")
    for endpoint in wishes.endpoints:
        if endpoint not in ENDPOINT_NAMES:
            raise CallerError(f"--endpoint {endpoint[:40]!r}: expected one of {', '.join(ENDPOINT_NAMES)}")
    for model in wishes.models:
        if not 0 < len(model) <= MOST_MODEL_CHARS or not model.isprintable():
            raise CallerError(f"--model {model[:40]!r}: expected a model or a pattern such as claude-haiku-*")


def list_keys(config_path: Path | None, *, as_json: bool) -> None:
    """Print all keys without their secrets."""
    config = read_config(config_path, credentials=False)
    keys = _with_keys(config, lambda keys: keys.all(), make=False)
    now_s = WallClock().now_s()
    rows = [
        {
            "id": key.id,
            "name": key.name,
            "in_force": in_force(key, now_s),
            "created": rfc3339(key.created_s),
            "expires": rfc3339(key.expires_s),
            "revoked": rfc3339(key.revoked_s),
            "limits": json.loads(key.limits),
            "scopes": json.loads(key.scopes),
        }
        for key in keys
        if not key.fleet
    ]
    if as_json:
        _say(json.dumps({"keys": rows, "store": str(config.store.path)}))
        return
    if rows:
        columns = ["name", "state", "limits", "team", "tags", "expires", "id", "created"]
        print_table(columns, [_key_cells(row, config) for row in rows], names=5)
    else:
        _say("no keys; make one with `headgate keys create NAME`")
    say_store(config, config_path)


def _key_cells(row: Mapping[str, Any], config: Config) -> list[str]:
    """Give what holds of a key: what it carries itself, and what the configuration says of its name."""
    owner = next((key for key in config.keys if key.name == row["name"]), ConfiguredKey(row["name"]))
    own = [f"{name}={value}" for entry in row["limits"] for name, value in entry.items()]
    of_name = limits_in_words(rule for rule in config.limits if rule.scope == f"key:{row['name']}")
    configured = [words if models == "all models" else f"{words} ({models})" for _scope, models, words in of_name]
    limits = ", ".join([*own, *configured])
    tags = ", ".join(f"{name}={value}" for name, value in {**row["scopes"].get("tags", {}), **dict(owner.tags)}.items())
    is_ending = row["in_force"] and row["revoked"]
    state = "ending" if is_ending else "in force" if row["in_force"] else "revoked" if row["revoked"] else "expired"
    ends = min((each for each in (row["revoked"] if is_ending else None, row["expires"]) if each), default="never")
    created, expires = (each[:16].replace("T", " ") for each in (row["created"], ends))
    return [
        row["name"],
        state,
        limits or "-",
        owner.team or row["scopes"].get("team") or "-",
        tags or "-",
        expires,
        row["id"],
        created,
    ]


def revoke_key(config_path: Path | None, id_or_name: str) -> None:
    """End a key.

    Raises:
        CallerError: there is none of this id or name in force.
    """

    async def revoke(keys: Keys) -> int:
        chosen = [key for key in await keys.all() if id_or_name in (key.id, key.name)]
        return sum([await keys.revoke(key.id) for key in chosen])

    ended = _with_keys(read_config(config_path, credentials=False), revoke)
    if not ended:
        raise CallerError(f"no key {id_or_name!r} is in force; see `headgate keys list`")
    _say(f"revoked {id_or_name}" + (f": {ended} keys of this name" if ended > 1 else ""))


def _with_keys(config: Config, act: Callable[[Keys], Awaitable[T]], *, make: bool = True) -> T:
    async def run() -> T:
        async with open_stores(config, make=make) as stores:
            return await act(Keys(stores.keys, WallClock()))

    return asyncio.run(run())


def _limits(texts: Sequence[str]) -> list[dict[str, object]]:
    """Give one entry of all words, as the key's own table in a configuration would be."""
    entry: dict[str, object] = {}
    for text in texts:
        word, value = _pair("--limit", text)
        if word in entry:
            raise CallerError(f"--limit {text!r}: {word} is there already, with {entry[word]}; say it once")
        entry[word] = _value(value)
    return [entry] if entry else []


def _value(text: str) -> object:
    if text.replace("_", "").isdigit():
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise CallerError(f"{option} {text!r}: expected name=value")
    return name, value


def _say(line: str) -> None:
    print(line)  # noqa: T201 - what was asked for
