"""What the control API told, held against what its document says: strictly, so that a field too many fails as well."""

import json
import re
from functools import lru_cache

from jsonschema import Draft202012Validator, FormatChecker

from headgate.gateway.control import _ROUTES
from headgate.gateway.openapi import document


@lru_cache(maxsize=1)
def told() -> dict:
    return document(_ROUTES)


@lru_cache(maxsize=1)
def strict() -> dict:
    """The document, with nothing allowed in an object that it does not name."""

    def closed(part):
        if isinstance(part, list):
            return [closed(each) for each in part]
        if not isinstance(part, dict):
            return part
        found = {name: closed(each) for name, each in part.items()}
        return {**found, "additionalProperties": False} if "properties" in part and "type" in part else found

    return closed(told())


@lru_cache(maxsize=1_000)
def checker(schema: str) -> Draft202012Validator:
    """One that has looked through the document already: that is what takes long."""
    whole = {**json.loads(schema), "components": strict()["components"]}
    return Draft202012Validator(whole, format_checker=FormatChecker())


@lru_cache(maxsize=10_000)
def operation_at(method: str, path: str) -> tuple[str, dict] | None:
    """The template of a path, and what the document says of a method there."""
    path = path.partition("?")[0]
    for template, item in strict()["paths"].items():
        pattern = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
        for word in item.get("parameters", ()):
            pattern = pattern.replace(f"{{{word['name']}}}", word["schema"]["pattern"][1:-1])
        if re.fullmatch(pattern, path):
            found = item.get("get" if method == "HEAD" else method.lower())
            streams = found is not None and "text/event-stream" in found["responses"].get("200", {}).get("content", {})
            return None if found is None or (method == "HEAD" and streams) else (template, found)
    return None


def check_told(method: str, path: str, status: int, body: bytes) -> None:
    """Fail unless an answer is one that the document has."""
    operation = operation_at(method, path)
    if operation is None:
        assert status in {404, 405, 401, 403}, (method, path, status)
        schema = {"$ref": "#/components/schemas/Error"}
    else:
        responses = operation[1]["responses"]
        assert str(status) in responses, f"{method} {path}: {status} is not told of: {body[:500]!r}"
        content = responses[str(status)]["content"]
        if "application/json" not in content:
            return
        schema = content["application/json"]["schema"]
    if method == "HEAD":
        return
    found = checker(json.dumps(schema)).iter_errors(json.loads(body))
    problems = [f"{each.json_path}: {each.message[:300]}" for each in found]
    assert not problems, (method, path, problems)
