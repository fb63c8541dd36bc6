"""The layout on disk: what is added lasts, what is named stays; a kill, a crowd or a full disk tears nothing."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from helpers.layers import sha256
from kajiya.oci import errors
from kajiya.oci.layer import Item, write
from kajiya_hub.oci import image
from kajiya_hub.oci.image import Descriptor, NewLayer
from kajiya_hub.oci.layout import Layout

WHEN = "2026-11-24T00:00:00Z"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "snapshots").create()


def add(layout: Layout, tag: str = "", content: bytes = b"1") -> Descriptor:
    layer = write([Item(b"a", "file", data=content)], layout.new)
    new = NewLayer(layout.add_layer(layer), layer.diff_id, "test")
    found = layout.add_image(image.append(image.scratch("amd64"), [new], created=WHEN))
    if tag:
        layout.tag(tag, found)
    return found


def age(layout: Layout) -> None:
    for folder in (layout.blobs, layout.new):
        for path in folder.iterdir():
            os.utime(path, (1, 1))


def test_what_is_added_is_there_by_digest_and_by_name(layout: Layout) -> None:
    found = add(layout, "base-1")
    again = Layout(layout.path).create()
    assert again.resolve("base-1").digest == found.digest
    made = again.image(found.digest)
    assert made.descriptor.digest == found.digest
    assert again.blob(made.layers[0].digest).stat().st_size == made.layers[0].size
    assert json.loads((layout.path / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert list(layout.new.iterdir()) == []
    assert layout.verify() == []
    add(layout, "base-1")
    assert (len(list(layout.blobs.iterdir())), len(layout.manifests())) == (3, 1)


def test_a_name_moves_and_goes(layout: Layout) -> None:
    first, second = add(layout, "base", b"1"), add(layout, "base", b"2")
    assert layout.tags().keys() == {"base"}
    assert layout.resolve("base").digest == second.digest != first.digest
    layout.untag("base")
    for gone in (layout.resolve, layout.untag):
        with pytest.raises(errors.TagMissing):
            gone("base")


@pytest.mark.parametrize("name", ["", "a b", "-a", "a\n", "../x", "学習", "a" * 256, "a\0"])
def test_names_that_no_image_can_have_are_refused(layout: Layout, name: str) -> None:
    found = add(layout)
    with pytest.raises(errors.ManifestInvalid):
        layout.tag(name, found)


def test_what_is_not_there_can_not_be_named(layout: Layout) -> None:
    none = Descriptor(image.MANIFEST, "sha256:" + "0" * 64, 5)
    with pytest.raises(errors.BlobMissing):
        layout.tag("x", none)
    layer = NewLayer(Descriptor(f"{image.LAYER}+zstd", none.digest, 5), none.digest, "x")
    with pytest.raises(errors.BlobMissing):
        layout.add_image(image.append(image.scratch("amd64"), [layer], created=WHEN))
    with pytest.raises(errors.DigestInvalid):
        layout.blob("sha256:../../oci-layout")
    assert list(layout.blobs.iterdir()) == []


def test_a_sweep_takes_what_nothing_needs_and_only_that(layout: Layout) -> None:
    kept, pinned, gone = add(layout, "kept", b"1"), add(layout, content=b"2"), add(layout, "gone", b"3")
    layout.untag("gone")
    assert layout.sweep([pinned.digest]).waiting == 3  # all within the grace period
    age(layout)
    (layout.new / "left").write_bytes(b"by one that was killed")
    os.utime(layout.new / "left", (1, 1))
    told = layout.sweep([pinned.digest], dry_run=True)
    assert (len(told.removed), told.kept, told.waiting) == (3, 6, 0)
    assert (layout.new / "left").exists() and len(list(layout.blobs.iterdir())) == 9
    assert layout.sweep([pinned.digest]).removed == told.removed
    assert list(layout.new.iterdir()) == []
    with pytest.raises(errors.BlobMissing):
        layout.image(gone.digest)
    assert layout.image(kept.digest) and layout.image(pinned.digest)
    assert layout.verify() == []
    assert layout.sweep().removed and layout.image(kept.digest)


def test_a_blob_that_is_used_again_is_young_again(layout: Layout) -> None:
    found = add(layout)
    age(layout)
    layer = layout.image(found.digest).layers[0]
    again = write([Item(b"a", "file", data=b"1")], layout.new)
    assert layout.add_layer(again) == layer
    assert not again.path.exists()
    swept = layout.sweep()
    assert (swept.waiting, len(swept.removed)) == (1, 2)
    assert layout.has(layer.digest)


def test_a_sweep_that_can_not_read_what_is_needed_takes_nothing(layout: Layout) -> None:
    found = add(layout, "kept")
    add(layout, content=b"2")
    age(layout)
    layout.blob(found.digest).write_bytes(b"{}")
    age(layout)
    with pytest.raises(errors.LayoutInvalid):
        layout.sweep()
    assert len(list(layout.blobs.iterdir())) == 6
    assert layout.verify() == [found.digest]
    (layout.path / "index.json").write_bytes(b"{")
    with pytest.raises(errors.LayoutInvalid):
        layout.sweep()


def test_a_manifest_that_is_named_as_a_layer_still_keeps_what_it_names(layout: Layout) -> None:
    """Whatever the order in which the two are read."""
    inner = add(layout, "inner")
    trick = NewLayer(Descriptor(f"{image.LAYER}+zstd", inner.digest, inner.size), inner.digest, "x")
    outer = layout.add_image(image.append(image.scratch("amd64"), [trick], created=WHEN))
    age(layout)
    assert layout.sweep([outer.digest]).removed == ()
    layout.untag("inner")
    layout.tag("a", outer)
    assert layout.sweep([inner.digest]).removed == ()


def test_damage_is_noticed(layout: Layout) -> None:
    found = add(layout, "a")
    made = layout.image(found.digest)
    layer = layout.blob(made.layers[0].digest)
    layer.write_bytes(layer.read_bytes()[:-1])
    config = json.loads(made.manifest)["config"]["digest"]
    layout.blob(config).unlink()
    assert layout.verify() == sorted([made.layers[0].digest, config])
    with pytest.raises(errors.BlobMissing):
        layout.image(found.digest)
    layout.blob(found.digest).write_bytes(made.manifest + b" ")
    with pytest.raises(errors.DigestMismatch):
        layout.image(found.digest)


def _tag_many(path: Path, name: str) -> None:
    layout = Layout(path)
    for i in range(20):
        add(layout, f"{name}-{i}", f"{name}{i % 4}".encode())


def test_many_processes_at_once_lose_nothing(layout: Layout) -> None:
    workers = [multiprocessing.get_context("fork").Process(target=_tag_many, args=(layout.path, n)) for n in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        layout.sweep()
        worker.join(60)
        assert worker.exitcode == 0
    assert layout.tags().keys() == {f"{n}-{i}" for n in "abc" for i in range(20)}
    assert layout.verify() == []


def test_a_kill_at_any_moment_tears_nothing(layout: Layout) -> None:
    add(layout, "before")
    for i in range(12):
        worker = multiprocessing.get_context("fork").Process(target=_tag_many, args=(layout.path, f"k{i}"))
        worker.start()
        time.sleep(0.005 * i)  # another moment each time, whatever it hits
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        assert layout.verify() == []
        for found in layout.tags().values():
            assert layout.image(found.digest)
    age(layout)
    layout.sweep(grace=0)
    assert list(layout.new.iterdir()) == []
    assert layout.verify() == [] and "before" in layout.tags()
    add(layout, "after")


def test_a_full_disk_leaves_what_was_there(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    add(layout, "kept")
    before = {p: p.read_bytes() for p in layout.path.rglob("*") if p.is_file()}

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        for attempt in (lambda: add(layout, "more", b"2"), lambda: layout.untag("kept"), lambda: layout.add(b"x", "y")):
            with pytest.raises(errors.NoSpace):
                attempt()
    assert {p: p.read_bytes() for p in layout.path.rglob("*") if p.is_file()} == before
    layout.untag("kept")


def test_small_blobs_are_read_only_when_they_are_small_and_right(layout: Layout) -> None:
    found = layout.add(b"lock", "text/x-toml")
    assert layout.read(found.digest) == b"lock"
    assert found.digest == sha256(b"lock")
    with pytest.raises(errors.ManifestTooLarge):
        layout.read(found.digest, limit=3)
    layout.blob(found.digest).write_bytes(b"luck")
    with pytest.raises(errors.DigestMismatch):
        layout.read(found.digest)
