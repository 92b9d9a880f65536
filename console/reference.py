"""Reference pages made of the code: commands, HTTP API, rules, metrics, and those of `streams.reference`. A test compares them with docs/reference.

`python -m console.reference docs/reference` writes them. Must say nothing that is not in the code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import click

from agents import metrics
from schemas.rules import catalogue, catalogue_data
from schemas.text import OPERATORS
from streams import reference as streams_reference

from .api import build
from .backend import Backend
from .cli import cli

MADE = "<!-- Made by `python -m console.reference docs/reference`; change the code instead. -->"
METHODS = ("get", "put", "post", "delete")


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join([_row(*head), _row(*["---"] * len(head)), *(_row(*row) for row in rows)])


# ---------------------------------------------------------------------------------------- command line


def commands(group: click.Group = cli, before: str = "waypost") -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name, groups left out."""
    for name, command in group.commands.items():
        full = f"{before} {name}"
        if isinstance(command, click.Group):
            yield from commands(command, full)
        else:
            yield full, command


def command_line_page() -> str:
    parts = [
        f"""# Command line

{MADE}

`--help` on everything, `--json` on everything that prints data. Exit code 0: done; 1: failed, or something differs, or lines were bad; 2: wrong
use. Flags win over environment variables, these over the file named by `WAYPOST_CONFIG` ([settings](settings.md)); secrets have no flags.
Commands with `--api` ask the HTTP API of a console; the others speak to Kafka."""
    ]
    for full, command in commands():
        arguments = [cast(str, p.make_metavar(click.Context(command))) for p in command.params if isinstance(p, click.Argument)]
        options = [p for p in command.params if isinstance(p, click.Option)]
        usage = " ".join([full, *(["[OPTIONS]"] if options else []), *arguments])
        help_ = "\n".join(line.strip() for line in (command.help or "").splitlines())
        parts.append(f"## {full}\n\n`{usage}`\n\n{help_}")
        own = [option for option in options if not str(option.name).startswith("set_")]
        if own:
            parts.append(_table(("option", "what it does"), [(_flags(option, command), option.help or "") for option in own]))
        if settings := [", ".join(f"`{name}`" for name in option.opts) for option in options if option not in own]:
            parts.append(f"[Settings](settings.md) as flags: {' · '.join(settings)}")
    return "\n\n".join(parts) + "\n"


def _flags(option: click.Option, command: click.Command) -> str:
    names = ", ".join(f"`{name}`" for name in option.opts)
    return names if option.is_flag else f"{names} {option.make_metavar(click.Context(command))}"


# ---------------------------------------------------------------------------------------- HTTP API


def document() -> dict[str, Any]:
    """The OpenAPI document, without a backend behind it."""
    return build(cast(Backend, None), guarded=False).openapi()


def http_api_page() -> str:
    api = document()
    operations = [(m, path, one[m]) for path, one in api["paths"].items() for m in METHODS if m in one]
    parts = [
        f"""# HTTP API

{MADE}

The document is served at `/api/openapi.json`. Every error is `{{"error": {{"code", "message", "path"}}}}`. Times are RFC 3339, UTC, with
milliseconds. An unknown field or query parameter is an error that names it. `/metrics` is there too ([metrics](metrics.md)).""",
        _table(("call", "does"), [(f"`{m.upper()} {path}`", _first(one)) for m, path, one in operations]),
    ]
    for method, path, one in operations:
        parts.append(f"## {method.upper()} {path}\n\n{one.get('description') or one['summary']}")
        if parameters := one.get("parameters"):
            rows = [(f"`{p['name']}`", p["in"], _type(p["schema"]), p.get("description", "")) for p in parameters]
            parts.append(_table(("parameter", "in", "type", ""), rows))
        if "requestBody" in one:
            parts.append(f"Body: {_type(one['requestBody']['content']['application/json']['schema'])}")
        parts.append(_table(("status", "answer", ""), [_answer(status, said) for status, said in one["responses"].items()]))
    parts.append("# What answers and bodies look like")
    for name, schema in api["components"]["schemas"].items():
        if "properties" in schema and not name.startswith(("Rule_", "Condition_")):
            needed = set(schema.get("required", ()))
            fields: list[tuple[str, ...]] = [
                (f"`{field}`", _type(said) + ("" if field in needed else ", optional"), said.get("description", ""))
                for field, said in schema["properties"].items()
            ]
            parts.append(f"## {name}\n\n{_table(('field', 'type', ''), fields)}")
    return "\n\n".join(parts) + "\n"


def _first(operation: dict[str, Any]) -> str:
    return str(operation.get("description") or operation["summary"]).split("\n")[0].split(". ")[0].rstrip(".")


def _answer(status: str, said: dict[str, Any]) -> tuple[str, ...]:
    content = said.get("content", {})
    kind = next(iter(content), "")
    what = "" if not content else kind if kind != "application/json" else _type(content[kind].get("schema", {}))
    return status, what, said.get("description", "").replace("Successful Response", "")


def _type(schema: dict[str, Any]) -> str:
    """A JSON Schema in a word or two."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return "condition ([rules](rules.md))" if name.startswith("Condition_") else f"[{name}](#{name.lower()})"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "anyOf" in schema:
        kinds = [_type(one) for one in schema["anyOf"] if one]
        return " or ".join(dict.fromkeys(kinds))
    kind = schema.get("type", "anything")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "string" and schema.get("format") == "date-time":
        return "time"
    limits = [f"{word} {schema[key]}" for key, word in (("minimum", "from"), ("maximum", "to"), ("maxLength", "at most")) if key in schema]
    return " ".join([{"string": "text", "object": "object"}.get(kind, kind), *limits])


# ---------------------------------------------------------------------------------------- rules and metrics


def rules_page() -> str:
    operators = [(f"`{name}`", "yes" if operator.negative else "no") for name, operator in OPERATORS.items()]
    parts = [
        f"""# Rules

{MADE}

A rule is a test on one activity. `GET /api/rules` is this catalogue, with the rule types of your own packages. In a sentence, `{{parameter}}` stands
for what it says, and what is in brackets goes when its parameter is not given.""",
        _table(
            ("rule", "category", "sentence", "activity types", "parameters"),
            [
                (f"`{r['name']}`", r["category"], r["sentence"], _types(r["name"]), _parameters(r["parameters"]))
                for r in catalogue_data()
                if catalogue()[r["name"]].__module__ == "schemas.rules"
            ],
        ),
        "A text parameter is `{operator: value}`, or a bare text, which means its default operator. Comparison ignores case.",
        _table(("operator", "a missing field passes"), operators),
    ]
    return "\n\n".join(parts) + "\n"


def _types(name: str) -> str:
    types = catalogue()[name].types
    return "the one it names" if types is None else ", ".join(f"`{t}`" for t in sorted(types))


def _parameters(schema: dict[str, Any]) -> str:
    needed = schema.get("required", [])
    found = []
    for name, said in schema.get("properties", {}).items():
        default = next((o["description"] for o in said.get("anyOf", []) if o.get("type") == "string" and "description" in o), "")
        operator = default.partition("{")[2].partition(":")[0]
        found.append(f"`{name}`" + ("" if name in needed else ", optional") + (f", default `{operator}`" if operator else ""))
    return "; ".join(found) or "none"


def metrics_page() -> str:
    def rows(collectors: Any) -> list[tuple[str, ...]]:
        return [
            (f"`{m._name}{'_total' if m._type == 'counter' else ''}`", m._type, ", ".join(m._labelnames), m._documentation) for m in collectors
        ]

    head = ("metric", "type", "labels", "what it is")
    return f"""# Metrics

{MADE}

For Prometheus, at `/metrics` of every process.

## Worker

{_table(head, rows(metrics.CATALOGUE))}

## Console

{_table(head, rows(metrics.CONSOLE_CATALOGUE))}
"""


PAGES: dict[str, Callable[[], str]] = {
    **streams_reference.PAGES,
    "command-line.md": command_line_page,
    "http-api.md": http_api_page,
    "rules.md": rules_page,
    "metrics.md": metrics_page,
}


def main() -> None:
    """Writes the pages into the directory named on the command line."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (directory / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
