"""Profiles: the file, who may choose what, and what a choice gives."""

from datetime import UTC, datetime
from typing import Any

import jsonschema
import pytest
import yaml

from kajiya import errors, profiles
from kajiya.types import Amount, Capacity, GiB, GpuAmount, MiB, Resources


def capacity(cpu: float = 8, memory: int = 32 * GiB, gpus: list[GpuAmount] | None = None, **free: float) -> Capacity:
    return Capacity(
        cpu=Amount(total=cpu, free=free.get("cpu", cpu)),
        memory=Amount(total=memory, free=free.get("memory", memory)),
        gpus=gpus or [],
        at=datetime(2026, 1, 1, tzinfo=UTC),
    )


H100 = GpuAmount(kind="NVIDIA H100", total=4, free=1, memory=80 * GiB)
TEXT = """
profiles:
  - slug: small
    name: 小さい
    resources: {cpu: 1, memory: 2G}
    env: {OMP_NUM_THREADS: "1"}
  - slug: gpu
    name: GPU
    groups: [vision]
    users: [mika]
    limit_per_user: 2
    resources: {cpu: 4, memory: 16G, gpus: 1, gpu_kind: NVIDIA H100}
    idle: {stop_after_minutes: 60}
    options:
      - slug: kind
        name: Kind
        choices:
          - {slug: whole, name: Whole, resources: {gpus: 1}}
          - {slug: many, name: Several, resources: {gpus: 2}, env: {NCCL_DEBUG: WARN}}
      - slug: count
        name: How many
        when: {kind: [many]}
        choices:
          - {slug: two, name: "2", resources: {gpus: 2}}
          - {slug: four, name: "4", default: true, resources: {gpus: 4, memory: 30G}}
"""
CONFIG = profiles.parse(TEXT)


@pytest.mark.parametrize(
    ("user", "groups", "slugs"),
    [("ann", [], ["small"]), ("ann", ["vision"], ["small", "gpu"]), ("mika", [], ["small", "gpu"])],
)
def test_a_user_sees_only_the_profiles_open_to_him(user: str, groups: list[str], slugs: list[str]) -> None:
    assert [p.slug for p in profiles.allowed_profiles(CONFIG, user, groups)] == slugs


@pytest.mark.parametrize(
    ("profile", "options", "expected", "gives"),
    [
        ("small", {}, {}, Resources(cpu=1, memory=2 * GiB)),
        (None, {}, {}, Resources(cpu=1, memory=2 * GiB)),
        ("gpu", {}, {"kind": "whole"}, Resources(cpu=4, memory=16 * GiB, gpus=1, gpu_kind="NVIDIA H100")),
        (
            "gpu",
            {"kind": "many"},
            {"kind": "many", "count": "four"},
            Resources(cpu=4, memory=30 * GiB, gpus=4, gpu_kind="NVIDIA H100"),
        ),
        (
            "gpu",
            {"kind": "many", "count": "two"},
            {"kind": "many", "count": "two"},
            Resources(cpu=4, memory=16 * GiB, gpus=2, gpu_kind="NVIDIA H100"),
        ),
    ],
)
def test_what_a_choice_gives(
    profile: str | None, options: dict[str, str], expected: dict[str, str], gives: Resources
) -> None:
    got = profiles.select(CONFIG, "mika", [], profile, options, capacity(gpus=[H100]))
    assert (got.options, got.resources) == (expected, gives)


def test_environment_and_idle_rule_come_along() -> None:
    got = profiles.select(CONFIG, "mika", [], "gpu", {"kind": "many"})
    assert got.env == {"NCCL_DEBUG": "WARN"}
    assert got.idle_minutes == 60


@pytest.mark.parametrize(
    ("profile", "options", "used", "error", "status"),
    [
        ("nope", {}, 0, errors.UnknownProfile, 422),
        ("small", {"kind": "many"}, 0, errors.UnknownOption, 422),
        ("gpu", {"kind": "half"}, 0, errors.UnknownChoice, 422),
        # `count` stands under `many` only: a hand-made request can't reach it from `whole`.
        ("gpu", {"kind": "whole", "count": "four"}, 0, errors.UnknownOption, 422),
        ("gpu", {}, 2, errors.ProfileLimit, 403),
        ("x" * 10_000, {}, 0, errors.UnknownProfile, 422),
        ("小さい\n'\"", {}, 0, errors.UnknownProfile, 422),
    ],
)
def test_refusals(profile: str, options: dict[str, str], used: int, error: type, status: int) -> None:
    with pytest.raises(error) as caught:
        profiles.select(CONFIG, "mika", [], profile, options, used=used)
    assert caught.value.status == status
    assert len(str(caught.value)) < 600


def test_a_profile_of_another_group_is_refused_and_not_described() -> None:
    with pytest.raises(errors.ProfileNotAllowed) as caught:
        profiles.select(CONFIG, "ann", ["nlp"], "gpu")
    assert "vision" not in str(caught.value)


@pytest.mark.parametrize(
    ("have", "resource"),
    [
        (capacity(cpu=2, gpus=[H100]), "CPUs"),
        (capacity(memory=8 * GiB, gpus=[H100]), "memory"),
        (capacity(), "GPUs of kind NVIDIA H100"),
        (capacity(gpus=[GpuAmount(kind="NVIDIA A100", total=8, free=8)]), "GPUs of kind NVIDIA H100"),
    ],
)
def test_larger_than_the_machine(have: Capacity, resource: str) -> None:
    with pytest.raises(errors.TooLargeForMachine) as caught:
        profiles.select(CONFIG, "mika", [], "gpu", {}, have)
    assert caught.value.params["resource"] == resource


@pytest.mark.parametrize(
    ("asked", "have", "cpu", "resource"),
    [
        (Resources(cpu=2, memory=GiB), capacity(), True, None),
        (Resources(cpu=8, memory=GiB), capacity(memory=GiB), True, None),
        (Resources(cpu=1, memory=2 * GiB), capacity(memory=GiB), True, "memory"),
        (Resources(cpu=1, memory=GiB, gpus=2), capacity(gpus=[H100]), True, "GPUs"),
        (Resources(cpu=1, memory=GiB, gpus=1, gpu_kind="other"), capacity(gpus=[H100]), True, "GPUs"),
    ],
)
def test_what_is_missing_now(asked: Resources, have: Capacity, cpu: bool, resource: str | None) -> None:
    reason = profiles.missing_now(asked, have, cpu)
    assert (reason.params["resource"] if reason else None) == resource


def test_shared_cpus_are_not_counted() -> None:
    busy = Capacity(
        cpu=Amount(total=2, free=0), memory=Amount(total=GiB, free=GiB), at=datetime(2026, 1, 1, tzinfo=UTC)
    )
    assert profiles.missing_now(Resources(cpu=1, memory=GiB), busy, cpu=False) is None
    assert profiles.missing_now(Resources(cpu=1, memory=GiB), busy, cpu=True) is not None


def test_the_view_says_why_it_can_not_be_had() -> None:
    none_free = capacity(gpus=[H100.model_copy(update={"free": 0})])
    seen = profiles.view(CONFIG.profiles[1], none_free)
    assert not seen.available and seen.reason is not None and seen.reason.params["resource"] == "GPUs"
    assert profiles.view(CONFIG.profiles[1], capacity(gpus=[H100])).available
    assert profiles.view(CONFIG.profiles[1], None, used=2).reason is not None
    assert [c.resources.gpus for c in seen.options[1].choices if c.resources] == [2, 4]


BROKEN: list[tuple[str, int, str, str]] = [
    ("profiles: []", 1, "profiles", "at least 1 item"),
    ("", 1, "profiles", "a value"),
    ("- a", 1, "the file", "dictionary"),
    ("profiles:\n  - slug: a\n    name: A\n    resorces: {cpu: 1}", 4, "profiles.0.resorces", "resources"),
    ("profiles:\n  - slug: a\n    name: A\n    resources:\n      cpu: x", 5, "profiles.0.resources.cpu", "number"),
    ("profiles:\n  - slug: a\n    name: A\n    resources:\n      memory: 3 pigs", 4, "profiles.0.resources", "512M"),
    ("profiles:\n  - slug: a\n    name: A\n    resources:\n      gpu: 1", 5, "profiles.0.resources.gpu", "gpus"),
    ("profiles:\n  - slug: A B\n    name: A", 2, "profiles.0.slug", "pattern"),
    ("profiles:\n  - slug: a\n    name: A\n  - slug: a\n    name: B", 1, "the file", "stands twice"),
    ("profiles:\n  - slug: a\n    name: A\n    name: B", 4, "name", "each key once"),
    ("profiles:\n\t- slug: a", 2, "the YAML", "token"),
    ("limits: {jobs_active: 0}\nprofiles: [{slug: a, name: A}]", 1, "limits.jobs_active", "greater"),
]


@pytest.mark.parametrize(("text", "line", "key", "expected"), BROKEN, ids=[repr(b[0][-30:]) for b in BROKEN])
def test_a_wrong_file_is_answered_with_file_line_key_and_what_was_expected(
    text: str, line: int, key: str, expected: str
) -> None:
    with pytest.raises(errors.ConfigInvalid) as caught:
        profiles.parse(text, "site.yaml")
    params = caught.value.params
    assert (params["file"], params["line"], params["key"]) == ("site.yaml", line, key)
    assert expected in params["expected"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([{"slug": "a", "name": "a", "choices": [{"slug": "x", "name": "x"}], "when": {"b": ["y"]}}], "no earlier"),
        (
            [
                {"slug": "b", "name": "b", "choices": [{"slug": "y", "name": "y"}]},
                {"slug": "a", "name": "a", "choices": [{"slug": "x", "name": "x"}], "when": {"b": ["z"]}},
            ],
            "unknown choices",
        ),
        (
            [{"slug": "b", "name": "b", "choices": [{"slug": s, "name": s, "default": True} for s in "xy"]}],
            "more than one default",
        ),
    ],
)
def test_options_that_depend_on_what_is_not_there(options: list[dict[str, Any]], expected: str) -> None:
    text = yaml.safe_dump({"profiles": [{"slug": "p", "name": "P", "options": options}]})
    with pytest.raises(errors.ConfigInvalid, match=expected):
        profiles.parse(text)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_can_not_be_read(tmp_path: Any, content: bytes | None) -> None:
    path = tmp_path / "プロファイル.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(errors.ConfigInvalid, match="can't be read"):
        profiles.load(path)


MACHINES = [
    capacity(cpu=1, memory=1 * GiB),
    capacity(cpu=2, memory=4 * GiB),
    capacity(cpu=2, memory=24 * GiB),
    capacity(cpu=64, memory=512 * GiB, gpus=[H100, GpuAmount(kind="NVIDIA A100-SXM4-80GB", total=8, free=8)]),
]


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m.cpu.total:g}cpu-{len(m.gpus)}gpu")
def test_the_default_profiles_fit_the_machine(machine: Capacity) -> None:
    made = profiles.defaults(machine)
    for profile in made.profiles:
        for option in [{}, *({o.slug: c.slug} for o in profile.options for c in o.choices)]:
            profiles.select(made, "anyone", [], profile.slug, option, machine)
    assert made.profiles[0].slug == "small"
    assert profiles.parse(profiles.dump(made)) == made


def test_the_schema_accepts_what_the_model_accepts() -> None:
    schema = profiles.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(TEXT), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"profiles": [{"slug": "a", "name": "A", "resorces": {}}]}, schema)


@pytest.mark.parametrize(
    ("text", "size"),
    [("2G", 2 * GiB), ("512M", 512 * MiB), ("1.5Gi", int(1.5 * GiB)), ("64MB", 64 * MiB), (7, 7), (" 1T ", 1024 * GiB)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert profiles.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "2 pigs", "-", "1e3Q", "nanG", "infG", "-1G"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="no size"):
        profiles.parse_size(text)


@pytest.mark.parametrize(
    ("n", "shown"), [(0, "0 B"), (1536 * 1024, "1.5 MiB"), (24 * GiB, "24 GiB"), (5 * 1024**4, "5 TiB")]
)
def test_sizes_shown(n: int, shown: str) -> None:
    assert profiles.show_size(n) == shown
