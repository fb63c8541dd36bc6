"""Layers read: whatever a hostile one holds, it is refused by name, and nothing is written outside or left behind."""

# ruff: noqa: PTH208 - bytes and descriptors

import os
import stat
import tarfile
from pathlib import Path

import pytest
from backports import zstd

from helpers.layers import archive, blob, entry, folder, hard, link, picture, sha256
from kajiya.oci import errors
from kajiya.oci.extract import Blob, extract, inspect
from kajiya.oci.rules import Limits


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder to unpack in, beside a file that no layer may touch."""
    (tmp_path / "outside").write_text("untouched")
    (tmp_path / "in").mkdir()
    return tmp_path


def refused(place: Path, error: type[errors.OciError], *blobs: Blob, seen_alone: bool = True, **how) -> errors.OciError:
    """What extraction said; the same is said without writing, and there is no trace of it."""
    with pytest.raises(error) as found:
        extract(blobs, place / "in/out", **how)
    assert type(found.value) is error
    assert list((place / "in").iterdir()) == []
    assert (place / "outside").read_text() == "untouched"
    if seen_alone:
        with pytest.raises(error):
            inspect(blobs[-1], **how)
    return found.value


HOSTILE = {
    "up": ([entry("../outside", data=b"x")], errors.PathOutside),
    "up inside": ([entry("a/../../outside", data=b"x")], errors.PathOutside),
    "up that stays": ([entry("a/../b", data=b"x")], errors.PathOutside),
    "absolute": ([entry("/etc/kajiya-test", data=b"x")], errors.PathOutside),
    "only dots": ([folder("..")], errors.PathOutside),
    "empty part": ([entry("a//b", data=b"x")], errors.NameInvalid),
    "dot part": ([entry("a/./b", data=b"x")], errors.NameInvalid),
    "long part": ([entry("n" * 256)], errors.NameInvalid),
    "long path": ([entry("/".join(["n" * 250] * 20))], errors.NameInvalid),
    "deep": ([entry("/".join(["n"] * 200))], errors.NameInvalid),
    "link up": ([link("a", "../outside")], errors.LinkOutside),
    "link up from within": ([folder("d"), link("d/a", "../../outside")], errors.LinkOutside),
    "link up through a link": ([folder("d"), link("here", "d"), link("a", "here/../../outside")], errors.LinkOutside),
    "link with up in the middle": ([folder("d"), link("a", "d/../b")], errors.LinkOutside),
    "link to nothing": ([link("a", "")], errors.LinkOutside),
    "absolute link with up": ([link("a", "/d/../../outside")], errors.LinkOutside),
    "write through a link": ([folder("d"), link("a", "d"), entry("a/x", data=b"x")], errors.ThroughLink),
    "write through a file": ([entry("a", data=b"x"), entry("a/x", data=b"x")], errors.ThroughLink),
    "whiteout through a link": ([folder("d"), link("a", "d"), entry("a/.wh.x")], errors.ThroughLink),
    "opaque through a link": ([folder("d"), link("a", "d"), entry("a/.wh..wh..opq")], errors.ThroughLink),
    "hard link up": ([hard("a", "../outside")], errors.HardLinkInvalid),
    "hard link absolute": ([hard("a", "/etc/passwd")], errors.HardLinkInvalid),
    "hard link to a link": ([link("l", "f"), hard("a", "l")], errors.HardLinkInvalid),
    "hard link to a folder": ([folder("d"), hard("a", "d")], errors.HardLinkInvalid),
    "hard link to what comes later": ([hard("a", "b"), entry("b")], errors.HardLinkInvalid),
    "character device": ([entry("null", tarfile.CHRTYPE, devmajor=1, devminor=3)], errors.SpecialFile),
    "block device": ([entry("sda", tarfile.BLKTYPE, devmajor=8)], errors.SpecialFile),
    "fifo": ([entry("pipe", tarfile.FIFOTYPE)], errors.SpecialFile),
    "unknown type": ([entry("odd", b"Z")], errors.SpecialFile),
    "setuid": ([entry("su", mode=0o4755)], errors.SpecialMode),
    "setgid folder": ([folder("d", mode=0o2755)], errors.SpecialMode),
    "sticky": ([folder("d", mode=0o1777)], errors.SpecialMode),
    "sparse": ([entry("s", b"S")], errors.SparseFile),
    "sparse by pax": ([entry("s", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.name": "x"})], errors.SparseFile),
    "twice": ([entry("a", data=b"1"), entry("a", data=b"2")], errors.Duplicate),
    "twice in other words": ([entry("a", data=b"1"), entry("./a", data=b"2")], errors.Duplicate),
    "folder twice": ([folder("d"), folder("d/")], errors.Duplicate),
    "file where a folder is": ([entry("d/x"), entry("d")], errors.Duplicate),
    "link where a folder is": ([entry("d/x"), link("d", "e")], errors.Duplicate),
    "whiteout of up": ([entry(".wh...")], errors.WhiteoutInvalid),
    "whiteout of here": ([entry(".wh..")], errors.WhiteoutInvalid),
    "whiteout of nothing": ([entry(".wh.")], errors.WhiteoutInvalid),
    "whiteout of another's mark": ([entry(".wh..wh.plnk")], errors.WhiteoutInvalid),
    "whiteout outside": ([entry("../.wh.outside")], errors.PathOutside),
    "whiteout with content": ([entry(".wh.a", data=b"x")], errors.WhiteoutInvalid),
    "whiteout as a folder": ([folder(".wh.a")], errors.WhiteoutInvalid),
    "whiteout as a parent": ([entry(".wh.a/b")], errors.WhiteoutInvalid),
    "whiteout as a link": ([link(".wh.a", "b")], errors.WhiteoutInvalid),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_layers_are_refused_by_name(place: Path, name: str) -> None:
    entries, error = HOSTILE[name]
    found = refused(place, error, blob(place, archive(*entries)))
    assert found.params["path"]


def test_a_long_pax_name_can_not_hide_a_path(place: Path) -> None:
    refused(place, errors.PathOutside, blob(place, archive(entry("a", pax_headers={"path": "../outside"}))))
    refused(place, errors.LinkOutside, blob(place, archive(link("a" * 101, "../" + "b" * 200))))


@pytest.mark.parametrize("lower", [link("d", "e"), link("d", ".")], ids=["to a folder", "to itself"])
def test_a_layer_can_not_write_through_a_link_of_a_lower_one(place: Path, lower: tuple) -> None:
    first = blob(place, archive(folder("e"), lower))
    for upper in (entry("d/x", data=b"x"), entry("d/sub/x"), entry("d/.wh.x"), entry("d/.wh..wh..opq")):
        refused(place, errors.ThroughLink, first, blob(place, archive(upper)), seen_alone=False)


def test_an_interpreter_may_be_linked_to_and_nothing_else(place: Path) -> None:
    made = blob(place, archive(folder("opt"), folder("opt/env"), link("opt/env/python", "/usr/bin/python3")))
    refused(place, errors.LinkOutside, made, inside=b"opt/env")
    refused(place, errors.LinkOutside, made, inside=b"opt/env", links=[b"/usr/bin"])
    extract([made], place / "out", inside=b"opt/env", links=[b"/usr/bin/python3"])
    assert (place / "out/python").readlink() == Path("/usr/bin/python3")


def test_only_one_folder_of_the_image_is_taken(place: Path) -> None:
    good = [folder("opt"), folder("opt/env"), entry("opt/env/a", data=b"1"), link("opt/env/b", "/opt/env/a")]
    extract([blob(place, archive(*good))], place / "out", inside=b"opt/env")
    assert sorted(p.name for p in (place / "out").iterdir()) == ["a", "b"]
    for bad in (
        entry("etc/passwd"),
        folder("etc"),
        entry("opt/env2/x"),
        entry("opt/.wh.env"),
        entry(".wh.opt"),
        entry("opt"),
    ):
        refused(place, errors.PathOutside, blob(place, archive(bad)), inside=b"opt/env")
    refused(place, errors.HardLinkInvalid, blob(place, archive(hard("opt/env/a", "opt/x"))), inside=b"opt/env")
    refused(place, errors.LinkOutside, blob(place, archive(link("opt/env/a", "../x"))), inside=b"opt/env")


def layers(place: Path, *archives: bytes) -> dict[bytes, tuple[object, ...]]:
    extract([blob(place, a) for a in archives], place / "in/out")
    return picture(place / "in/out")


def test_whiteouts_take_away_what_lower_layers_had(place: Path) -> None:
    lower = archive(folder("d"), folder("d/e"), entry("d/e/f"), entry("d/g", data=b"1"), entry("h"), link("l", "d"))
    upper = archive(folder("d"), entry("d/.wh.e"), entry(".wh.l"), entry(".wh.never"), entry("d/g", data=b"2"))
    assert layers(place, lower, upper) == {
        b"d": ("folder", 0o755),
        b"d/g": ("file", 0o644, b"2", (b"d/g",)),
        b"h": ("file", 0o644, b"", (b"h",)),
    }


@pytest.mark.parametrize("order", [1, -1], ids=["before", "after"])
def test_an_opaque_folder_keeps_what_its_own_layer_has(place: Path, order: int) -> None:
    lower = archive(folder("d"), entry("d/old"), folder("d/sub"), entry("d/sub/old"))
    upper = [entry("d/.wh..wh..opq"), folder("d/sub"), entry("d/sub/new"), entry("d/new")]
    assert set(layers(place, lower, archive(*upper[::order]))) == {b"d", b"d/new", b"d/sub", b"d/sub/new"}


def test_a_late_whiteout_leaves_what_its_own_layer_has(place: Path) -> None:
    lower = archive(folder("d"), entry("d/old"), entry("f"))
    upper = archive(entry("d/new"), entry(".wh.d"), entry("f", data=b"2"), entry(".wh.f"))
    assert set(layers(place, lower, upper)) == {b"d", b"d/new", b"f"}


def test_kinds_may_change_between_layers(place: Path) -> None:
    lower = archive(folder("a"), entry("a/x"), entry("b"), link("c", "a"))
    upper = archive(entry("a", data=b"now a file"), folder("b"), entry("b/x"), folder("c"), entry("c/x"))
    assert set(layers(place, lower, upper)) == {b"a", b"b", b"b/x", b"c", b"c/x"}


def test_a_file_is_replaced_and_not_written_into(place: Path) -> None:
    lower = archive(entry("a", data=b"1"), hard("b", "a"))
    seen = layers(place, lower, archive(entry("a", data=b"2")))
    assert (seen[b"a"][2], seen[b"b"][2]) == (b"2", b"1")


def test_modes_are_kept_and_folders_that_forbid_writing_are_filled(place: Path) -> None:
    tree = archive(
        folder("d", mode=0o555), entry("d/a", mode=0o400), entry("d/run", mode=0o777), folder("d/e", mode=0o500)
    )
    seen = layers(place, tree, archive(entry("d/later")))
    assert {name.decode(): oct(int(str(what[1]))) for name, what in seen.items()} == {
        "d": "0o555",
        "d/a": "0o400",
        "d/run": "0o777",
        "d/e": "0o500",
        "d/later": "0o644",
    }
    assert stat.S_IMODE((place / "in/out").stat().st_mode) == 0o755


# --- what the bytes may be
@pytest.mark.parametrize("compression", ["zstd", "gzip"])
@pytest.mark.parametrize("cut", [1, 4, 200])
def test_a_truncated_blob_is_refused(place: Path, compression: str, cut: int) -> None:
    tar = archive(entry("a", data=os.urandom(5000)))
    made = blob(place, tar, compression, cut=cut)
    refused(place, errors.BlobTruncated, made)
    whole = blob(place, tar, compression)
    lying = Blob(made.path, whole.digest, whole.media_type, whole.size, whole.diff_id)
    refused(place, errors.SizeMismatch, lying)
    refused(place, errors.DigestMismatch, Blob(made.path, whole.digest, whole.media_type))


def test_other_bytes_than_promised_are_refused(place: Path) -> None:
    made = blob(place, archive(entry("a", data=b"1")))
    refused(place, errors.DigestMismatch, Blob(made.path, "sha256:" + "0" * 64, made.media_type))
    refused(place, errors.DigestMismatch, Blob(made.path, "md5:" + "0" * 32, made.media_type))
    refused(place, errors.DiffIdMismatch, Blob(made.path, made.digest, made.media_type, diff_id="sha256:" + "0" * 64))
    refused(place, errors.BlobMissing, Blob(place / "none", made.digest))
    refused(place, errors.MediaTypeRefused, Blob(made.path, made.digest, "application/vnd.oci.image.layer.v1.tar"))
    refused(place, errors.BlobDamaged, Blob(made.path, made.digest, made.media_type.replace("zstd", "gzip")))


def raw(place: Path, tar: bytes) -> Blob:
    return blob(place, tar)


def test_archives_that_are_damaged_are_refused(place: Path) -> None:
    tar = archive(entry("a", data=b"1"))
    refused(place, errors.BlobTruncated, raw(place, tar[:1000]))
    refused(place, errors.BlobTruncated, raw(place, b""))
    refused(place, errors.BlobDamaged, raw(place, tar[:150] + b"7" + tar[151:]))
    refused(place, errors.BlobDamaged, raw(place, tar + b"more"))
    refused(place, errors.BlobDamaged, raw(place, tar[:1024] + bytes(512) + tar[:1024] + bytes(1024)))
    refused(place, errors.BlobDamaged, raw(place, b"no archive at all".ljust(1024)))


def test_two_frames_are_one_stream(place: Path) -> None:
    tar = archive(entry("a", data=b"1"))
    packed = zstd.compress(tar[:700]) + zstd.compress(tar[700:])
    path = place / "two"
    path.write_bytes(packed)
    assert inspect(Blob(path, sha256(packed), diff_id=sha256(tar))).entries == 1
    path.write_bytes(packed + b"junk")
    refused(place, errors.BlobDamaged, Blob(path, sha256(packed + b"junk")))


def test_a_bomb_is_refused_while_it_unpacks(place: Path) -> None:
    made = blob(place, archive(entry("zeros", data=bytes(40 << 20))))
    refused(place, errors.Bomb, made, limits=Limits(floor=1 << 20))
    refused(place, errors.TooLarge, made, limits=Limits(plain_size=10 << 20))
    assert inspect(made).plain_size > 40 << 20  # beyond no limit


def test_a_huge_extended_header_is_not_read_into_memory(place: Path) -> None:
    header = bytearray(archive(entry("x", b"x"))[:512])
    header[124:136] = b"%011o\0" % (1 << 30)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    refused(place, errors.TooLarge, raw(place, bytes(header) + bytes(2048)))


def test_a_hundred_thousand_files_are_many_and_more_than_the_limit_are_too_many(place: Path) -> None:
    made = blob(place, archive(*(entry(f"d{i // 1000}/f{i}") for i in range(100_000)), format=tarfile.USTAR_FORMAT))
    extract([made], place / "out")
    assert sum(len(files) for _, _, files in os.walk(place / "out")) == 100_000
    with pytest.raises(errors.TooManyEntries):
        inspect(made, limits=Limits(entries=99_999))


def test_a_target_that_is_there_is_left_alone(place: Path) -> None:
    made = blob(place, archive(entry("a")))
    (place / "in/out").symlink_to(place / "elsewhere")
    with pytest.raises(FileExistsError):
        extract([made], place / "in/out")
    assert sorted(p.name for p in (place / "in").iterdir()) == ["out"]


def test_a_full_disk_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = blob(place, archive(entry("a", data=b"1")))

    def full(_fd: int, _data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    refused(place, errors.NoSpace, made, seen_alone=False)


def test_no_descriptor_is_left_open(place: Path) -> None:
    made = blob(place, archive(entry("a/b/c/d", data=b"1"), hard("e", "a/b/c/d"), entry("a/.wh.z")))
    bad = blob(place, archive(entry("a/b/c/d"), link("x", "..")))
    before = len(os.listdir("/proc/self/fd"))
    for i in range(3):
        extract([made], place / f"out{i}")
        refused(place, errors.LinkOutside, bad)
    assert len(os.listdir("/proc/self/fd")) == before
