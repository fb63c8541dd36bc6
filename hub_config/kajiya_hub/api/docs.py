"""docs/api.md, made from the OpenAPI document: `python -m kajiya_hub.api.docs`; `--check` says if it is stale."""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from kajiya_hub.api.application import create_app
from kajiya_hub.api.deps import Deps
from kajiya_hub.api.openapi import COMMON, MEANINGS
from kajiya_hub.store.files import JobFiles
from kajiya_hub.store.store import Store

PAGE = Path("docs/api.md")
HEAD = """# API reference

Made from the service's OpenAPI document by `python -m kajiya_hub.api.docs`; edit the source, not this page. The
document itself is at `/services/kajiya/api/openapi.json`.

**Who you are.** Send `Authorization: token TOKEN` (or `Bearer TOKEN`): a token of the Hub with the scope
`access:services!service=kajiya`, or, inside a job, the token in `KAJIYA_TOKEN`, which is worth something as long as
its attempt runs and may only look at its own job. Cookies are not read.

**When something is wrong.** Every failure, of every route, is answered with the same JSON body and the status of its
kind. The sentence comes in the language of `Accept-Language` (`en` or `ja`).

```json
{"error": {"code": "job.not_found", "message": "There is no job j0… of yours. …", "params": {"job": "j0…"}}}
```

Any route may answer with one of these; below, a route names only what is more:

COMMON
**Event streams** are [server-sent events](https://html.spec.whatwg.org/multipage/server-sent-events.html). A comment
comes every 15 s. A stream that broke off goes on without a gap when it is opened again with the `Last-Event-ID` it
came to.

```sh
curl -N -H "Authorization: token $TOKEN" $URL/services/kajiya/api/jobs/$JOB/events
curl -H "Authorization: token $TOKEN" -H "Idempotency-Key: nightly-7" $URL/services/kajiya/api/jobs \\
  -F 'spec={"notebook": "train.ipynb", "parameters": {"C": 10}};type=application/json' -F notebook=@train.ipynb
```
"""
ORDER = ("who", "profiles", "jobs", "events", "results", "snapshots", "operation")
TITLES = {
    "who": "Who am I",
    "profiles": "Profiles and capacity",
    "jobs": "Jobs",
    "events": "Event streams",
    "results": "What a job leaves",
    "snapshots": "Snapshots of environments",
    "operation": "Operation",
}
Json = dict[str, Any]


def page() -> str:
    """The page as it should be."""
    document = openapi()
    schemas: Json = document["components"]["schemas"]
    common = ["| status | meaning |", "|---|---|", *(f"| {s} | {MEANINGS[s]} |" for s in COMMON), ""]
    lines = [HEAD.replace("COMMON", "\n".join(common))]
    for tag in ORDER:
        lines.append(f"## {TITLES[tag]}\n")
        for path, method, operation in _operations(document):
            if tag in operation["tags"]:
                lines.append(_operation(path, method, operation, schemas))
    lines.append("## Types\n")
    lines += [_type_section(name, schemas[name], schemas) for name in sorted(schemas)]
    return "\n".join(lines).rstrip() + "\n"


def openapi() -> Json:
    """The OpenAPI document, of an application over nothing."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"sqlite:///{folder}/kajiya.sqlite")
        files = JobFiles(Path(folder) / "jobs")
        nothing = cast(Any, None)
        document = create_app(Deps(store, files, nothing, nothing, nothing)).openapi()
        store.close()
    return document


def _operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method.upper(), operation


def _operation(path: str, method: str, operation: Json, schemas: Json) -> str:
    out = [f"### {operation['summary']}\n", f"`{method} {path}`\n"]
    if operation.get("description"):
        out.append(operation["description"] + "\n")
    # Every route reads it, and the top of the page says so.
    parameters = [p for p in operation.get("parameters", []) if p["name"].lower() != "accept-language"]
    if parameters:
        out += ["| parameter | in | type | meaning |", "|---|---|---|---|"]
        for p in parameters:
            title = p["schema"].get("title", p["name"]) if p["in"] == "header" else p["name"]
            kind = _type(p["schema"], schemas)
            default = p["schema"].get("default")
            shown = "" if default in (None, "") else f" Default `{json.dumps(default)}`."
            out.append(f"| `{title}` | {p['in']} | {kind} | {_cell(p.get('description', ''))}{shown} |")
        out.append("")
    body = operation.get("requestBody")
    if body:
        for media, content in body["content"].items():
            out.append(f"Body, `{media}`: {_body(content['schema'], schemas)}\n")
            example = content.get("example") or _spec_example(content["schema"])
            if example:
                out.append(f"```json\n{json.dumps(example, ensure_ascii=False, indent=2)}\n```\n")
    out += ["| status | answer |", "|---|---|"]
    for status, response in sorted(operation["responses"].items()):
        if int(status) in COMMON:
            continue
        out.append(f"| {status} | {_cell(response['description'])}{_answer(response, schemas)} |")
    return "\n".join([*out, ""])


def _body(schema: Json, schemas: Json) -> str:
    if "$ref" in schema:
        return _type(schema, schemas)
    if "properties" not in schema:
        return "the bytes."
    rows = []
    for name, part in schema["properties"].items():
        kind = _type(part["allOf"][0], schemas) if "allOf" in part else "files" if part["type"] == "array" else "file"
        rows.append(f"`{name}` ({kind}): {part['description']}")
    return " ".join(rows)


def _spec_example(schema: Json) -> Any:
    return schema.get("properties", {}).get("spec", {}).get("example")


def _answer(response: Json, schemas: Json) -> str:
    for media, content in response.get("content", {}).items():
        schema = content.get("schema", {})
        if schema.get("$ref", "").endswith("/ErrorBody"):
            return ""
        if media == "application/json":
            return f" {_type(schema, schemas)}"
        headers = ", ".join(f"`{name}`: {h['description']}" for name, h in response.get("headers", {}).items())
        return f" `{media}`" + (f" ({headers})" if headers else "")
    return ""


def _type_section(name: str, schema: Json, schemas: Json) -> str:
    shown = _plain(name)
    out = [f"### {shown}\n"]
    if schema.get("description"):
        out.append(" ".join(schema["description"].split("\n\n")[0].split()) + "\n")
    if "enum" in schema:
        return "\n".join([*out, "One of " + ", ".join(f"`{v}`" for v in schema["enum"]) + ".\n"])
    out += ["| key | type | meaning |", "|---|---|---|"]
    for key, field in schema.get("properties", {}).items():
        meaning = field.get("description", "")
        required = key in schema.get("required", ())
        default = field.get("default")
        tail = (
            " Required." if required else "" if default in (None, "", [], {}) else f" Default `{json.dumps(default)}`."
        )
        out.append(f"| `{key}` | {_type(field, schemas)} | {_cell(meaning)}{tail} |")
    return "\n".join([*out, ""])


def _type(schema: Json, schemas: Json) -> str:
    if "$ref" in schema:
        name = _plain(schema["$ref"].rsplit("/", 1)[-1])
        return f"[{name}](#{name.lower().replace(' ', '-')})"
    if "allOf" in schema:
        return _type(schema["allOf"][0], schemas)
    if "anyOf" in schema:
        return " or ".join(_type(s, schemas) for s in schema["anyOf"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return "one of " + ", ".join(f"`{v}`" for v in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}), schemas)}"
    if schema.get("type") == "object":
        more = schema.get("additionalProperties")
        return f"map of {_type(more, schemas)}" if isinstance(more, dict) and more else "object"
    if schema.get("format") == "date-time":
        return "time"
    if schema.get("format") == "binary":
        return "file"
    return str(schema.get("type", "any"))


def _plain(name: str) -> str:
    return name.strip("_").replace("_", " of ") if name.startswith("Page_") else name


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main(arguments: list[str]) -> int:
    """The command; exits with 1 where `--check` finds the page out of date."""
    paths = [Path(a) for a in arguments if not a.startswith("-")]
    path = paths[0] if paths else PAGE
    made = page()
    old = path.read_text("utf-8") if path.exists() else ""
    if made == old:
        return 0
    if "--check" in arguments:
        print(f"{path} is out of date; run `make docs`.")
        return 1
    path.write_text(made, "utf-8")
    print(f"{path} made anew.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
