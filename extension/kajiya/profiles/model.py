"""What a profile file may say."""

from pydantic import Field, model_validator

from kajiya.sizes import parse_size
from kajiya.types import MiB, Slug, Wire


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
