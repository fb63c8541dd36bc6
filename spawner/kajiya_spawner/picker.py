"""The profile picker: the cards, what can be had now, and what a form, a query or an API call chose.

Nothing here is believed because it was shown: `kajiya.profiles.select` checks every choice again when a server starts.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from kajiya.errors import InvalidRequest, KajiyaError, ProfileNotAllowed, TooLargeForMachine, UnknownProfile
from kajiya.profiles import (
    Profile,
    ProfileSet,
    active_options,
    allowed_profiles,
    check_fits,
    show_size,
    view,
)
from kajiya.types import Capacity, ProfileView, Reason, Resources
from kajiya_spawner.look import Look, render

# Field names of the form: the options of each profile stand under its own name, so that cards can't mix.
PROFILE_FIELD = "profile"
LONGEST = 200


def option_field(profile: str, option: str) -> str:
    """The form field of an option."""
    return f"option:{profile}:{option}"


@dataclass(frozen=True)
class Choice:
    """What a user asked for, not yet checked against the profiles: None takes the first profile of the user."""

    profile: str | None = None
    options: Mapping[str, str] | None = None

    def as_options(self) -> dict[str, Any]:
        """As the Hub stores it in `user_options`."""
        return {"profile": self.profile, "options": dict(self.options or {})} if self.profile else {}


# --- reading a choice
def choice_from_form(form: Mapping[str, Any], config: ProfileSet, user: str, groups: Iterable[str]) -> Choice:
    """The choice in a posted form. Raises `InvalidRequest` and what `profiles.select` raises for the profile's name.

    Options of other cards, and dependent ones that do not apply, are in every form that a browser without JavaScript
    sends: they are left out here.
    """
    fields = {key: _one(key, value) for key, value in form.items() if key != "_xsrf"}
    slug = fields.pop(PROFILE_FIELD, None)
    known = {option_field(p.slug, o.slug) for p in config.profiles for o in p.options}
    for key in fields:
        if key not in known:
            raise InvalidRequest(field=key, problem="the picker has no such field")
    if slug is None:
        return Choice()
    profile = find(config, user, groups, slug)
    named = {option_field(slug, o.slug): o.slug for o in profile.options}
    wanted = {named[field]: value for field, value in fields.items() if field in named}
    return Choice(slug, applicable(profile, wanted))


def choice_from_query(query: Mapping[str, Any]) -> Choice:
    """The choice in a link such as `/hub/spawn?opt-profile=gpu&opt-gpus=2`; the Hub has taken `opt-` off."""
    fields = {key: _one(key, value) for key, value in query.items()}
    return Choice(fields.pop(PROFILE_FIELD, None), fields)


def choice_from_options(options: Any) -> Choice:
    """The choice in `user_options`, which an API call may have filled with anything. Raises `InvalidRequest`."""
    if not isinstance(options, Mapping):
        raise InvalidRequest(field="user_options", problem="it must be an object")
    for key in options:
        if key not in ("profile", "options"):
            raise InvalidRequest(field=f"user_options.{key}", problem="only profile and options are known")
    profile, chosen = options.get("profile"), options.get("options") or {}
    if profile is not None and not isinstance(profile, str):
        raise InvalidRequest(field="user_options.profile", problem="it must be the slug of a profile")
    if not isinstance(chosen, Mapping) or not all(isinstance(k, str) and isinstance(v, str) for k, v in chosen.items()):
        raise InvalidRequest(field="user_options.options", problem="it must map options to choices, both by slug")
    if chosen and profile is None:
        raise InvalidRequest(field="user_options.options", problem="options need a profile")
    return Choice(profile, dict(chosen))


def _one(key: str, value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    if len(values) != 1 or not isinstance(values[0], str):
        raise InvalidRequest(field=key, problem="it must be given once, as text")
    if len(values[0]) > LONGEST:
        raise InvalidRequest(field=key, problem=f"it is longer than {LONGEST} characters")
    return values[0]


def find(config: ProfileSet, user: str, groups: Iterable[str], slug: str) -> Profile:
    """A profile that this user may use. Raises `UnknownProfile`, `ProfileNotAllowed`."""
    mine = allowed_profiles(config, user, groups)
    found = next((p for p in config.profiles if p.slug == slug), None)
    if found is None:
        raise UnknownProfile(profile=slug, known=[p.slug for p in mine])
    if found not in mine:
        raise ProfileNotAllowed(profile=slug)
    return found


def applicable(profile: Profile, wanted: Mapping[str, str]) -> dict[str, str]:
    """The wanted options that apply under the others; a wrong choice stays in, to be refused by `select`."""
    out: dict[str, str] = {}
    for option in profile.options:
        default = {o: c.slug for o, c in _active_before(profile, out).items()}
        if any(default.get(other) not in choices for other, choices in option.when.items()):
            continue
        if option.slug in wanted:
            out[option.slug] = wanted[option.slug]
    return out


def _active_before(profile: Profile, chosen: Mapping[str, str]) -> dict[str, Any]:
    try:
        return active_options(profile, chosen)
    except KajiyaError:
        return {}


# --- what the cards say
def views(
    config: ProfileSet,
    user: str,
    groups: Iterable[str],
    capacity: Capacity | None,
    used: Callable[[str], int],
    language: str,
) -> list[ProfileView]:
    """The profiles of this user, each with whether it can be had now and, if not, the sentence that says why."""
    out: list[ProfileView] = []
    for profile in allowed_profiles(config, user, groups):
        seen = view(profile, capacity, used(profile.slug))
        if capacity is not None:
            try:
                check_fits(profile.slug, seen.resources, capacity)
            except TooLargeForMachine as e:
                # Waiting would not help, so this reason goes before "not free now".
                seen = seen.model_copy(update={"available": False, "reason": Reason(code=e.code, params=e.params)})
        if seen.reason is not None:
            spoken = Look(language).reason(seen.reason.code, seen.reason.params)
            seen = seen.model_copy(update={"reason": seen.reason.model_copy(update={"message": spoken})})
        out.append(seen)
    return out


def preselect(shown: list[ProfileView], last: Choice | None) -> Choice:
    """The last choice if it can be had now, else the first that can, else the last choice all the same."""
    slugs = [v.slug for v in shown]
    free = [v.slug for v in shown if v.available]
    if last and last.profile in free:
        return last
    if free:
        return Choice(free[0], {})
    return last if last and last.profile in slugs else Choice(slugs[0] if slugs else None, {})


def figures(resources: Resources, look: Look) -> dict[str, str]:
    """CPU, memory and GPUs of a profile as words."""
    kind = resources.gpu_kind or look.say("picker.any_gpu")
    return {
        "cpu": look.count("picker.cpu", resources.cpu),
        "memory": show_size(resources.memory),
        "gpus": f"{resources.gpus} × {kind}" if resources.gpus else "",
    }


def free_words(seen: ProfileView, capacity: Capacity | None, look: Look) -> dict[str, str]:
    """What is free now of what a profile takes, as words, by resource."""
    if capacity is None:
        return {"cpu": "", "memory": "", "gpus": ""}
    gpus = [g for g in capacity.gpus if seen.resources.gpu_kind in (None, g.kind)]
    free, total = of_sizes(capacity.memory.free, capacity.memory.total)
    return {
        "cpu": look.say("picker.shared"),
        "memory": look.say("picker.free_of", free=free, total=total),
        "gpus": look.say("picker.free_of", free=sum(g.free for g in gpus), total=sum(g.total for g in gpus)),
    }


def of_sizes(free: float, total: float) -> tuple[str, str]:
    """Two sizes to be read together: the first without its unit where both have the same."""
    one, other = show_size(free), show_size(total)
    number, _, unit = one.partition(" ")
    return (number if other.endswith(f" {unit}") else one), other


def machine_rows(capacity: Capacity | None, look: Look) -> list[dict[str, Any]]:
    """The whole machine: an icon's name, words, and how much is in use in percent, for each resource."""
    if capacity is None:
        return []
    free, total = of_sizes(capacity.memory.free, capacity.memory.total)
    rows = [
        ("cpu", look.say("picker.cpus"), f"{capacity.cpu.free:.3g}", f"{capacity.cpu.total:g}", capacity.cpu),
        ("memory", look.say("picker.memory_name"), free, total, capacity.memory),
    ]
    rows += [("gpu", g.kind, str(g.free), str(g.total), g) for g in capacity.gpus]
    return [
        {
            "icon": icon,
            "name": name,
            "words": look.say("picker.free_of", free=free, total=total),
            "used": 0 if not amount.total else round(100 * (1 - amount.free / amount.total)),
        }
        for icon, name, free, total, amount in rows
    ]


def state_words(seen: ProfileView, look: Look) -> str:
    """The one sentence on a card: it can be had now, or why not."""
    if seen.reason is None:
        return look.say("picker.available")
    # Shorter than the error's own sentence: it stands on the card that it is about, which must not grow.
    code = {"capacity.none": "picker.not_now", "profile.too_large": "picker.too_large"}.get(seen.reason.code)
    return look.reason(code, seen.reason.params) if code else seen.reason.message


def live(shown: list[ProfileView], capacity: Capacity | None, look: Look) -> dict[str, Any]:
    """What the open page asks for again and again: the views, and the words that the cards show for them."""
    return {
        "profiles": [json.loads(v.model_dump_json()) for v in shown],
        "capacity": None if capacity is None else json.loads(capacity.model_dump_json()),
        "machine": machine_rows(capacity, look),
        "words": {v.slug: {"state": state_words(v, look), "free": free_words(v, capacity, look)} for v in shown},
    }


def form(
    shown: list[ProfileView],
    chosen: Choice,
    capacity: Capacity | None,
    look: Look,
    refresh_url: str = "",
    notice: str = "",
) -> Markup:
    """The inside of the Hub's form: a radio card a profile, usable by keyboard and without JavaScript."""
    cards = [
        {
            "view": seen,
            "checked": seen.slug == chosen.profile,
            "figures": figures(seen.resources, look),
            "free": free_words(seen, capacity, look),
            "state": state_words(seen, look),
            "options": [
                {
                    "field": option_field(seen.slug, option.slug),
                    "slug": option.slug,
                    "name": option.name,
                    "when": json.dumps(option.when),
                    "choices": [
                        {
                            "slug": c.slug,
                            "name": c.name,
                            "checked": c.slug == _checked(seen, option.slug, chosen),
                            "figures": json.dumps(_changed(c.resources, seen.resources, look), ensure_ascii=False),
                        }
                        for c in option.choices
                    ],
                }
                for option in seen.options
            ],
        }
        for seen in shown
    ]
    return render(
        "kajiya/picker.html",
        cards=cards,
        machine=machine_rows(capacity, look),
        look=look,
        refresh_url=refresh_url,
        notice=notice,
    )


def _checked(seen: ProfileView, option: str, chosen: Choice) -> str:
    choices = next(o.choices for o in seen.options if o.slug == option)
    wanted = (chosen.options or {}).get(option) if chosen.profile == seen.slug else None
    if wanted in {c.slug for c in choices}:
        return str(wanted)
    return next((c.slug for c in choices if c.default), choices[0].slug)


def _changed(resources: Resources | None, base: Resources, look: Look) -> dict[str, str]:
    """The words that a choice puts in place of the profile's own."""
    if resources is None:
        return {}
    own, new = figures(base, look), figures(resources, look)
    return {key: text for key, text in new.items() if text != own[key]}
