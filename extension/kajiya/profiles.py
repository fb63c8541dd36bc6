"""Profiles: what a user may choose, and what a choice gives. Pure but for reading one YAML file.

A profile file is read by the picker and by the job backends, so that what a user clicked is what a job asks for.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from kajiya.errors import (
    ConfigInvalid,
    ProfileLimit,
    ProfileNotAllowed,
    TooLargeForMachine,
    UnknownChoice,
    UnknownOption,
    UnknownProfile,
)
from kajiya.types import (
    Capacity,
    ChoiceView,
    GiB,
    MiB,
    OptionView,
    ProfileView,
    Reason,
    Resources,
    Slug,
    Wire,
)


class ResourcesPatch(Wire):
    """What a choice changes in the profile's resources; what is left out stays."""

    cpu: float | None = Field(default=None, gt=0, le=4096)
    memory: str | int | None = Field(default=None, description="Bytes, or a number with K, M, G or T (of 1024).")
    gpus: int | None = Field(default=None, ge=0, le=64)
    gpu_kind: str | None = None

    @model_validator(mode="after")
    def _memory_is_a_size(self) -> "ResourcesPatch":
        if self.memory is not None and parse_size(self.memory) < 64 * MiB:
            raise ValueError("memory must be at least 64M")
        return self


class Choice(Wire):
    """One choice of an option."""

    slug: Slug
    name: str
    default: bool = False
    resources: ResourcesPatch = Field(default_factory=lambda: ResourcesPatch.model_validate({}))
    env: dict[str, str] = Field(default_factory=dict[str, str])


class Option(Wire):
    """Something to choose within a profile; with `when`, only under these choices of other options."""

    slug: Slug
    name: str
    choices: list[Choice] = Field(min_length=1)
    when: dict[str, list[str]] = Field(default_factory=dict[str, list[str]])


class Idle(Wire):
    """When an unused server of this profile is stopped."""

    stop_after_minutes: int | None = Field(default=None, ge=1, description="Null never stops.")


class Profile(Wire):
    """A named set of resources that a user picks."""

    slug: Slug
    name: str = Field(min_length=1, max_length=100)
    description: str = Field(default="", max_length=1000)
    resources: ResourcesPatch = Field(default_factory=lambda: ResourcesPatch.model_validate({}))
    options: list[Option] = Field(default_factory=list[Option])
    groups: list[str] | None = Field(
        None, description="Groups that may use it; with `users`, either is enough. Null with null users: all."
    )
    users: list[str] | None = Field(default=None, description="Users that may use it.")
    limit_per_user: int | None = Field(None, ge=1, description="Servers and running jobs of one user at once.")
    env: dict[str, str] = Field(
        default_factory=dict[str, str], description="Environment variables of servers and jobs."
    )
    idle: Idle = Field(default_factory=lambda: Idle.model_validate({}))


class Limits(Wire):
    """Limits of each owner, over all profiles; null means none."""

    jobs_active: int | None = Field(default=None, ge=1, description="Jobs of one owner starting or running at once.")
    jobs_queued: int | None = Field(default=2000, ge=1, description="Jobs of one owner not yet ended.")
    servers: int | None = Field(default=None, ge=1)


class ProfileSet(Wire):
    """The profile file: profiles in the order shown, and limits."""

    profiles: list[Profile] = Field(min_length=1)
    limits: Limits = Field(default_factory=lambda: Limits.model_validate({}))

    @model_validator(mode="after")
    def _consistent(self) -> "ProfileSet":
        _unique("profiles", [p.slug for p in self.profiles])
        for p in self.profiles:
            _unique(f"options of {p.slug}", [o.slug for o in p.options])
            seen: dict[str, Option] = {}
            for o in p.options:
                _unique(f"choices of {p.slug}.{o.slug}", [c.slug for c in o.choices])
                if sum(c.default for c in o.choices) > 1:
                    raise ValueError(f"{p.slug}.{o.slug} has more than one default choice")
                for other, choices in o.when.items():
                    # Only earlier options: so no circle can be written.
                    if other not in seen:
                        raise ValueError(
                            f"{p.slug}.{o.slug} depends on {other}, which is no earlier option of {p.slug}"
                        )
                    missing = set(choices) - {c.slug for c in seen[other].choices}
                    if missing:
                        raise ValueError(
                            f"{p.slug}.{o.slug} depends on unknown choices of {other}: {', '.join(sorted(missing))}"
                        )
                seen[o.slug] = o
        return self


def _unique(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{what}: {name} stands twice")


class Selection(Wire):
    """A validated choice: what a spawner or a backend gives."""

    profile: str
    options: dict[str, str] = Field(default_factory=dict[str, str])
    resources: Resources
    env: dict[str, str] = Field(default_factory=dict[str, str])
    idle_minutes: int | None = None


# --- pure
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def parse_size(text: str | int) -> int:
    """Bytes of a size such as `2G`, `512M`, `1.5Gi`. Raises `ValueError`."""
    if isinstance(text, int):
        return text
    body = text.strip().removesuffix("B").removesuffix("i")
    unit = body[-1:].upper() if body[-1:].isalpha() else ""
    number = body[: len(body) - len(unit)]
    if unit not in _UNITS:
        raise ValueError(f"{text!r} is no size such as 512M or 2G")
    try:
        return int(float(number) * _UNITS[unit])
    except ValueError as e:
        raise ValueError(f"{text!r} is no size such as 512M or 2G") from e


def show_size(n: float) -> str:
    """A size as people read it: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n) < 1024 or (unit == "GiB" and abs(n) < 1024**4):
            return f"{n:.0f} {unit}" if unit == "B" or n == int(n) else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n / 1024:.1f} TiB"


def allowed(profile: Profile, user: str, groups: Iterable[str]) -> bool:
    """Whether the profile is open to this user."""
    if profile.groups is None and profile.users is None:
        return True
    return user in (profile.users or ()) or bool(set(profile.groups or ()) & set(groups))


def allowed_profiles(config: ProfileSet, user: str, groups: Iterable[str]) -> list[Profile]:
    """The profiles of this user, in the file's order."""
    groups = set(groups)
    return [p for p in config.profiles if allowed(p, user, groups)]


def active_options(profile: Profile, options: Mapping[str, str]) -> dict[str, Choice]:
    """The choice of each option in force, defaults filled in. Raises `UnknownOption`, `UnknownChoice`."""
    out: dict[str, Choice] = {}
    for option in profile.options:
        if any(other not in out or out[other].slug not in choices for other, choices in option.when.items()):
            continue
        default = next((c for c in option.choices if c.default), option.choices[0])
        wanted = options.get(option.slug, default.slug)
        choice = next((c for c in option.choices if c.slug == wanted), None)
        if choice is None:
            known = [c.slug for c in option.choices]
            raise UnknownChoice(profile=profile.slug, option=option.slug, choice=wanted, known=known)
        out[option.slug] = choice
    for name in options:
        if name not in out:
            raise UnknownOption(profile=profile.slug, option=name, known=list(out) or ["none"])
    return out


def merge(base: Resources, patch: ResourcesPatch) -> Resources:
    """Resources with a patch over them."""
    return Resources(
        cpu=base.cpu if patch.cpu is None else patch.cpu,
        memory=base.memory if patch.memory is None else parse_size(patch.memory),
        gpus=base.gpus if patch.gpus is None else patch.gpus,
        gpu_kind=base.gpu_kind if patch.gpu_kind is None else patch.gpu_kind,
    )


DEFAULT_RESOURCES = Resources(cpu=1, memory=GiB, gpus=0, gpu_kind=None)


def select(
    config: ProfileSet,
    user: str,
    groups: Iterable[str],
    profile: str | None,
    options: Mapping[str, str] | None = None,
    capacity: Capacity | None = None,
    used: int = 0,
) -> Selection:
    """What this user gets by this choice; the one check of every spawn and submit.

    `used` is how often the user has the profile now. Raises `UnknownProfile`, `ProfileNotAllowed`, `UnknownOption`,
    `UnknownChoice`, `ProfileLimit`, `TooLargeForMachine`.
    """
    mine = allowed_profiles(config, user, groups)
    if profile is None:
        if not mine:
            raise ProfileNotAllowed(profile="")
        chosen = mine[0]
    else:
        found = next((p for p in config.profiles if p.slug == profile), None)
        if found is None:
            raise UnknownProfile(profile=profile, known=[p.slug for p in mine])
        if found not in mine:
            raise ProfileNotAllowed(profile=profile)
        chosen = found
    choices = active_options(chosen, options or {})
    resources, env = merge(DEFAULT_RESOURCES, chosen.resources), dict(chosen.env)
    for choice in choices.values():
        resources = merge(resources, choice.resources)
        env |= choice.env
    if chosen.limit_per_user is not None and used >= chosen.limit_per_user:
        raise ProfileLimit(profile=chosen.slug, used=used, limit=chosen.limit_per_user)
    if capacity is not None:
        check_fits(chosen.slug, resources, capacity)
    return Selection(
        profile=chosen.slug,
        options={k: c.slug for k, c in choices.items()},
        resources=resources,
        env=env,
        idle_minutes=chosen.idle.stop_after_minutes,
    )


def check_fits(profile: str, asked: Resources, capacity: Capacity) -> None:
    """Raises `TooLargeForMachine` where the whole machine could not give it."""
    gpus = sum(g.total for g in capacity.gpus if asked.gpu_kind in (None, g.kind))
    for resource, want, total, show in (
        ("CPUs", asked.cpu, capacity.cpu.total, _number),
        ("memory", asked.memory, capacity.memory.total, show_size),
        ("GPUs" if asked.gpu_kind is None else f"GPUs of kind {asked.gpu_kind}", asked.gpus, gpus, _number),
    ):
        if want > total:
            raise TooLargeForMachine(profile=profile, resource=resource, asked=show(want), total=show(total))


def missing_now(asked: Resources, capacity: Capacity, cpu: bool = True) -> Reason | None:
    """Why this can't be had now, or None; with `cpu=False` CPUs are shared and not counted."""
    gpus = [g for g in capacity.gpus if asked.gpu_kind in (None, g.kind)]
    rows = [
        ("GPUs", asked.gpus, sum(g.free for g in gpus), sum(g.total for g in gpus), _number),
        ("memory", asked.memory, capacity.memory.free, capacity.memory.total, show_size),
    ]
    if cpu:
        rows.append(("CPUs", asked.cpu, capacity.cpu.free, capacity.cpu.total, _number))
    for resource, want, free, total, show in rows:
        if want > free:
            params = {"resource": resource, "asked": show(want), "free": show(free), "total": show(total)}
            return Reason(code="capacity.none", params=params)
    return None


def _number(n: float) -> str:
    return f"{n:g}"


def view(profile: Profile, capacity: Capacity | None = None, used: int = 0, cpu: bool = False) -> ProfileView:
    """A profile as its user sees it, with whether it can be had now."""
    resources = merge(DEFAULT_RESOURCES, profile.resources)
    for choice in active_options(profile, {}).values():
        resources = merge(resources, choice.resources)
    reason = missing_now(resources, capacity, cpu) if capacity is not None else None
    if profile.limit_per_user is not None and used >= profile.limit_per_user:
        params = {"profile": profile.slug, "used": used, "limit": profile.limit_per_user}
        reason = Reason(code="profile.limit", params=params)
    return ProfileView(
        slug=profile.slug,
        name=profile.name,
        description=profile.description,
        resources=resources,
        options=[
            OptionView(
                slug=o.slug,
                name=o.name,
                when=o.when,
                choices=[
                    ChoiceView(slug=c.slug, name=c.name, default=c.default, resources=merge(resources, c.resources))
                    for c in o.choices
                ],
            )
            for o in profile.options
        ],
        available=reason is None,
        reason=reason,
        limit=profile.limit_per_user,
        used=used,
    )


def defaults(capacity: Capacity) -> ProfileSet:
    """The default profiles, made to fit this machine: small, medium, large, and one for each kind of GPU."""
    cpus, memory = max(1, int(capacity.cpu.total)), int(capacity.memory.total)
    half = max(1, cpus // 2)

    def size(n: int) -> str:
        return f"{max(256 * MiB, n // MiB * MiB) // MiB}M"

    raw: list[dict[str, Any]] = [
        {
            "slug": "small",
            "name": "Small",
            "description": "For looking around, writing, and light models.",
            "resources": {"cpu": 1, "memory": size(min(2 * GiB, memory // 2))},
        }
    ]
    if memory >= 6 * GiB:
        raw.append(
            {
                "slug": "medium",
                "name": "Medium",
                "description": "Half of this machine, for training on tables.",
                "resources": {"cpu": half, "memory": size(min(16 * GiB, memory // 3))},
            }
        )
    if cpus >= 2 and memory >= 6 * GiB:
        raw.append(
            {
                "slug": "large",
                "name": "Large",
                "description": "Most of this machine. Others wait while you use it.",
                "resources": {"cpu": cpus, "memory": size(memory * 2 // 3)},
            }
        )
    for i, gpu in enumerate(capacity.gpus):
        counts = [n for n in (1, 2, 4, 8) if n <= gpu.total]
        raw.append(
            {
                "slug": "gpu" if len(capacity.gpus) == 1 else f"gpu-{i + 1}",
                "name": f"GPU: {gpu.kind}"[:100],
                "description": "Whole GPUs, yours alone while you have them.",
                "resources": {
                    "cpu": max(1, cpus // max(1, gpu.total)),
                    "memory": size(memory * 2 // 3 // max(1, gpu.total)),
                    "gpus": 1,
                    "gpu_kind": gpu.kind,
                },
                "options": [
                    {
                        "slug": "gpus",
                        "name": "GPUs",
                        "choices": [
                            {"slug": str(n), "name": str(n), "default": n == 1, "resources": {"gpus": n}}
                            for n in counts
                        ],
                    }
                ]
                if len(counts) > 1
                else [],
            }
        )
    return ProfileSet.model_validate({"profiles": raw})


# --- the file
def load(path: Path) -> ProfileSet:
    """The profile file. Raises `ConfigInvalid` naming file, line, key and what was expected."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigInvalid(
            file=str(path), line=1, key="the file", problem="can't be read", expected=f"YAML in UTF-8 ({e})"
        ) from e
    return parse(text, str(path))


def parse(text: str, file: str = "profiles.yaml") -> ProfileSet:
    """A profile set from YAML text; see `load`."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise ConfigInvalid(
            file=file,
            line=line,
            key="the YAML",
            problem="can't be read",
            expected=str(getattr(e, "problem", e)),
        ) from e
    try:
        return ProfileSet.model_validate(data)
    except ValidationError as e:
        first = e.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigInvalid(
            file=file,
            line=_line(node, first["loc"]),
            key=key,
            problem=_problem(first["type"]),
            expected=_expected(first["type"], first["msg"], first["loc"]),
        ) from e


def _problem(kind: str) -> str:
    return {"missing": "is missing", "extra_forbidden": "is not known"}.get(kind, "is wrong")


def _expected(kind: str, text: str, loc: tuple[int | str, ...]) -> str:
    if kind == "extra_forbidden":
        # The model whose key it is: walk the location from the root, lists and dictionaries passed through.
        model: Any = ProfileSet
        for part in loc[:-1]:
            field = getattr(model, "model_fields", {}).get(part)
            if field is not None:
                inner = [a for a in getattr(field.annotation, "__args__", ()) if hasattr(a, "model_fields")]
                model = inner[0] if inner else field.annotation
        known = getattr(model, "model_fields", {})
        return f"one of {', '.join(known)}" if known else "no such key"
    return text.removeprefix("Value error, ")


def _line(node: Any, loc: tuple[int | str, ...]) -> int:
    line = 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if pair is None:
                return line
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line


def schema() -> dict[str, Any]:
    """The JSON schema of a profile file, for editors and for docs/profiles.md."""
    return ProfileSet.model_json_schema() | {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Kajiya profiles",
    }


def dump(config: ProfileSet) -> str:
    """A profile set as YAML text."""
    data = json.loads(config.model_dump_json(exclude_defaults=True))
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
