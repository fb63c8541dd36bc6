"""The folders of jobs: hostile paths, links, devices, limits, crashes, a full disk."""

import hashlib
import io
import os
import socket
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kajiya.errors import (
    AttemptNotFound,
    DiskFull,
    InvalidPath,
    JobNotFound,
    ResultNotFound,
    UploadTooLarge,
)
from kajiya_hub.store.files import JobFiles
from kajiya_hub.store.ids import new_id
from kajiya_hub.store.paths import matches, printable, safe_path
from kajiya_hub.store.results import Caps
from kajiya_hub.store.safe_open import open_nofollow, remove_tree

BAD = [
    "",
    ".",
    "..",
    "../x",
    "a/../b",
    "a/..",
    "/etc/passwd",
    "//x",
    "a\0b",
    "a\nb",
    "a\rb",
    "a\x1b[2J",
    "a\x7f",
    "a\u2028b",
    "\ud800",
    "x" * 256,
    "価" * 86,
    "x" * 10_000,
    "a/" * 600,
    "/".join("a" * 33),
]
GOOD = {
    "a.csv": "a.csv",
    "./a": "a",
    "a//b/./c/": "a/b/c",
    "データ/価格 1.csv": "データ/価格 1.csv",
    'it\'s "quoted" & <b>.txt': 'it\'s "quoted" & <b>.txt',
    "..a/b..": "..a/b..",
    "a\\b": "a\\b",
    "x" * 255: "x" * 255,
    "🔨": "🔨",
}


@pytest.mark.parametrize("path", BAD)
def test_a_path_that_leads_elsewhere_is_refused(path):
    with pytest.raises(InvalidPath) as refused:
        safe_path(path)
    shown = refused.value.params["path"]
    assert len(shown) <= 100 and shown == printable(shown)
    shown.encode()


@pytest.mark.parametrize("path", GOOD)
def test_a_good_path_stays(path):
    assert safe_path(path) == GOOD[path]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40) | st.lists(st.sampled_from(["..", ".", "", "a", "/", "\0"]), max_size=6).map("/".join))
def test_whatever_is_accepted_stays_inside(text):
    try:
        path = safe_path(text)
    except InvalidPath:
        return
    assert (Path("/base") / path).resolve().is_relative_to("/base") and path == safe_path(path)
    assert os.path.normpath(f"/base/{path}") == f"/base/{path}"


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*.csv", ["a.csv", "価格.csv"], ["b/a.csv", "a.csvx", ".a.csv"]),
        ("**/*.csv", ["a.csv", "b/a.csv", "b/c/a.csv"], [".git/a.csv", "b/.a.csv", "a.txt"]),
        ("plots", ["plots/a.png", "plots/b/c"], ["plots2/a", "a/plots/b"]),
        ("plots/", ["plots/a.png"], ["plotsa"]),
        ("./a/*/c", ["a/b/c", "a/b/c/d"], ["a/c", "a/b/b/c"]),
        ("**", ["a", "a/b"], [".a", "a/.b"]),
        ("**/**/**/**/x", ["x", "a/b/x"], ["y"]),
        ("[ab].txt", ["a.txt"], ["c.txt"]),
        (".hidden/*", [".hidden/a"], ["hidden/a"]),
        ("", [], ["a"]),
        ("..", [], ["a", "../a"]),
        ("[", ["["], ["a"]),
    ],
)
def test_patterns(pattern, yes, no):
    assert [p for p in yes if not matches(pattern, p)] == []
    assert [p for p in no if matches(pattern, p)] == []


def test_a_hostile_pattern_costs_little():
    # With backtracking these would not end; the time limit of the test is the assertion.
    assert not matches("*a" * 100, "a" * 250 + "b")
    assert not matches("/".join(["**"] * 200) + "/x", "/".join(["a"] * 30))


@pytest.fixture
def files(tmp_path):
    return JobFiles(tmp_path / "jobs")


@pytest.fixture
def job(files):
    id = new_id()
    with files.receive(id) as inbox:
        inbox.notebook(io.BytesIO(b"{}"))
        inbox.file("data/a.csv", [b"1,", b"2"])
        inbox.document({"name": "訓練 \ud800"})
        inbox.commit()
    return id


@pytest.fixture
def attempt(files, job):
    folder = files.prepare_attempt(job, 1)
    (folder / "work").mkdir(parents=True)
    return folder


# --- receiving
def test_what_is_received_is_there_and_read_only(files, job):
    content = b"x" * 3_000_000
    id = new_id()
    with files.receive(id) as inbox:
        assert inbox.notebook([content[:1], content[1:]]) == hashlib.sha256(content).hexdigest()
        assert inbox.file("./日本//語.txt", io.BytesIO(b"y")) == "日本/語.txt"
        assert not files.input(id).exists()
        inbox.commit()
    assert files.notebook(id).read_bytes() == content and files.notebook(id).stat().st_mode & 0o222 == 0
    assert (files.input(id) / "files/日本/語.txt").read_bytes() == b"y"
    assert (files.root / ".incoming").stat().st_mode & 0o77 == 0 and list((files.root / ".incoming").iterdir()) == []


def test_no_other_account_can_look_in(files, job, attempt):
    (attempt / "work" / "a").write_text("a")
    files.collect_results(job, 1, ["a"])
    modes = {p.name: p.stat().st_mode & 0o777 for p in files.folder(job).iterdir()}
    assert modes == {"input": 0o700, "attempts": 0o711, "results": 0o700}
    assert {p.stat().st_mode & 0o777 for p in (files.root, files.folder(job).parent, files.folder(job))} == {0o711}
    assert (files.input(job) / "files").stat().st_mode & 0o77 == 0


def test_nothing_counts_before_the_commit(files):
    id = new_id()
    with pytest.raises(RuntimeError), files.receive(id) as inbox:
        inbox.notebook([b"{}"])
        raise RuntimeError
    assert not files.folder(id).exists() and list((files.root / ".incoming").iterdir()) == []


@pytest.mark.parametrize("path", BAD)
def test_a_hostile_name_of_an_upload_is_refused(files, path):
    with files.receive(new_id()) as inbox, pytest.raises(InvalidPath):
        inbox.file(path, [b"x"])


def test_names_that_clash_are_refused(files):
    with files.receive(new_id()) as inbox:
        inbox.file("a", [b"1"])
        for path in ("a", "./a", "a/b"):
            with pytest.raises(InvalidPath):
                inbox.file(path, [b"2"])
        inbox.file("b/c", [b"3"])
        with pytest.raises(InvalidPath):
            inbox.file("b", [b"4"])


def test_limits_are_hard(files):
    def endless():
        while True:
            yield b"x" * 1000

    with files.receive(new_id(), files_limit=10) as inbox:
        with pytest.raises(UploadTooLarge):
            inbox.notebook(endless(), limit=5000)
        inbox.file("a", [b"12345"])
        inbox.file("b", [b"12345"])
        with pytest.raises(UploadTooLarge):
            inbox.file("c", [b"1"])


def test_a_full_disk_is_said(files, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    with files.receive(new_id()) as inbox:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(DiskFull):
            inbox.notebook([b"{}"])
        monkeypatch.undo()
    assert list((files.root / ".incoming").iterdir()) == []


def test_run_again_takes_the_input_of_another(files, job):
    id = new_id()
    with files.copy_input(job, id) as inbox:
        inbox.document({})
        inbox.commit()
    files.delete(job)
    assert files.notebook(id).read_bytes() == b"{}" and (files.input(id) / "files/data/a.csv").read_bytes() == b"1,2"
    with pytest.raises(JobNotFound):
        files.copy_input(job, new_id())


@pytest.mark.parametrize("id", ["", "..", "../../etc", "j" + "/" * 15, "J" + "0" * 15, "j\0" + "0" * 14])
def test_what_is_no_job_id_reaches_no_folder(files, id):
    for ask in (files.folder, files.input, files.delete, files.receive, files.notebook):
        with pytest.raises(JobNotFound):
            ask(id)


# --- crashes
def test_what_a_crash_left_is_swept_up(files, job):
    half = files.receive(new_id())
    half.notebook([b"{}"])
    orphan = new_id()
    with files.receive(orphan) as inbox:
        inbox.notebook([b"{}"])
        inbox.commit()
    (files.root / ".trash" / "x").mkdir()
    assert files.sweep(lambda ids: {job}, older_than=3600) == [] and files.folder(orphan).is_dir()
    assert files.sweep(lambda ids: {job} & set(ids), older_than=0) == [orphan]
    assert not files.folder(orphan).exists() and files.notebook(job).exists()
    assert [list((files.root / n).iterdir()) for n in (".incoming", ".trash")] == [[], []]


def test_an_attempts_folder_begins_empty(files, job, attempt):
    (attempt / "exit.json").write_text("old")
    files.prepare_attempt(job, 1)
    assert not attempt.exists() and attempt.parent.is_dir()


def test_removing_copes_with_what_users_leave(files, job, attempt, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (attempt / "work" / "link").symlink_to(outside)
    deep = attempt / "work" / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "f").write_text("x")
    deep.chmod(0)
    deep.parent.chmod(0)
    os.mkfifo(attempt / "work" / "pipe")
    files.delete(job)
    files.delete(job)
    assert not files.folder(job).exists() and (outside / "precious").exists()
    assert list((files.root / ".trash").iterdir()) == []
    remove_tree(tmp_path / "nothing")


# --- reading where a user can write
def test_no_link_is_followed(files, job, attempt, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    (attempt / "log.txt").write_text("fine")
    with files.open_attempt(job, 1, "log.txt") as f:
        assert f.read() == b"fine"
    (attempt / "link").symlink_to(secret)
    (attempt / "folder").symlink_to(tmp_path)
    os.mkfifo(attempt / "pipe")
    with socket.socket(socket.AF_UNIX) as s:
        here = os.open(attempt, os.O_RDONLY)
        s.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    for path in ("link", "folder/secret", "pipe", "socket", "work", "../../input/notebook.ipynb", str(secret)):
        with pytest.raises(InvalidPath):
            files.open_attempt(job, 1, path)
    with pytest.raises(FileNotFoundError):
        files.open_attempt(job, 1, "nothing")
    with pytest.raises(AttemptNotFound):
        files.open_attempt(job, 2, "log.txt")


def test_a_hard_link_to_anothers_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "theirs").write_text("s3cret")
    os.link(tmp_path / "theirs", tmp_path / "a" / "mine")
    with open_nofollow(tmp_path / "a", "mine") as f:
        assert f.read() == b"s3cret"  # of the same account: no harm
    real = os.fstat

    def other(fd):
        info = real(fd)
        # The file is somebody else's; the folder is not.
        return info if info.st_nlink != 2 or stat.S_ISDIR(info.st_mode) else _with_uid(info, info.st_uid + 1)

    monkeypatch.setattr(os, "fstat", other)
    with pytest.raises(InvalidPath):
        open_nofollow(tmp_path / "a", "mine")


def _with_uid(info, uid):
    values = list(info)
    values[4] = uid
    return os.stat_result(values)


# --- results
def test_only_what_is_wanted_is_kept(files, job, attempt, tmp_path):
    work = attempt / "work"
    (tmp_path / "secret.pkl").write_text("s3cret")
    for path, content in {
        "model.pkl": b"model",
        "other.txt": b"no",
        "results/図/a.png": b"png",
        "results/.hidden": b"h",
        "deep/b/c.pkl": b"no",
    }.items():
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        (work / path).write_bytes(content)
    (work / "link.pkl").symlink_to(tmp_path / "secret.pkl")
    (work / "results" / "out").symlink_to(tmp_path)
    os.mkfifo(work / "pipe.pkl")
    (work / "new\nline.pkl").write_bytes(b"x")
    os.close(os.open(os.fsencode(work) + b"/bad\xff.pkl", os.O_CREAT | os.O_WRONLY))
    found = files.collect_results(job, 1, ["*.pkl"])
    assert [(r.path, r.size, r.sha256, r.attempt) for r in found.results] == [
        (path, len(content), hashlib.sha256(content).hexdigest(), 1)
        for path, content in [("model.pkl", b"model"), ("results/.hidden", b"h"), ("results/図/a.png", b"png")]
    ]
    assert found.left_out_count == 4 and all(name == printable(name) for name in found.left_out)
    with files.open_result(job, 1, "results/図/a.png") as f:
        assert f.read() == b"png"
    for path in ("link.pkl", "other.txt", "../../input/notebook.ipynb", "results", "", "/etc/passwd"):
        with pytest.raises(ResultNotFound):
            files.open_result(job, 1, path)
    # The user's later change does not reach what was kept.
    (work / "model.pkl").write_bytes(b"other")
    with files.open_result(job, 1, "model.pkl") as f:
        assert f.read() == b"model"


def test_keeping_again_gives_the_same(files, job, attempt):
    (attempt / "work" / "a.txt").write_text("a")
    first = files.collect_results(job, 1, ["*"])
    (files.results(job, 1).parent / "1.new").mkdir()
    (files.results(job, 1).parent / "1.new" / "torn").write_text("half")
    assert files.collect_results(job, 1, ["*"]) == first
    assert [p.name for p in files.results(job, 1).parent.iterdir()] == ["1"]


def test_caps_are_hard(files, job, attempt):
    for i in range(10):
        (attempt / "work" / f"{i}.txt").write_bytes(b"x" * 10)
    some = files.collect_results(job, 1, ["*.txt"], Caps(count=3))
    assert [r.path for r in some.results] == ["0.txt", "1.txt", "2.txt"] and some.left_out_count == 7
    small = files.collect_results(job, 1, ["*.txt"], Caps(bytes=25))
    assert len(small.results) == 2 and small.left_out_count == 8
    looked = files.collect_results(job, 1, ["*.txt"], Caps(names=4))
    assert len(looked.results) == 4
    with (attempt / "work" / "sparse.txt").open("wb") as f:
        f.truncate(10**12)
    assert "sparse.txt" in files.collect_results(job, 1, ["sparse*"]).left_out


def test_a_job_without_a_working_folder_keeps_nothing(files, job, attempt, tmp_path):
    files.drop_work(job, 1)
    assert files.collect_results(job, 1, ["*"]).results == []
    (tmp_path / "x.txt").write_text("s3cret")
    (attempt / "work").symlink_to(tmp_path)
    assert files.collect_results(job, 1, ["*"]).results == []
    assert not files.results(job, 1).exists()
