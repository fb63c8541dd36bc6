"""What is installed: each distribution once, where it came from, and broken metadata that holds nothing up."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from kajiya.environment import carry, lock
from kajiya.environment.installed import Installed, installed, normal, sites
from kajiya.environment.lock import Unlocked
from kajiya.errors import PackagesUnavailable


def add(site: Path, name: str, version: str, direct: object = None, **files: str) -> Path:
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if direct is not None:
        (info / "direct_url.json").write_text(direct if isinstance(direct, str) else json.dumps(direct))
    for key, text in files.items():
        (info / key).write_text(text)
    return info


@pytest.fixture
def site(tmp_path: Path) -> Path:
    site = tmp_path / "env/lib/python3.11/site-packages"
    site.mkdir(parents=True)
    return site


def by_name(*args: object, **how: object) -> dict[str, Installed]:
    return {one.name: one for one in installed(*args, **how).installed}  # type: ignore[arg-type]


def test_an_environment_hides_what_its_base_has(site: Path, tmp_path: Path) -> None:
    below = tmp_path / "base"
    add(site, "Both_Same", "1")
    add(site, "newer", "2")
    add(site, "only.here", "1")
    add(below, "both-same", "1")
    add(below, "newer", "1")
    add(below, "only-below", "3")
    found = by_name([site], [below])
    assert {n: (one.version, one.base, one.hidden) for n, one in found.items()} == {
        "both-same": ("1", False, "1"),
        "newer": ("2", False, "1"),
        "only-here": ("1", False, ""),
        "only-below": ("3", True, ""),
    }


def test_a_full_environment_is_compared_with_the_versions_it_was_made_with(site: Path) -> None:
    add(site, "same", "1")
    add(site, "upgraded", "2")
    add(site, "added", "1")
    add(site, "mine", "1", {"url": "file:///x", "dir_info": {"editable": True}})
    found = by_name([site], base={"same": "1", "upgraded": "1", "mine": "1", "gone": "1"})
    assert {n: (one.base, one.hidden) for n, one in found.items()} == {
        "same": (True, ""),
        "upgraded": (False, "1"),
        "added": (False, ""),
        "mine": (False, "1"),
    }


ORIGINS = [
    (None, "index", "p==1", False),
    ("{broken", "index", "p==1", False),
    ("[]", "index", "p==1", False),
    ({"url": "file:///p/%E8%8A%B1", "dir_info": {"editable": True}}, "editable", "p==1", True),
    ({"url": "file:///p", "dir_info": {}}, "folder", "p==1", True),
    ({"url": "file:///p.whl", "archive_info": {}}, "archive", "p @ file:///p.whl", True),
    (
        {"url": "https://h/p.whl", "archive_info": {"hashes": {"sha256": "ab"}}},
        "archive",
        "p @ https://h/p.whl#sha256=ab",
        False,
    ),
    (
        {"url": "https://h/p", "vcs_info": {"vcs": "git", "commit_id": "c0"}},
        "vcs",
        "p @ git+https://h/p@c0",
        False,
    ),
    ({"url": 5, "archive_info": "x"}, "index", "p==1", False),
    ({"url": "https://h/p.whl", "archive_info": "x"}, "archive", "p @ https://h/p.whl", False),
]


@pytest.mark.parametrize(("direct", "source", "requirement", "local"), ORIGINS, ids=range(len(ORIGINS)))
def test_where_a_package_came_from(site: Path, direct: object, source: str, requirement: str, local: bool) -> None:
    add(site, "p", "1", direct)
    one = by_name([site])["p"]
    assert (one.source, one.local) == (source, local)
    assert one.requirement == requirement
    if source == "editable":
        assert one.path == Path("/p/花")


def test_broken_metadata_is_named_and_the_rest_is_found(site: Path) -> None:
    add(site, "fine", "1")
    for name in ("empty-1.dist-info", "nameless-1.dist-info", "bytes-1.dist-info"):
        (site / name).mkdir()
    (site / "nameless-1.dist-info/METADATA").write_text("Version: 1\n")
    (site / "bytes-1.dist-info/METADATA").write_bytes(b"\xff\xfe\0Name")
    add(site, "~ine", "0").rename(site / "~ine-0.dist-info")
    (site / "file-1.dist-info").write_text("no folder")
    packages = installed([site])
    assert [one.name for one in packages.installed] == ["fine"]
    names = {Path(p).name for p in packages.broken}
    assert {"empty-1.dist-info", "nameless-1.dist-info", "bytes-1.dist-info", "~ine-0.dist-info"} <= names


def test_two_versions_in_one_folder_are_named(site: Path) -> None:
    add(site, "torn", "1")
    add(site, "torn", "2")
    packages = installed([site])
    assert len(packages.installed) == len(packages.broken) == 1


def test_projects_that_a_pth_file_adds_are_found(site: Path, tmp_path: Path) -> None:
    project = tmp_path / "プロジェクト"
    (project / "old.egg-info").mkdir(parents=True)
    (project / "old.egg-info/PKG-INFO").write_text("Metadata-Version: 1.0\nName: old\nVersion: 0.1\n")
    (site / "easy-install.pth").write_text(f"import sys; sys.x = 1\n# comment\n{project}\n/none\n", "utf-8")
    folders = sites(tmp_path / "env")
    assert folders == [site, project]
    one = by_name(folders)["old"]
    assert (one.source, one.path) == ("editable", project)


@pytest.mark.parametrize(("name", "expected"), [("A.b__C-d", "a-b-c-d"), ("x", "x")])
def test_names_are_normalised(name: str, expected: str) -> None:
    assert normal(name) == expected


# --- locks, with an index of ours
class Index:
    """Knows some pins; says of the others what uv says, or nothing that helps."""

    def __init__(self, known: set[str], helpful: bool = True) -> None:
        self.known, self.helpful, self.calls = known, helpful, 0

    def __call__(self, requirements: Sequence[str]) -> str:
        self.calls += 1
        missing = [r for r in requirements if r not in self.known]
        if missing:
            name, version = missing[0].split("==")
            told = f"Because there is no version of {name}=={version} and you require {name}=={version}"
            raise PackagesUnavailable(problem=f"No solution found: {told if self.helpful else 'sorry'}")
        return 'lock-version = "1.0"\n' + "".join(f'\n[[packages]]\nname = "{r}"\n' for r in requirements)


def no_build(project: Path, folder: Path) -> Path:
    raise AssertionError("nothing is to be built")


@pytest.mark.parametrize("helpful", [True, False])
def test_what_no_index_has_is_named_and_the_rest_is_locked(site: Path, tmp_path: Path, helpful: bool) -> None:
    for i in range(20):
        add(site, f"p{i}", "1")
    known = {f"p{i}==1" for i in range(20) if i not in (3, 13)}
    index = Index(known, helpful)
    made = lock.make(installed([site]), tmp_path, index, no_build)
    assert made.lacking == (Unlocked("p13", "1", "no_index"), Unlocked("p3", "1", "no_index"))
    assert made.text.count("[[packages]]") == 18
    assert index.calls == 3 or not helpful


def test_an_index_that_does_not_answer_is_no_lack_of_packages(site: Path, tmp_path: Path) -> None:
    add(site, "p", "1")

    def offline(requirements: Sequence[str]) -> str:
        raise PackagesUnavailable(problem="Failed to fetch: dns error")

    with pytest.raises(PackagesUnavailable):
        lock.make(installed([site]), tmp_path, offline, no_build)


def test_an_empty_environment_has_a_lock(tmp_path: Path) -> None:
    made = lock.make(installed([]), tmp_path, Index(set()), no_build)
    assert made.text.startswith('lock-version = "1.0"')


def test_what_can_not_be_carried_is_named(site: Path, tmp_path: Path) -> None:
    add(site, "gone", "1", {"url": "file:///no/such/project", "dir_info": {"editable": True}})
    add(site, "torn", "1", {"url": "file:///x.whl", "archive_info": {}})
    made = lock.make(installed([site]), tmp_path, Index(set()), no_build)
    assert [(u.name, u.why) for u in made.lacking] == [("gone", "no_wheel"), ("torn", "no_wheel")]
    assert all(u.problem for u in made.lacking)


@pytest.mark.parametrize("listed", ["/etc/passwd", "../../../../outside", "../x", "../../../.."])
def test_files_outside_the_environment_are_not_repacked(site: Path, tmp_path: Path, listed: str) -> None:
    add(site, "p", "1", WHEEL="Tag: py3-none-any\n", RECORD=f"{listed},,\n")
    (dist,) = installed([site]).found.values()
    with pytest.raises(carry.CanNotRepack):
        carry.repack(dist, tmp_path)
