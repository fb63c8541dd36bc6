"""Other people's tools read what we write: skopeo, umoci and a registry (Debian packages), on loopback only."""

# ruff: noqa: PTH123 - a name of bytes

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.layers import items, picture
from helpers.wait import until
from kajiya.oci.extract import Blob, extract
from kajiya.oci.layer import Compression, Item, write
from kajiya_hub.oci import image
from kajiya_hub.oci.image import Descriptor, NewLayer
from kajiya_hub.oci.layout import Layout

WHEN = "2026-11-24T00:00:00Z"


def need(tool: str) -> str:
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not installed here (Debian: apt-get install skopeo umoci docker-registry)")
    return found


def run(*argv: object) -> str:
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tree(root: Path) -> Path:
    (root / "bin").mkdir(parents=True)
    (root / "bin/tool").write_text("#!/bin/sh\necho made\n")
    (root / "bin/tool").chmod(0o755)
    (root / "lib/日本語/深い").mkdir(parents=True)
    (root / "lib/日本語/深い/重み").write_bytes(os.urandom(200_000))
    (root / "lib/read-only").write_bytes(b"r")
    (root / "lib/read-only").chmod(0o444)
    (root / "lib/second-name").hardlink_to(root / "lib/read-only")
    (root / "lib/closed").mkdir(mode=0o555)
    (root / "lib64").symlink_to("lib")
    (root / "broken").symlink_to("nothing/here")
    (root / ("long-" * 30)).write_bytes(b"")
    with open(os.fsencode(root) + b"/lib/latin-\xe9", "wb") as file:
        file.write(b"x")
    return root


def added(
    layout: Layout, given: list[Item], base: Descriptor | None = None, compression: Compression = "zstd"
) -> Descriptor:
    layer = write(given, layout.new, compression=compression)
    below = layout.image(base.digest) if base else image.scratch("amd64", env=["PATH=/bin"], Cmd=["/bin/tool"])
    new = NewLayer(layout.add_layer(layer), layer.diff_id, "test")
    return layout.add_image(image.append(below, [new], created=WHEN))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "snapshots").create()


def blobs(layout: Layout, digest: str) -> list[Blob]:
    made = layout.image(digest)
    return [
        Blob(layout.blob(d.digest), d.digest, d.media_type, d.size, diff_id)
        for d, diff_id in zip(made.layers, made.diff_ids, strict=True)
    ]


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
@pytest.mark.parametrize("rootless", [True, False], ids=["rootless", "root"])
def test_umoci_unpacks_what_was_captured(
    tmp_path: Path, layout: Layout, compression: Compression, rootless: bool
) -> None:
    umoci = need("umoci")
    if not rootless and os.geteuid() != 0:
        pytest.skip("unpacking as root needs root")
    if compression == "zstd" and not _takes_zstd(umoci, tmp_path / "try"):
        pytest.skip("this umoci is from before layers in zstd; skopeo's conversion is tested instead")
    source = tree(tmp_path / "tree")
    first = added(layout, items(source), compression=compression)
    before = picture(source)
    # A second layer: something changed, something gone, a folder became a file.
    upper = [Item(b"lib", "directory", 0o755), Item(b"lib/read-only", "whiteout"), Item(b"bin/tool", "file", data=b"2")]
    upper += [
        Item(b"lib/closed", "whiteout"),
        Item(b"lib/closed", "file", data=b"now a file"),
        Item(b"bin", "directory", 0o700),
    ]
    second = added(layout, upper, first, compression)
    for name, found in (("one", first), ("two", second)):
        layout.tag(name, found)
        run(umoci, "unpack", *(["--rootless"] if rootless else []), "--image", f"{layout.path}:{name}", tmp_path / name)
    assert picture(tmp_path / "one/rootfs") == before
    extract(blobs(layout, second.digest), tmp_path / "ours")
    assert picture(tmp_path / "two/rootfs") == picture(tmp_path / "ours")
    assert b"lib/read-only" not in picture(tmp_path / "ours")


def _takes_zstd(umoci: str, place: Path) -> bool:
    layout = Layout(place).create()
    layout.tag("x", added(layout, [Item(b"a", "file", data=b"")]))
    argv = [umoci, "unpack", "--rootless", "--image", f"{place}:x", str(place / "out")]
    return subprocess.run(argv, capture_output=True, timeout=60).returncode == 0


def test_skopeo_copies_it_and_umoci_unpacks_its_copy(tmp_path: Path, layout: Layout) -> None:
    """A layer in zstd, which an old umoci can't read, is made gzip by skopeo: an independent reader of zstd."""
    skopeo, umoci = need("skopeo"), need("umoci")
    source = tree(tmp_path / "tree")
    found = added(layout, items(source))
    layout.tag("base-1", found)
    copy = ["copy", "--insecure-policy", f"oci:{layout.path}:base-1"]
    run(skopeo, *copy, f"oci:{tmp_path}/same:base-1")
    same = Layout(tmp_path / "same").create()
    assert same.resolve("base-1").digest == found.digest
    assert same.verify() == []
    run(
        skopeo,
        *copy,
        "--dest-compress",
        "--dest-compress-format",
        "gzip",
        "--format",
        "oci",
        f"oci:{tmp_path}/gz:base-1",
    )
    run(umoci, "unpack", "--rootless", "--image", f"{tmp_path}/gz:base-1", tmp_path / "out")
    assert picture(tmp_path / "out/rootfs") == picture(source)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """An empty registry on a free port of loopback."""
    program = need("docker-registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}},
        "http": {"addr": address},
    }
    (tmp_path / "registry.yml").write_text(json.dumps(settings))
    with (tmp_path / "registry.log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(tmp_path / "registry.yml")], stdout=log, stderr=log)

        def answers() -> bool:
            assert process.poll() is None, (tmp_path / "registry.log").read_text()
            host, port = address.split(":")
            with socket.socket() as probe:
                return probe.connect_ex((host, int(port))) == 0

        try:
            until(answers)
            yield address
        finally:
            process.kill()
            process.wait()


def test_a_registry_takes_it_and_gives_it_back(tmp_path: Path, layout: Layout, registry: str) -> None:
    skopeo = need("skopeo")
    source = tree(tmp_path / "tree")
    first = added(layout, items(source))
    second = added(layout, [Item(b"new", "file", data=b"1"), Item(b"broken", "whiteout")], first)
    layout.tag("base-2", second)
    there = f"docker://{registry}/kajiya/hanako:base-2"
    run(skopeo, "copy", "--insecure-policy", "--dest-tls-verify=false", f"oci:{layout.path}:base-2", there)
    told = json.loads(run(skopeo, "inspect", "--tls-verify=false", there))
    assert told["Digest"] == second.digest
    assert told["Layers"] == [d.digest for d in layout.image(second.digest).layers]
    run(skopeo, "copy", "--insecure-policy", "--src-tls-verify=false", there, f"oci:{tmp_path}/back:base-2")
    back = Layout(tmp_path / "back").create()
    assert back.resolve("base-2").digest == second.digest
    extract(blobs(back, second.digest), tmp_path / "out")
    wanted = picture(source) | {b"new": ("file", 0o644, b"1", (b"new",))}
    del wanted[b"broken"]
    assert picture(tmp_path / "out") == wanted
