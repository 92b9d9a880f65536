"""The command `waypost user`: writes the file of the console's users and tokens, and ends sessions."""

from __future__ import annotations

import secrets
from pathlib import Path

import click

from streams.settings import Settings

from .client import with_broker
from .options import (
    BROKER,
    Commands,
    Failed,
    Misused,
    json_flag,
    load,
    out,
    print_json,
    settings_flags,
    table,
)
from .people import NAME, ROLES, PeopleError, digest, hashed, read, write

FILE = click.option("--file", "file", type=click.Path(path_type=Path), help="The file of users.  [default: the setting users_file]")
ROLE = click.option("--role", type=click.Choice(ROLES), required=True, help="viewer: look; editor: journeys, recalculations; operator: everything.")


@click.group(cls=Commands)
def user() -> None:
    """Who may use the console: users with passwords, and tokens for programs, in a file."""


@user.command()
@click.argument("name")
@ROLE
@FILE
def add(name: str, role: str, file: Path | None) -> None:
    """Adds a user, or gives one another role and password. Asks for the password, or reads it from standard input."""
    path = _file(file)
    _named(name)
    stdin = click.get_text_stream("stdin")
    password = click.prompt("Password", hide_input=True, confirmation_prompt=True) if stdin.isatty() else stdin.readline().rstrip("\n")
    try:
        write(path, "users", name, {"role": role, "password": hashed(password)})
    except PeopleError as error:
        raise Failed(str(error)) from None
    out.print(f"{name} is {role} in {path}; consoles notice within seconds", markup=False)


@user.command()
@click.argument("name")
@ROLE
@FILE
def token(name: str, role: str, file: Path | None) -> None:
    """Makes a token for a program, and prints it once: commands take it as WAYPOST_API_TOKEN. A token of the same name ends."""
    path = _file(file)
    _named(name)
    made = secrets.token_urlsafe(32)
    try:
        write(path, "tokens", name, {"role": role, "sha256": digest(made)})
    except PeopleError as error:
        raise Failed(str(error)) from None
    click.echo(made)


@user.command("list")
@FILE
@json_flag
def list_(file: Path | None, as_json: bool) -> None:
    """Users and tokens, with their roles."""
    try:
        users, tokens = read(_file(file))
    except PeopleError as error:
        raise Failed(str(error)) from None
    rows = [("user", name, row["role"]) for name, row in sorted(users.items())]
    rows += [("token", person.name, person.role) for person in sorted(tokens.values())]
    if as_json:
        print_json([{"kind": kind, "name": name, "role": role} for kind, name, role in rows])
        return
    shown = table("kind", "name", "role")
    for row in rows:
        shown.add_row(*row)
    out.print(shown)


@user.command()
@click.argument("name", required=False)
@click.option("--all", "everybody", is_flag=True, help="Log everybody out, with a new key for sessions.")
@settings_flags(*BROKER)
def logout(name: str | None, everybody: bool, settings: Settings) -> None:
    """Ends all sessions of NAME, or everybody's, at all consoles. Whoever may still log in can do so again."""
    from .kafka import now_ms
    from .sending import CannotSend, write_record
    from .sessions import new_key, revocation

    if (name is None) != everybody:
        raise Misused("name one person, or give --all")
    settings = with_broker(settings)
    key, value = new_key(now_ms(), alone=True) if name is None else revocation(name, now_ms())
    try:
        write_record(settings, "sessions", key, value)
    except CannotSend as error:
        raise Failed(str(error)) from None
    whose = "everybody" if name is None else name
    out.print(f"the sessions of {whose} are over; consoles notice within a second", markup=False)


def _file(given: Path | None) -> Path:
    path = given or load({}).users_file
    if path is None:
        raise Misused("name the file with --file, or as the setting users_file")
    return path


def _named(name: str) -> None:
    if not NAME.fullmatch(name):
        raise Misused(f"{name!r} is no name: 1 to 64 letters, digits and . _ @ -, the first a letter or digit")
