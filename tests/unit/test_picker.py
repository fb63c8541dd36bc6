"""The picker without a Hub: what a form chose, what the cards say, and that nothing in them is markup."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from kajiya import profiles
from kajiya.errors import InvalidRequest, KajiyaError, ProfileNotAllowed, UnknownChoice, UnknownProfile
from kajiya.types import Amount, Capacity, GiB, GpuAmount
from kajiya_spawner import picker
from kajiya_spawner.look import Look
from kajiya_spawner.picker import Choice
from kajiya_spawner.server import telling

CONFIG = profiles.parse("""
profiles:
  - {slug: small, name: Small, resources: {memory: 1G}}
  - slug: gpu
    name: GPU
    resources: {memory: 1G, gpus: 1, gpu_kind: H100}
    options:
      - slug: gpus
        name: GPUs
        choices: [{slug: "1", name: "1", default: true}, {slug: "2", name: "2", resources: {gpus: 2}}]
      - {slug: link, name: Link, when: {gpus: ["2"]}, choices: [{slug: nv, name: NVLink}, {slug: pci, name: PCI}]}
  - {slug: forge, name: Forge, groups: [smiths]}
  - {slug: huge, name: Huge, resources: {memory: 900T}}
""")


def capacity(memory: float = 8 * GiB, gpus: int = 2) -> Capacity:
    return Capacity(
        cpu=Amount(total=4, free=4),
        memory=Amount(total=8 * GiB, free=memory),
        gpus=[GpuAmount(kind="H100", total=2, free=gpus)],
        at=datetime.now(UTC),
    )


def seen(config: profiles.ProfileSet = CONFIG, groups: tuple[str, ...] = (), **have: Any) -> list[Any]:
    return picker.views(config, "ada", groups, capacity(**have), lambda _: 0, "en")


def chosen(form: dict[str, list[str]], groups: tuple[str, ...] = ()) -> Choice:
    return picker.choice_from_form(form, CONFIG, "ada", groups)


# --- reading a choice
@pytest.mark.parametrize(
    ("form", "options"),
    [
        ({"profile": ["small"]}, {}),
        ({"profile": ["gpu"]}, {}),
        ({"profile": ["gpu"], "option:gpu:gpus": ["2"]}, {"gpus": "2"}),
        # A browser without JavaScript sends what it hides too: other cards' options, and those that do not apply.
        ({"profile": ["small"], "option:gpu:gpus": ["2"], "option:gpu:link": ["nv"]}, {}),
        ({"profile": ["gpu"], "option:gpu:gpus": ["1"], "option:gpu:link": ["pci"]}, {"gpus": "1"}),
        ({"profile": ["gpu"], "option:gpu:gpus": ["2"], "option:gpu:link": ["pci"]}, {"gpus": "2", "link": "pci"}),
    ],
)
def test_a_form_is_read(form: dict[str, list[str]], options: dict[str, str]) -> None:
    choice = chosen(form)
    assert (choice.profile, choice.options) == (form["profile"][0], options)
    profiles.select(CONFIG, "ada", (), choice.profile, choice.options, capacity())


def test_an_empty_form_takes_what_there_is() -> None:
    assert chosen({"_xsrf": ["x"]}) == Choice()


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({"profile": ["nothing"]}, UnknownProfile),
        ({"profile": ["forge"]}, ProfileNotAllowed),
        ({"profile": ["small", "gpu"]}, InvalidRequest),
        ({"profile": ["x" * 10_000]}, InvalidRequest),
        ({"profile": ["small"], "mem_limit": ["900T"]}, InvalidRequest),
        ({"profile": ["gpu"], "option:gpu:other": ["1"]}, InvalidRequest),
        ({"profile_file": [b"x"], "profile": ["small"]}, InvalidRequest),
    ],
)
def test_forms_outside_the_rules_are_refused(form: dict[str, Any], error: type[KajiyaError]) -> None:
    with pytest.raises(error):
        chosen(form)


def test_a_wrong_choice_is_left_for_select_to_refuse() -> None:
    choice = chosen({"profile": ["gpu"], "option:gpu:gpus": ["64"]})
    with pytest.raises(UnknownChoice):
        profiles.select(CONFIG, "ada", (), choice.profile, choice.options)


@pytest.mark.parametrize(
    "options",
    [
        [],
        "small",
        {"profile": 3},
        {"profile": "gpu", "options": ["gpus"]},
        {"profile": "gpu", "options": {"gpus": 2}},
        {"profile": "gpu", "cpu": 64},
        {"options": {"gpus": "2"}},
        {"profile": {"$ne": ""}},
    ],
)
def test_api_options_of_a_wrong_shape_are_refused(options: Any) -> None:
    with pytest.raises(InvalidRequest):
        picker.choice_from_options(options)


def test_api_options_are_read_as_they_are_stored() -> None:
    choice = Choice("gpu", {"gpus": "2"})
    assert picker.choice_from_options(choice.as_options()) == choice
    assert picker.choice_from_options({}) == Choice(None, {})
    assert picker.choice_from_query({"profile": ["gpu"], "gpus": ["2"]}) == choice


# --- the cards
def test_only_my_groups_profiles_are_shown() -> None:
    assert [v.slug for v in seen()] == ["small", "gpu", "huge"]
    assert [v.slug for v in seen(groups=("smiths",))] == ["small", "gpu", "forge", "huge"]


def test_what_can_not_be_had_says_why() -> None:
    now = {v.slug: v for v in seen(gpus=0)}
    assert now["small"].available
    assert now["gpu"].reason is not None and "0 free of 2" in now["gpu"].reason.message
    assert now["huge"].reason is not None and now["huge"].reason.code == "profile.too_large"


def test_reasons_are_japanese_for_a_japanese_reader() -> None:
    shown = picker.views(CONFIG, "ada", (), capacity(gpus=0), lambda _: 0, "ja")
    for view in shown:
        if view.reason is not None:
            assert "memory" not in view.reason.message
            assert "空い" in view.reason.message or "小さい" in view.reason.message


@pytest.mark.parametrize(
    ("last", "gpus", "expected"),
    [
        (None, 2, "small"),
        (Choice("gpu", {"gpus": "2"}), 2, "gpu"),
        (Choice("gpu"), 0, "small"),
        (Choice("forge"), 2, "small"),
        (Choice("gone"), 2, "small"),
    ],
)
def test_the_last_choice_is_preselected_if_it_can_be_had(last: Choice | None, gpus: int, expected: str) -> None:
    assert picker.preselect(seen(gpus=gpus), last).profile == expected


def test_the_form_marks_choice_and_what_is_off() -> None:
    html = str(picker.form(seen(), Choice("gpu", {"gpus": "2"}), capacity(), Look("en")))
    assert html.count('name="profile"') == 3
    assert html.count(" disabled") == 1
    assert 'value="2" data-figures="{&#34;gpus&#34;: &#34;2 × H100&#34;}" checked' in html


def test_nothing_in_a_profile_is_markup() -> None:
    bad = '"><script>alert(1)</script>'
    config = profiles.ProfileSet.model_validate(
        {
            "profiles": [
                {
                    "slug": "x",
                    "name": bad,
                    "description": bad,
                    "options": [{"slug": "o", "name": bad, "choices": [{"slug": "c", "name": bad}]}],
                    "resources": {"gpus": 1, "gpu_kind": bad},
                }
            ]
        }
    )
    html = str(picker.form(seen(config), Choice("x"), capacity(), Look("en"), notice=bad))
    assert "<script" not in html
    assert html.count("&lt;script") >= 5


def test_the_live_answer_is_json_and_has_words_for_each_card() -> None:
    shown = seen()
    live = json.loads(json.dumps(picker.live(shown, capacity(), Look("ja"))))
    assert set(live["words"]) == {v.slug for v in shown}
    assert [row["icon"] for row in live["machine"]] == ["cpu", "memory", "gpu"]


# --- the line of a log that tells most
@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("", ""),
        ("a\nb\n\n", "b"),
        ("[C 2026-01-01 00:00:00.1 ServerApp] no port\n[I 2026-01-01 00:00:00.2 ServerApp] bye\n", "no port"),
        ("Traceback\n  File\nModuleNotFoundError: No module named 'x'\n", "ModuleNotFoundError: No module named 'x'"),
        ("x" * 5000, "x" * 180),
    ],
)
def test_the_telling_line_of_a_log(log: str, line: str) -> None:
    assert telling(log) == line
