"""How Kajiya's pages in the Hub look and speak: templates, static files, and the reader's language."""

import hashlib
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from kajiya.messages import message, preferred_language

HERE = Path(__file__).parent
# The names of resources in the parameters of `kajiya.profiles`' errors.
RESOURCES = {"CPUs": "picker.resource_cpu", "memory": "picker.resource_memory", "GPUs": "picker.resource_gpu"}


def template_path() -> str:
    """The folder of templates that go before the Hub's own: into `JupyterHub.template_paths`."""
    return str(HERE / "templates")


def static_path() -> str:
    """The folder of the files that the pages load, served at `/hub/kajiya/static/`."""
    return str(HERE / "static")


@cache
def static_version() -> str:
    """Changes with any static file, so that a browser never keeps an old one."""
    digest = hashlib.sha256()
    for path in sorted(Path(static_path()).iterdir()):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class Look:
    """What a template needs: `look.say(code, ...)` in the reader's language, the language, the files' version."""

    def __init__(self, language: str = "en") -> None:
        self.language = language

    @cached_property
    def version(self) -> str:
        return static_version()

    def speaking(self, language: str) -> "Look":
        """The same in another language."""
        return Look(language)

    def say(self, code: str, **params: Any) -> str:
        """The sentence of a code."""
        return message(code, params, self.language)

    def reason(self, code: str, params: Mapping[str, Any]) -> str:
        """The sentence of a reason, in which the profiles' English names of resources are this language's too."""
        shown = dict(params)
        resource, _, kind = str(params.get("resource", "")).partition(" of kind ")
        if resource in RESOURCES:
            shown["resource"] = self.say(RESOURCES[resource]) + (f" ({kind})" if kind else "")
        return message(code, shown, self.language)

    def count(self, code: str, n: float) -> str:
        """The sentence of `code_one` or `code_many`, with the number."""
        return message(f"{code}_one" if n == 1 else f"{code}_many", {"n": f"{n:g}"}, self.language)


def look_of(user: Any) -> Look:
    """The look for whoever a page of the Hub is made for: in the language that this user's browser asked for last."""
    spawner = getattr(user, "spawner", None) if getattr(user, "kind", None) != "service" else None
    return Look(getattr(spawner, "language", "en"))


def language_of(handler: Any) -> str | None:
    """The language that a request asks for, or None without a request."""
    request = getattr(handler, "request", None)
    return preferred_language(request.headers.get("Accept-Language", "")) if request is not None else None


@cache
def environment() -> Environment:
    """The templates outside the Hub's own rendering; everything is escaped, and a misspelt name is an error."""
    loader = FileSystemLoader(template_path())
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def render(template: str, **values: Any) -> Markup:
    """A template of ours as HTML."""
    return Markup(environment().get_template(template).render(**values))  # noqa: S704


TemplateVariable = Callable[[Any], Any]


def template_vars() -> dict[str, TemplateVariable]:
    """What the Hub hands to every template: into `JupyterHub.template_vars`."""
    return {"look": look_of}
