"""What a choice gives, and to whom: the one check of every spawn and submit. Pure."""

from collections.abc import Callable, Iterable, Mapping

from pydantic import Field

from kajiya.errors import (
    ProfileLimit,
    ProfileNotAllowed,
    TooLargeForMachine,
    UnknownChoice,
    UnknownOption,
    UnknownProfile,
)
from kajiya.profiles.model import Choice, Profile, ProfileSet, ResourcesPatch
from kajiya.sizes import parse_size, show_size
from kajiya.types import Capacity, ChoiceView, GiB, OptionView, ProfileView, Reason, Resources, Wire


class Selection(Wire):
    """A validated choice: what a spawner or a backend gives."""

    profile: str
    options: dict[str, str] = Field(default_factory=dict[str, str])
    resources: Resources
    env: dict[str, str] = Field(default_factory=dict[str, str])
    idle_minutes: int | None = None


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
    rows: list[tuple[str, float, float, float, Callable[[float], str]]] = [
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
