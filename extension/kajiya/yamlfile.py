"""A YAML file read into a model; what is wrong is answered with file, line, key and what was expected."""

from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from kajiya.errors import ConfigInvalid

M = TypeVar("M", bound=BaseModel)
Location = tuple[int | str, ...]


def load(path: Path, model: type[M]) -> M:
    """The file as a model. Raises `ConfigInvalid`."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        expected = f"a readable YAML file in UTF-8 ({getattr(e, 'strerror', None) or e})"
        raise ConfigInvalid(file=str(path), line=1, key="the file", problem="can't be read", expected=expected) from e
    return parse(text, model, str(path))


def parse(text: str, model: type[M], file: str) -> M:
    """YAML text as a model; `file` is only named in errors. Raises `ConfigInvalid`."""
    try:
        node = cast(Any, yaml).compose(text, Loader=yaml.SafeLoader)
        _refuse_double_keys(node, file)
        data = yaml.safe_load(text)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = str(getattr(e, "problem", None) or e)
        raise ConfigInvalid(file=file, line=line, key="the YAML", problem="can't be read", expected=problem) from e
    try:
        return model.model_validate({} if data is None else data)
    except ValidationError as e:
        first = e.errors()[0]
        loc = first["loc"]
        raise ConfigInvalid(
            file=file,
            line=_line(node, loc),
            key=".".join(str(part) for part in loc) or "the file",
            problem=_problem(first["type"]),
            expected=_expected(model, first["type"], first["msg"], loc),
        ) from e


def _refuse_double_keys(node: Any, file: str) -> None:
    # YAML's last one wins in silence: an administrator would look for the fault elsewhere.
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in cast("list[tuple[Any, Any]]", node.value):
            if key.value in seen:
                line = key.start_mark.line + 1
                raise ConfigInvalid(
                    file=file, line=line, key=key.value, problem="stands twice", expected="each key once"
                )
            seen.add(key.value)
            _refuse_double_keys(value, file)
    elif isinstance(node, yaml.SequenceNode):
        for value in cast("list[Any]", node.value):
            _refuse_double_keys(value, file)


def _problem(kind: str) -> str:
    return {"missing": "is missing", "extra_forbidden": "is not known"}.get(kind, "is wrong")


def _expected(model: type[BaseModel], kind: str, text: str, loc: Location) -> str:
    if kind == "extra_forbidden":
        known = _fields_at(model, loc[:-1])
        return f"one of {', '.join(known)}" if known else "no such key"
    text = text.removeprefix("Value error, ").removeprefix("Input should be ")
    return text.split(", unable to parse")[0] if kind != "missing" else "a value for it"


def _fields_at(model: type[BaseModel], loc: Location) -> list[str]:
    here: Any = model
    for part in loc:
        if isinstance(here, type) and issubclass(here, BaseModel):
            field = here.model_fields.get(str(part))
            here = field.annotation if field else None
        else:
            here = _inner(here)
        if get_origin(here) in (Union, UnionType):
            here = next((a for a in get_args(here) if a is not type(None)), None)
    return list(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []


def _inner(annotation: Any) -> Any:
    """What a list or a dictionary holds."""
    args = get_args(annotation)
    return args[-1] if args else None


def _line(node: Any, loc: Location) -> int:
    line = 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            pairs = cast("list[tuple[Any, Any]]", node.value)
            pair = next(((k, v) for k, v in pairs if k.value == str(part)), None)
            if pair is None:
                return line
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = cast("list[Any]", node.value)[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line
