"""Records in a folder that may be hostile: whole or not at all, nothing followed, nothing waited for."""

import errno
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kajiya.machine import records
from kajiya.machine.log import Log, open_plain


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "run").mkdir()
    with records.opened(tmp_path / "run") as fd:
        yield fd


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_record_is_written_and_read(folder: int, tmp_path: Path) -> None:
    assert records.read(folder, "x.json") is None
    for value in ({"a": 1}, {"a": "鍛冶屋\n"}):
        records.write(folder, "x.json", value)
        assert records.read(folder, "x.json") == value
    assert names(tmp_path / "run") == ["x.json"]


def test_of_many_creators_one_succeeds(folder: int, tmp_path: Path) -> None:
    won: list[int] = []
    barrier = threading.Barrier(8)

    def create(i: int) -> None:
        barrier.wait()
        if records.create(folder, "lease.json", {"who": i}):
            won.append(i)

    threads = [threading.Thread(target=create, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and records.read(folder, "lease.json") == {"who": won[0]}
    assert names(tmp_path / "run") == ["lease.json"]


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "folder", "huge", "torn", "list", "deep", "binary"])
def test_what_is_no_record_is_none(folder: int, tmp_path: Path, kind: str) -> None:
    path, secret = tmp_path / "run/x.json", tmp_path / "secret.json"
    secret.write_text('{"secret": 1}')
    match kind:
        case "link":
            path.symlink_to(secret)
        case "dangling":
            path.symlink_to("nowhere")
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "huge":
            path.write_text(json.dumps({"a": "x" * records.LIMIT}))
        case "torn":
            path.write_text('{"a": ')
        case "list":
            path.write_text("[1]")
        case "deep":
            path.write_text('{"a":' + "[" * 50_000)
        case _:
            path.write_bytes(b"\xff\x00")
    assert records.read(folder, "x.json") is None
    if kind != "folder":
        records.write(folder, "x.json", {"mine": True})
        assert records.read(folder, "x.json") == {"mine": True}
    assert json.loads(secret.read_text()) == {"secret": 1}


def test_a_record_of_another_account_is_none(folder: int) -> None:
    records.write(folder, "x.json", {"a": 1})
    assert records.read(folder, "x.json", os.geteuid()) == {"a": 1}
    assert records.read(folder, "x.json", os.geteuid() + 1) is None


def test_to_be_out_of_descriptors_is_not_the_same_as_no_record(folder: int) -> None:
    import resource

    records.write(folder, "x.json", {"a": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            records.read(folder, "x.json")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_link_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"), records.opened(tmp_path / "link"):
        pass


@pytest.mark.parametrize("reserved", [True, False])
def test_the_exit_record_is_written_again_until_there_is_room(
    folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reserved: bool
) -> None:
    if reserved:
        records.reserve(folder)
    real, tries = os.fsync, []

    def full(fd: int) -> None:
        if len(tries) < 2 and Path(f"/proc/self/fd/{fd}").is_file():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd)

    monkeypatch.setattr(os, "fsync", full)
    records.write_exit(folder, {"ending": "succeeded"}, tries.append)
    assert tries == [1, 2]
    assert records.read(folder, "exit.json") == {"ending": "succeeded"}
    assert names(tmp_path / "run") == ["exit.json"]


def test_reserved_room_that_was_tampered_with_is_not_used(folder: int, tmp_path: Path) -> None:
    records.reserve(folder)
    victim = tmp_path / "victim"
    victim.write_text("x" * 5000)
    (tmp_path / "run" / records.RESERVE).unlink()
    os.link(victim, tmp_path / "run" / records.RESERVE)
    records.write_exit(folder, {"ending": "succeeded"}, lambda _: pytest.fail("there is room"))
    assert victim.read_text() == "x" * 5000
    assert records.read(folder, "exit.json") == {"ending": "succeeded"}


def test_an_exit_record_larger_than_the_reserved_room(folder: int) -> None:
    records.reserve(folder)
    record = {"ending": "succeeded", "problem": "x" * 9000}
    records.write_exit(folder, record, lambda _: pytest.fail("there is room"))
    assert records.read(folder, "exit.json") == record


def test_the_folder_of_an_exit_record_may_be_gone(folder: int, tmp_path: Path) -> None:
    (tmp_path / "run").rmdir()
    records.write_exit(folder, {"ending": "succeeded"}, lambda _: pytest.fail("nothing to wait for"))


# --- log
def printed(log: Log, data: bytes) -> None:
    os.write(log.writing, data)
    assert log.drain()


def test_a_log_is_cut_once_at_its_limit(folder: int, tmp_path: Path) -> None:
    log = Log(folder, "log.txt", 10)
    printed(log, b"12345")
    printed(log, b"67890abc")
    printed(log, b"more")
    os.close(log.writing)
    assert not log.drain()
    log.close()
    text = (tmp_path / "run/log.txt").read_text()
    assert text.startswith("1234567890\n") and text.count("reached its limit of 10 B") == 1 and "abc" not in text


def test_a_full_disk_costs_lines_of_the_log_only(folder: int) -> None:
    log = Log(folder, "log.txt", 1000)
    os.close(log.file)
    log.file = os.open("/dev/full", os.O_WRONLY)
    printed(log, b"lost")
    log.close()


@pytest.mark.parametrize("kind", ["link", "fifo", "second name", "folder"])
def test_a_log_is_never_written_into_something_else(folder: int, tmp_path: Path, kind: str) -> None:
    victim, path = tmp_path / "victim", tmp_path / "run/log.txt"
    victim.write_text("")
    {
        "link": lambda: path.symlink_to(victim),
        "fifo": lambda: os.mkfifo(path),
        "second name": lambda: os.link(victim, path),
        "folder": path.mkdir,
    }[kind]()
    with pytest.raises(OSError, match=r"."):
        open_plain(folder, "log.txt")
    assert victim.read_text() == ""
