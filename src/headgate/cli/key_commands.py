"""The commands `headgate keys ...` and their options.

One rule: nothing heavy is imported before one runs; what they do is `keys`'.
"""

from typing import Annotated

import typer

from headgate.cli.options import ConfigOption, JsonOption

keys_app = typer.Typer(help="Keys that Headgate hands out: each with its own limits and attribution.")


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="A name for the key; its limits hold for key:NAME.")],
    config: ConfigOption = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WORD=VALUE",
            help="word=value in the configuration's words, such as usd_per_day=5; may be repeated.",
        ),
    ] = None,
    team: Annotated[str | None, typer.Option(metavar="TEAM", help="Whose calls they are.")] = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="name=value; may be repeated.")] = None,
    expires_in: Annotated[
        str | None, typer.Option(metavar="SPAN", help="30d, 12h; without it the key does not expire.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="A model or pattern that it may call; may be repeated; without it any."),
    ] = None,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="An endpoint that it may call, such as messages; as --model."),
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Make a key. It is shown once, and only its hash is kept."""
    from headgate.cli.keys import KeyWishes, create_key  # noqa: PLC0415 - heavy

    may = tuple(model or ()), tuple(endpoint or ())
    create_key(config, KeyWishes(name, tuple(limit or ()), team, tuple(tag or ()), expires_in, *may), as_json=as_json)


@keys_app.command("list")
def keys_list(config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """List the keys, without their secrets."""
    from headgate.cli.keys import list_keys  # noqa: PLC0415 - heavy

    list_keys(config, as_json=as_json)


@keys_app.command("rotate")
def keys_rotate(
    name: Annotated[str, typer.Argument(help="The key's name.")],
    config: ConfigOption = None,
    grace: Annotated[
        str | None, typer.Option(metavar="SPAN", help="30m, 12h: the old one works so long; without it no longer.")
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Make a key in the place of another: same name, limits and end, a new secret, shown once."""
    from headgate.cli.keys import rotate_key  # noqa: PLC0415 - heavy

    rotate_key(config, name, grace, as_json=as_json)


@keys_app.command("revoke")
def keys_revoke(key: Annotated[str, typer.Argument(help="The key's id or name.")], config: ConfigOption = None) -> None:
    """End a key; calls with it are refused from within a second on."""
    from headgate.cli.keys import revoke_key  # noqa: PLC0415 - heavy

    revoke_key(config, key)
