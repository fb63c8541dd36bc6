"""The layer that an environment adds to a base, as it must be at the path that it has in an image."""

import base64
import hashlib
import json
import os
from pathlib import Path

import pytest

from helpers.layers import picture
from kajiya.environment.delta import PREFIX, Delta, dump, load, plan
from kajiya.environment.fingerprint import take
from kajiya.environment.rewrite import moved, recorded, without_credentials
from kajiya.errors import EnvironmentChanging, EnvironmentNameReserved, EnvironmentNotMovable
from kajiya.oci.extract import Blob, extract
from kajiya.oci.layer import Layer, write

SITE = "lib/python3.11/site-packages"
INSIDE = os.fsencode(PREFIX.strip("/"))


@pytest.fixture
def env(tmp_path: Path) -> Path:
    return make(tmp_path / "home/花子/.kajiya/envs/default")


def record_line(name: str, data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(data)}\n"


def make(root: Path) -> Path:
    """An environment with the files that name their path; the same for any path, but for that path."""
    script = f"#!{root}/bin/python\nprint(1)\n".encode()
    files = {
        "bin/tool": script,
        "bin/activate": f'VIRTUAL_ENV="{root}"\nPATH="{root}/bin:$PATH"\n'.encode(),
        "pyvenv.cfg": f"home = /usr/bin\ncommand = python -m venv {root}\n".encode(),
        f"{SITE}/own.pth": f"{root}/src\n".encode(),
        f"{SITE}/made.py": b"x = 1\n",
        f"{SITE}/fast.so": b"\x7fELF\0\0",
        f"{SITE}/made-1.dist-info/direct_url.json": json.dumps(
            {"url": "https://me:pw@host/made.whl", "note": f"file://{root}/x"}
        ).encode(),
        "share/kernels/k/kernel.json": json.dumps({"argv": [f"{root}/bin/python", "-m"]}).encode(),
    }
    url = files[f"{SITE}/made-1.dist-info/direct_url.json"]
    record = record_line("made.py", b"x = 1\n") + record_line("../../../bin/tool", script)
    record += record_line("made-1.dist-info/direct_url.json", url) + "made-1.dist-info/RECORD,,\n"
    files[f"{SITE}/made-1.dist-info/RECORD"] = record.encode()
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "bin/tool").chmod(0o700)
    (root / "bin/python").symlink_to("/usr/bin/python3")
    (root / "bin/python3").symlink_to("python")
    (root / "bin/other").symlink_to(root / "bin/tool")
    (root / "lib64").symlink_to("lib")
    return root


def blob(layer: Layer) -> Blob:
    return Blob(layer.path, layer.digest, layer.media_type, layer.size, layer.diff_id)


def test_an_environment_is_moved_to_its_path_in_the_image(env: Path, tmp_path: Path) -> None:
    delta = plan(take(env))
    assert delta.links == ("/usr/bin/python3",)
    layer = write(delta.items, tmp_path)
    extract([blob(layer)], tmp_path / "out", inside=INSIDE, links=[os.fsencode(x) for x in delta.links])
    out = tmp_path / "out"
    assert (out / "bin/tool").read_text() == f"#!{PREFIX}/bin/python\nprint(1)\n"
    assert (out / "bin/tool").stat().st_mode & 0o777 == 0o755
    assert (out / "bin/activate").read_text() == f'VIRTUAL_ENV="{PREFIX}"\nPATH="{PREFIX}/bin:$PATH"\n'
    assert PREFIX in (out / "pyvenv.cfg").read_text()
    assert (out / "bin/other").readlink() == Path(f"{PREFIX}/bin/tool")
    assert (out / "bin/python").readlink() == Path("/usr/bin/python3")
    url = json.loads((out / SITE / "made-1.dist-info/direct_url.json").read_bytes())
    assert url == {"url": "https://host/made.whl", "note": f"file://{PREFIX}/x"}
    record = (out / SITE / "made-1.dist-info/RECORD").read_text()
    assert record_line("../../../bin/tool", (out / "bin/tool").read_bytes()) in record
    made = (out / SITE / "made-1.dist-info/direct_url.json").read_bytes()
    assert record_line("made-1.dist-info/direct_url.json", made) in record
    assert record_line("made.py", b"x = 1\n") in record
    assert record.endswith("made-1.dist-info/RECORD,,\n")
    left = [p for p in out.rglob("*") if p.is_file() and not p.is_symlink() and os.fsencode(env) in p.read_bytes()]
    assert left == []


def test_two_homes_with_the_same_packages_have_the_same_layer(env: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(other)
    layers = [write(plan(take(root)).items, tmp_path).diff_id for root in (env, other)]
    assert layers[0] == layers[1]
    assert plan(take(other), plan(take(env)).state).empty
    assert dump(plan(take(env)).state) == dump(plan(take(other)).state)


def change(env: Path) -> None:
    (env / SITE / "made.py").unlink()
    (env / SITE / "new/deep").mkdir(parents=True)
    (env / SITE / "new/deep/a.py").write_text("a")
    (env / SITE / "new/deep/b.py").hardlink_to(env / SITE / "new/deep/a.py")
    (env / "bin/activate").write_text("# mine\n")
    for path in (env / "share/kernels/k/kernel.json", env / "share/kernels/k", env / "share/kernels"):
        path.unlink() if path.is_file() else path.rmdir()
    (env / "share/kernels").write_text("a file now")
    (env / "lib64").unlink()
    (env / "lib64").mkdir()


def test_the_next_layer_holds_only_what_changed_and_gives_the_same_as_the_whole(env: Path, tmp_path: Path) -> None:
    first = plan(take(env))
    lower = write(first.items, tmp_path)
    change(env)
    second = plan(take(env), load(dump(first.state)))
    assert second.added == (f"{SITE}/new", f"{SITE}/new/deep", f"{SITE}/new/deep/a.py", f"{SITE}/new/deep/b.py")
    assert second.changed == ("bin/activate", "lib64", "share/kernels")
    assert second.removed == (f"{SITE}/made.py", "share/kernels/k", "share/kernels/k/kernel.json")
    kinds = {os.fsdecode(i.path).removeprefix(PREFIX[1:] + "/"): i.kind for i in second.items if i.kind != "directory"}
    assert kinds == {
        "bin/activate": "file",
        f"{SITE}/new/deep/a.py": "file",
        f"{SITE}/new/deep/b.py": "hardlink",
        f"{SITE}/made.py": "whiteout",
        "share/kernels": "file",
    }
    assert [i.kind for i in second.items if i.path.endswith(b"share/kernels")] == ["whiteout", "file"]
    upper = write(second.items, tmp_path)
    whole = write(plan(take(env)).items, tmp_path)
    links = [os.fsencode(x) for x in second.links]
    extract([blob(lower), blob(upper)], tmp_path / "two", inside=INSIDE, links=links)
    extract([blob(whole)], tmp_path / "one", inside=INSIDE, links=links)
    assert picture(tmp_path / "two") == picture(tmp_path / "one")
    assert plan(take(env), second.state).items == []


def test_a_binary_with_the_path_inside_is_refused_by_name(env: Path) -> None:
    (env / SITE / "a.so").write_bytes(b"\x7fELF\0" + os.fsencode(env) + b"/lib\0")
    (env / SITE / "b.so").write_bytes(b"\0" + os.fsencode(env))
    with pytest.raises(EnvironmentNotMovable) as refused:
        plan(take(env))
    assert refused.value.params["paths"] == [f"{SITE}/a.so", f"{SITE}/b.so"]


def test_names_that_mean_a_removal_are_refused(env: Path) -> None:
    (env / ".wh.x").write_text("")
    with pytest.raises(EnvironmentNameReserved):
        plan(take(env))


def test_links_out_of_the_environment_are_left_out_and_named(env: Path, tmp_path: Path) -> None:
    for name, target in {"data": "/mnt/data", "up": "../../x", "odd": "lib/../bin", "bin/gcc": "/usr/bin/gcc"}.items():
        (env / name).symlink_to(target)
    (env / "fine").symlink_to("lib/python3.11")
    delta = plan(take(env))
    assert {(x.path, x.why) for x in delta.left_out} == {(n, "outside") for n in ("data", "up", "odd", "bin/gcc")}
    assert "fine" in delta.state


def test_a_file_that_changed_since_the_fingerprint_is_noticed(env: Path) -> None:
    found = take(env)
    (env / "bin/tool").write_text("#!/bin/sh\n")
    with pytest.raises(EnvironmentChanging):
        plan(found)


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o444, 0o700, 0o755, 0o555, 0o4755])
def test_modes_let_another_account_read_and_never_more(env: Path, mode: int) -> None:
    (env / SITE / "made.py").chmod(mode)
    kept = plan(take(env)).state[f"{SITE}/made.py"].mode
    assert kept & 0o444 == 0o444 and not kept & 0o7022
    assert bool(kept & 0o111) == bool(mode & 0o111)
    assert bool(kept & 0o200) == bool(mode & 0o200)


OLD = (b"/h/envs/a",)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"#!/h/envs/a/bin/python\n", b"#!/N/bin/python\n"),
        (b"'''exec' /h/envs/a/bin/python", b"'''exec' /N/bin/python"),
        (b"file:///h/envs/a\n", b"file:///N\n"),
        (b"/h/envs/a:/h/envs/ab:/h/envs/a-b:/h/envs/a.bak", b"/N:/h/envs/ab:/h/envs/a-b:/h/envs/a.bak"),
        (b"/x/h/envs/a", b"/x/h/envs/a"),
        ("「/h/envs/a」".encode(), "「/N」".encode()),
        (b"\0/h/envs/a", None),
        (b"#!/h/envs/a/bin/python\nPK\0\0", b"#!/N/bin/python\nPK\0\0"),
        (b"#!/h/envs/a/bin/python\nPK\0/h/envs/a", None),
    ],
)
def test_paths_in_text_are_moved(data: bytes, expected: bytes | None) -> None:
    assert moved(data, OLD, b"/N") == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"https://a:b@h/x", b"https://h/x"),
        (b"https://token@h/x", b"https://h/x"),
        (b"git+ssh://git@h/x", b"git+ssh://git@h/x"),
        (b"https://${USER}:${PW}@h/x", b"https://${USER}:${PW}@h/x"),
        (b"https://h/x@1", b"https://h/x@1"),
    ],
)
def test_credentials_are_taken_out_of_addresses(data: bytes, expected: bytes) -> None:
    assert without_credentials(data) == expected


def test_records_keep_all_else_byte_by_byte() -> None:
    record = b'a.py,sha256=x,1\r\n"with,comma",sha256=y,2\r\n__pycache__/a1,,\r\na1,,\r\n\r\nbad "line\r\n'
    changed = {"s/a.py": b"1", "s/with,comma": b"2", "s/a1": b"3"}
    got = recorded(record, "s", changed)
    assert got.startswith(record_line("a.py", b"1").encode().replace(b"\n", b"\r\n"))
    assert record_line('"with,comma"', b"2").encode().strip() in got
    assert got.endswith(b'__pycache__/a1,,\r\na1,,\r\n\r\nbad "line\r\n')


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"version":2}', b"\xff"])
def test_anything_else_is_no_state(data: bytes) -> None:
    with pytest.raises(ValueError):
        load(data)


def test_an_empty_environment_has_an_empty_layer(tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    delta: Delta = plan(take(tmp_path / "e"))
    assert (delta.items, delta.empty, load(dump(delta.state))) == ([], True, {})
