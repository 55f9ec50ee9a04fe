"""The control API as an OpenAPI 3.1 document, made from its routes and the types of its answers.

One rule: nothing is told here that is not read off the routes, so that the document cannot say other than is served.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import msgspec

from headgate.gateway.operations import ERRORS, Error, Operation, Parameter

_REF = "#/components/schemas/{name}"
_JSON = "application/json"
_ABOUT = (
    "Everything under `/api/v1/` of a running Headgate gateway. The admin token sees everything, a Headgate "
    "key its own. `HEAD` works wherever `GET` does, but for events. Unknown parameters, and those "
    "without a value or given twice, are errors. A method that a path has not is a 405 whose `allow` names one."
)


class Word(NamedTuple):
    """A variable word of a path."""

    name: str
    what: str
    pattern: str


WORDS = {
    "ID": Word("id", "As it was told when it was made.", r"[0-9a-f]{1,64}"),
    "RUN": Word("run", "The run's name, percent-encoded.", r"[^/]{1,600}"),
}
"""The variable words, as they stand in paths that people write."""


class Served(NamedTuple):
    """A path as people write it, and the operation of each method."""

    path: str
    operations: Mapping[str, Operation]


def document(routes: Sequence[Served]) -> dict[str, Any]:
    """Give the document; it takes tens of milliseconds."""
    schemas = _Schemas()
    paths = {
        "/".join(f"{{{WORDS[part].name}}}" if part in WORDS else part for part in route.path.split("/")): {
            **_words(route.path),
            **{method.lower(): _operation(each, schemas) for method, each in route.operations.items()},
        }
        for route in routes
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headgate control API", "version": version("headgate"), "description": _ABOUT},
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.named.items())),
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
        "security": [{"key": []}, {"bearer": []}, {}],
    }


class _Schemas:
    """The schemas of types; those with a name are kept apart."""

    def __init__(self) -> None:
        self.named: dict[str, Any] = {}

    def of(self, kind: Any) -> dict[str, Any]:
        """Give the schema of a type."""
        (schema,), named = msgspec.json.schema_components([kind], ref_template=_REF)
        for name, found in named.items():
            assert self.named.setdefault(name, _read_as_json(found)) == _read_as_json(found), f"two types named {name}"
        return _read_as_json(schema)  # type: ignore[no-any-return]  # a dict in, a dict out


def _read_as_json(schema: Any) -> Any:
    """Give a schema with decimals as they are taken: a number, or text."""
    if isinstance(schema, dict):
        if schema.get("format") == "decimal":
            return {**schema, "type": ["number", "string"]}
        return {name: _read_as_json(each) for name, each in schema.items()}
    return [_read_as_json(each) for each in schema] if isinstance(schema, list) else schema


def _words(path: str) -> dict[str, Any]:
    found = [WORDS[part] for part in path.split("/") if part in WORDS]
    told = [
        {
            "name": word.name,
            "in": "path",
            "required": True,
            "description": word.what,
            "schema": {"type": "string", "pattern": f"^{word.pattern}$"},
        }
        for word in found
    ]
    return {"parameters": told} if told else {}


def _operation(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    media = "text/event-stream" if operation.stream else _JSON
    told: dict[str, Any] = {
        "operationId": operation.handler.__name__.strip("_"),
        "summary": operation.what,
        "responses": {
            str(operation.status): {
                "description": operation.what,
                "content": {media: {"schema": schemas.of(operation.gives)}},
            },
            **{
                str(status): {"description": ERRORS[status], "content": {_JSON: {"schema": schemas.of(Error)}}}
                for status in operation.failing
            },
        },
    }
    if operation.parameters:
        told["parameters"] = [_parameter(each, schemas) for each in operation.parameters]
    if operation.takes is not None:
        told["requestBody"] = {"required": True, "content": {_JSON: {"schema": schemas.of(operation.takes)}}}
    if operation.only_admin is not None:
        told["description"] = f"Only an administrator may {operation.only_admin}."
    return told


def _parameter(parameter: Parameter, schemas: _Schemas) -> dict[str, Any]:
    schema = schemas.of(parameter.kind)
    return {
        "name": parameter.name,
        "in": "query",
        "required": parameter.required,
        "description": parameter.what,
        "schema": schema,
        **({"style": "form", "explode": False} if schema.get("type") == "array" else {}),
        **({"example": parameter.example} if parameter.example is not None else {}),
    }
