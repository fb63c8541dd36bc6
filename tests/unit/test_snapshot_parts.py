"""The pure parts of snapshots: differences, names, states, what is moved, and the store's rules for names."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from kajiya.environment import diff, restore, state
from kajiya.environment.delta import Kept
from kajiya.names import safe_environment_name, safe_snapshot_name
from kajiya.types import Package, Snapshot

ZEROS = "sha256:" + "0" * 64
STATE = {
    "bin": Kept("d", 0o755, 0, "", ""),
    "bin/\udce9\n": Kept("f", 0o644, 3, "", "ab"),
    "x": Kept("l", 0, 0, "bin", ""),
}


def snapshot(**values: object) -> Snapshot:
    given: dict[str, object] = {"digest": ZEROS, "owner": "a", "environment": "default", "layers": [], "content": ZEROS}
    given |= {"state": ZEROS, "size": 1024, "added": 0, "created_at": datetime.now(UTC)}
    return Snapshot.model_validate(given | values)


def packages(**versions: str) -> list[Package]:
    return [Package(name=name, version=version) for name, version in versions.items()]


def test_a_difference_tells_what_to_do_to_get_there() -> None:
    before = snapshot(packages=packages(kept="1", gone="1", up="1"))
    after = snapshot(packages=packages(kept="1", up="2", new="1"), size=2048, content="sha256:" + "1" * 64)
    found = diff.diff(before, after)
    assert [(c.kind, c.name, c.before, c.after) for c in found.changes] == [
        ("added", "new", "", "1"),
        ("removed", "gone", "1", ""),
        ("changed", "up", "1", "2"),
    ]
    assert not found.same and [c.name for c in found.of("removed")] == ["gone"]
    assert found.text("en") == "added  new  1\nremoved  gone  1\nchanged  up  1  2\nSize: 1 KiB → 2 KiB."
    assert "追加" in found.text("ja")


def test_the_same_packages_are_said_to_be_the_same() -> None:
    one = snapshot(packages=packages(a="1"))
    assert diff.diff(one, one).same
    assert diff.diff(one, one).text("en").startswith("The packages are the same.")


@pytest.mark.parametrize("name", ["a", "base-1", "学習 環境", "1.2", "x" * 63, "日本" * 31])
def test_names_of_snapshots(name: str) -> None:
    assert safe_snapshot_name(name)
    assert safe_environment_name(restore.environment_name(snapshot(names=[name])))


@pytest.mark.parametrize(
    "name", ["", "x" * 64, "a/b", ".", "..", ".a", "-a", " a", "a ", "a\nb", "a\0", "sha256:ab", "\u202eabc"]
)
def test_names_that_no_snapshot_has(name: str) -> None:
    assert not safe_snapshot_name(name)


def test_a_snapshot_without_a_name_gives_an_environment_one() -> None:
    assert restore.environment_name(snapshot()) == "snapshot-000000000000"


def test_a_state_comes_back_and_is_the_same_bytes_for_the_same() -> None:
    plain = state.dump(STATE, ["bin/\udce9\n"])
    assert plain == state.dump(dict(reversed(STATE.items())), ["bin/\udce9\n"])
    held = state.unpack(state.pack(plain))
    assert held == state.Held(STATE, ("bin/\udce9\n",))


@pytest.mark.parametrize(
    "packed",
    [b"", b"junk", state.pack(b""), state.pack(b"[]"), state.pack(b"{}\n{}"), state.pack(b'[1]\n{"version":1}'),
     state.pack(state.dump(STATE, []))[:-3], state.pack(b'[]\n{"version":9,"paths":[]}')],
)  # fmt: skip
def test_anything_else_is_no_state(packed: bytes) -> None:
    with pytest.raises(ValueError):
        state.unpack(packed)


def test_a_state_that_unpacks_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "LARGEST", 1000)
    with pytest.raises(ValueError, match="too large"):
        state.unpack(state.pack(b"0" * 100_000))


def test_only_named_files_of_the_environment_are_rewritten(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("#!/opt/kajiya/env/bin/python\n")
    root = tmp_path / "env"
    (root / "bin").mkdir(parents=True)
    (root / "bin/tool").write_text("#!/opt/kajiya/env/bin/python\n/opt/kajiya/environment\n")
    (root / "bin/tool").chmod(0o755)
    (root / "bin/same").hardlink_to(root / "bin/tool")
    (root / "bin/other").write_text("/opt/kajiya/env\n")
    (root / "link").symlink_to("/opt/kajiya/env/bin/tool")
    (root / "away").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path)
    names = ["bin/tool", "away", "../outside", "folder/outside", "/etc/passwd", "", "a\0b", "gone", "bin"]
    restore.move(root, "/opt/kajiya/env", Path("/there/環境"), names)
    assert (root / "bin/tool").read_text("utf-8") == "#!/there/環境/bin/python\n/opt/kajiya/environment\n"
    assert (root / "bin/tool").stat().st_mode & 0o777 == 0o755
    # Another name of the same file was not asked for, and so stays.
    assert "/opt/kajiya/env/" in (root / "bin/same").read_text()
    assert (root / "bin/other").read_text() == "/opt/kajiya/env\n"
    assert str((root / "link").readlink()) == "/there/環境/bin/tool"
    assert outside.read_text() == "#!/opt/kajiya/env/bin/python\n"
