"""Layers written: the same content is the same bytes, and an independent reader finds what was meant."""

# ruff: noqa: PTH104, PTH123 - bytes and descriptors

import io
import os
import tarfile
from pathlib import Path
from random import Random

import pytest
from backports import zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.layers import archive, blob, entry, items, picture, sha256
from kajiya.oci import tar
from kajiya.oci.errors import ContentChanged, NameInvalid, NoSpace
from kajiya.oci.extract import Blob, extract, inspect
from kajiya.oci.layer import TIME, Item, write
from kajiya.oci.streams import MEDIA_TYPES


def some_tree(root: Path) -> None:
    (root / "bin").mkdir(parents=True)
    (root / "bin/run").write_bytes(b"#!/bin/sh\n")
    (root / "bin/run").chmod(0o755)
    (root / "lib/学習").mkdir(parents=True)
    (root / "lib/学習/重み.bin").write_bytes(os.urandom(300_000))
    (root / "lib/empty").write_bytes(b"")
    (root / "lib/read_only").write_bytes(b"x" * 512)
    (root / "lib/read_only").chmod(0o444)
    (root / "lib/again").hardlink_to(root / "lib/read_only")
    (root / "lib64").symlink_to("lib")
    (root / "nowhere").symlink_to("lib/gone")
    with open(os.fsencode(root) + b"/lib/not-\xff-utf8\n", "wb") as file:
        file.write(b"1")
    (root / ("d" * 120) / ("n" * 200)).mkdir(parents=True)


def as_blob(layer) -> Blob:
    return Blob(layer.path, layer.digest, layer.media_type, layer.size, layer.diff_id)


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_a_tree_comes_back_as_it_was(tmp_path: Path, compression) -> None:
    some_tree(tmp_path / "tree")
    layer = write(items(tmp_path / "tree"), tmp_path, compression=compression)
    assert layer.media_type == MEDIA_TYPES[compression]
    assert sha256(layer.path.read_bytes()) == layer.digest == f"sha256:{layer.path.name}"
    assert layer.path.stat().st_size == layer.size
    extract([as_blob(layer)], tmp_path / "out")
    assert picture(tmp_path / "out") == picture(tmp_path / "tree")
    assert {os.lstat(p).st_mtime for p in (tmp_path / "out").rglob("*")} == {TIME}
    assert not list(tmp_path.glob(".new-*"))


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_content_of_every_density_comes_back(tmp_path: Path, compression) -> None:
    """Buffers end anywhere: within a block with input left, or with output left; hex digits did that to zstd."""
    dense = Random(3).randbytes(12 << 20)
    mixed = b"".join(dense[i : i + 50_000] + bytes(70_000) for i in range(0, 4 << 20, 50_000))
    contents = [dense, dense.hex().encode(), mixed]
    given = [Item(b"%d" % i, "file", data=data, size=len(data)) for i, data in enumerate(contents)]
    for some in ([given[0]], [given[1]], [given[2]], given):
        layer = write(some, tmp_path, compression=compression, level=3)
        out = tmp_path / layer.path.name[:8]
        extract([as_blob(layer)], out)
        assert all((out / os.fsdecode(i.path)).read_bytes() == i.data for i in some)


def test_other_readers_agree(tmp_path: Path) -> None:
    some_tree(tmp_path / "tree")
    layer = write(items(tmp_path / "tree"), tmp_path)
    plain = zstd.decompress(layer.path.read_bytes())
    assert sha256(plain) == layer.diff_id
    assert len(plain) == layer.plain_size
    with tarfile.open(fileobj=io.BytesIO(plain)) as file:
        members = file.getmembers()
        (tmp_path / "by-tarfile").mkdir()
        file.extractall(tmp_path / "by-tarfile", filter="fully_trusted")
    assert picture(tmp_path / "by-tarfile") == picture(tmp_path / "tree")
    assert {(m.uid, m.gid, m.mtime, m.uname) for m in members} == {(0, 0, TIME, "")}


def test_the_same_content_is_the_same_layer_whatever_its_order_threads_and_place(tmp_path: Path) -> None:
    some_tree(tmp_path / "tree")
    first = write(items(tmp_path / "tree"), tmp_path)
    os.rename(tmp_path / "tree", tmp_path / "elsewhere")
    os.utime(tmp_path / "elsewhere/bin/run", (1, 1))
    again = write(reversed(items(tmp_path / "elsewhere")), tmp_path, threads=1)
    assert (again.digest, again.diff_id) == (first.digest, first.diff_id)
    (tmp_path / "elsewhere/bin/run").write_bytes(b"#!/bin/zh\n")
    assert write(items(tmp_path / "elsewhere"), tmp_path).diff_id != first.diff_id


def test_whiteouts_stand_before_their_siblings_and_parents_before_children(tmp_path: Path) -> None:
    given = [Item(p, "file", data=b"") for p in (b"a/b/z", b"a/b/.hidden", b"a/b-c", b"a/!")]
    given += [
        Item(b"a", "directory"),
        Item(b"a/b", "directory"),
        Item(b"a/b/gone", "whiteout"),
        Item(b"a/b/z", "whiteout"),
    ]
    layer = write(given, tmp_path)
    with tarfile.open(fileobj=io.BytesIO(zstd.decompress(layer.path.read_bytes()))) as file:
        names = file.getnames()
    assert names == ["a", "a/!", "a/b", "a/b/.wh.gone", "a/b/.wh.z", "a/b/.hidden", "a/b/z", "a/b-c"]


@pytest.mark.parametrize(
    "path", [b"/etc/passwd", b"../x", b"a/../b", b"", b"a//b", b"./a", b"a\0b", b".wh.x", b"a/.wh..wh..opq", b"a/"]
)
def test_names_that_mean_something_else_are_refused(tmp_path: Path, path: bytes) -> None:
    with pytest.raises(NameInvalid):
        write([Item(path, "file", data=b"")], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_name_given_twice_and_a_hard_link_out_of_the_layer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NameInvalid):
        write([Item(b"a", "file", data=b""), Item(b"a", "symlink", target=b"b")], tmp_path)
    with pytest.raises(NameInvalid):
        write([Item(b"b", "hardlink", target=b"a")], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [100, 6 << 20])
def test_a_file_that_is_not_what_it_was_gives_up_the_whole_layer(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    source = os.fsencode(path)
    out = tmp_path / "out"
    out.mkdir()
    for item in (
        Item(b"f", "file", 0o644, size - 1, source=source),
        Item(b"f", "file", 0o644, size + 1, source=source),
        Item(b"f", "file", 0o644, size, source=source, digest="0" * 64),
    ):
        with pytest.raises(ContentChanged):
            write([item], out)
    assert list(out.iterdir()) == []
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic"):
        write([Item(b"f", "file", 0o644, size, source=source)], out)
    path.unlink()
    os.mkfifo(path)  # opened without waiting for a writer
    with pytest.raises(ContentChanged):
        write([Item(b"f", "file", 0o644, size, source=source)], out)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpace):
        write([Item(b"a", "file", data=b"1")], tmp_path)
    assert list(tmp_path.iterdir()) == []


names = st.binary(min_size=1, max_size=120).filter(
    lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b"..") and not n.startswith(b".wh.")
)
trees = st.dictionaries(
    st.lists(names, min_size=1, max_size=4).map(tuple), st.one_of(st.none(), st.binary(max_size=1200)), max_size=12
)


@given(trees)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_odd_names_come_back(tmp_path: Path, tree: dict[tuple[bytes, ...], bytes | None]) -> None:
    parents = {path[:i] for path in tree for i in range(1, len(path))}
    given: list[Item] = [Item(b"/".join(p), "directory", 0o755) for p in parents]
    wanted = {b"/".join(p): ("folder", 0o755) for p in parents}
    for path, data in tree.items():
        name = b"/".join(path)
        if path in parents:
            continue
        if data is None:
            given.append(Item(name, "symlink", target=path[-1]))
            wanted[name] = ("link", path[-1])
        else:
            given.append(Item(name, "file", 0o640, len(data), data=data))
            wanted[name] = ("file", 0o640, data, (name,))
    place = tmp_path / os.urandom(8).hex()
    place.mkdir()
    layer = write(given, place)
    extract([as_blob(layer)], place / "out")
    assert picture(place / "out") == wanted
    assert write(reversed(given), place).diff_id == layer.diff_id


@given(st.binary(min_size=1, max_size=300).filter(lambda n: b"\0" not in n), st.integers(0, 1 << 40))
def test_headers_are_read_as_they_were_written(name: bytes, size: int) -> None:
    stream = io.BytesIO(tar.pack(tar.Header(name, tar.FILE, 0o644, size, TIME)))
    header = tar.Reader(stream.read).next()
    assert header == tar.Header(name, tar.FILE, 0o644, size, TIME)
    assert stream.read() == b""


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_archives_of_other_tools_are_read(tmp_path: Path, format: int) -> None:
    long = "d" * 90 + "/" + "f" * 90
    made = blob(tmp_path, archive(entry("a", data=b"1" * 700), entry(long, data=b"2"), format=format))
    assert inspect(made).entries == 2
    extract([made], tmp_path / "out")
    assert (tmp_path / "out" / long).read_bytes() == b"2"
