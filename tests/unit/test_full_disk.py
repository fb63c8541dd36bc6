"""A disk without room: said before anything starts, and where a part ended without a word."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from helpers.stack import free_port
from kajiya.errors import DataDirUnusable, DiskFull
from kajiya_hub import embedded
from kajiya_hub.datadir import DataDir, take_lease
from kajiya_hub.processes import Child
from kajiya_hub.settings import Settings

Usage = namedtuple("Usage", "total used free")


def leave(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, (1 << 40) - free, free))


def test_a_start_on_a_full_disk_is_refused_and_gives_the_directory_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataDir(tmp_path / "データ")
    leave(monkeypatch, 1 << 20)
    with pytest.raises(DiskFull) as e:
        embedded.prepare(data, {"port": free_port()})
    assert str(data.root) in e.value.sentence("en")
    take_lease(data).release()
    leave(monkeypatch, 1 << 30)
    embedded.prepare(data, {"port": free_port()})[1].release()


def test_settings_that_can_not_be_written_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataDir(tmp_path)

    def full(_: Settings) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Settings, "save", full)
    with pytest.raises(DataDirUnusable) as e:
        embedded.prepare(data, {"port": free_port()})
    assert "no space left on device" in e.value.sentence("en")
    take_lease(data).release()


@pytest.mark.parametrize(("free", "words"), [(0, "no space left on the disk"), (1 << 30, "the last line")])
def test_last_words_name_the_disk_where_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, words: str
) -> None:
    log = tmp_path / "part.log"
    log.write_text("first\nthe last line\n")
    leave(monkeypatch, free)
    assert Child("part", [], {}, log).last_words() == words
