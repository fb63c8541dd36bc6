"""The generated parts of docs/: `python -m kajiya_hub.reference` makes them anew, `--check` says which are stale.

A generated part stands in its page between `<!-- generated: NAME -->` and `<!-- end -->`; the rest is written by hand.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kajiya.errors import KajiyaError, leaves
from kajiya.messages import sentences
from kajiya.profiles.model import ProfileSet
from kajiya_hub.settings import SiteSettings

_PART = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def model_table(model: type[BaseModel], title: str) -> str:
    """A model and all models within it as Markdown tables: key, type, default, meaning."""
    schema = model.model_json_schema()
    parts = [_table(title, schema, schema)]
    for name, inner in sorted(schema.get("$defs", {}).items()):
        if "properties" in inner:
            parts.append(_table(name, inner, schema))
    return "\n".join(parts)


def _table(title: str, schema: dict[str, Any], root: dict[str, Any]) -> str:
    lines = [f"### {title}", ""]
    if schema.get("description"):
        lines += [schema["description"].split("\n\n")[0].replace("\n", " "), ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, field in schema["properties"].items():
        default = "required" if key in schema.get("required", ()) else _default(field)
        lines.append(f"| `{key}` | {_type(field)} | {default} | {_meaning(field, root)} |")
    return "\n".join([*lines, ""])


def _default(field: dict[str, Any]) -> str:
    return f"`{json.dumps(field['default'], ensure_ascii=False)}`" if "default" in field else "empty"


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        return " or ".join(_type(f) for f in field["anyOf"])
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    if field.get("type") == "object":
        return f"map of {_type(field.get('additionalProperties') or {})}"
    return str(field.get("type", "any"))


def _meaning(field: dict[str, Any], root: dict[str, Any]) -> str:
    words = [field.get("description", "")]
    if not words[0] and "$ref" in field:
        inner = root["$defs"][field["$ref"].rsplit("/", 1)[-1]]
        words = [inner.get("description", "").split("\n")[0]]
    numeric = next((f for f in field.get("anyOf", [field]) if f.get("type") in ("number", "integer")), field)
    low = numeric.get("minimum", numeric.get("exclusiveMinimum"))
    high = numeric.get("maximum")
    if low is not None and high is not None:
        words.append(f"{low:g} to {high:g}." if "minimum" in numeric else f"Above {low:g}, up to {high:g}.")
    elif low is not None:
        words.append(f"At least {low:g}.")
    if numeric.get("pattern"):
        words.append(f"Matches `{numeric['pattern']}`.".replace("|", "\\|"))
    return " ".join(w for w in words if w)


def errors_table() -> str:
    """Every error as a Markdown table: code, status, sentence."""
    lines = ["| code | status | sentence |", "|---|---|---|"]
    english = sentences("en")
    # Only the tree of `kajiya.errors`: what else is a leaf depends on what this process happened to import.
    own = {leaf for leaf in leaves() if leaf.__module__ == KajiyaError.__module__}
    for leaf in sorted(own, key=lambda c: (c.code, c.status)):
        lines.append(f"| `{leaf.code}` | {leaf.status} | {english[leaf.code]} |")
    return "\n".join([*lines, ""])


PARTS: dict[str, Callable[[], str]] = {
    "profiles": lambda: model_table(ProfileSet, "The file"),
    "settings": lambda: model_table(SiteSettings, "kajiya.yaml"),
    "errors": errors_table,
}


def render(text: str) -> str:
    """A page with its generated parts made anew. Raises `KeyError` for a part that nobody makes."""
    return _PART.sub(lambda m: f"{m[1]}\n{PARTS[m['name']]()}\n{m[3]}", text)


def stale(docs: Path, write: bool = False) -> list[Path]:
    """The pages whose generated parts are out of date; with `write` they are made anew."""
    out: list[Path] = []
    for page in sorted(docs.glob("*.md")):
        old = page.read_text("utf-8")
        new = render(old)
        if new != old:
            out.append(page)
            if write:
                page.write_text(new, "utf-8")
    return out


def main() -> int:
    """The command; exits with 1 where `--check` finds a page out of date."""
    check = "--check" in sys.argv[1:]
    pages = stale(Path("docs"), write=not check)
    for page in pages:
        print(f"{page} is out of date; run `make docs`." if check else f"{page} made anew.")
    return 1 if check and pages else 0


if __name__ == "__main__":
    sys.exit(main())
