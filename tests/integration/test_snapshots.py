"""Capture and restore of real environments against the real API, store and image layout."""

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import environments
from helpers.environments import install, says, uninstall, venv, wheel
from helpers.service import PREFIX, Service, served
from kajiya import errors
from kajiya.client import Client
from kajiya.environment import capture as captures
from kajiya.environment import clone, diff, restore
from kajiya.environment import state as states
from kajiya.machine.homes import Home
from kajiya.types import Environment, Reason, Resources
from kajiya_hub.oci.layout import Layout
from kajiya_hub.snapshots import SnapshotImages
from kajiya_hub.store.rows import NewJob
from kajiya_hub.store.store import Store

pytestmark = pytest.mark.timeout(300)
BIG = os.urandom(200_000)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache") / "uv"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """What everybody's environments are cloned from."""
    place = cache.parent / "base" / f"env-{environments.LOCK[:16]}"
    return venv(place, cache, wheel(cache.parent / "wheels", "first", "1.0", BIG))


@pytest.fixture
def home(tmp_path: Path, base: Path) -> Home:
    found = Home("hanako", tmp_path / "山田 花子")
    found.environment().parent.mkdir(parents=True)
    clone.clone(base, found.environment(), share=True)
    environments.mark(found.environment())
    return found


@pytest.fixture
async def api(tmp_path: Path, base: Path) -> AsyncIterator[Service]:
    root = tmp_path / "service"
    root.mkdir()

    def environment(lock: str) -> Path | None:
        return base if lock == environments.LOCK else None

    store = Store(f"sqlite:///{root}/kajiya.sqlite")
    images = SnapshotImages(root / "snapshots", store, environment, most=50 << 20)
    async with served(root, store=store, snapshots=images) as api:
        yield api


def client(api: Service, user: str = "hanako") -> Client:
    return Client(f"{api.http.base_url}{PREFIX}", f"t-{user}", patience=5)


class Captures:
    """Captures in threads, as the service answers in this process."""

    def __init__(self, api: Service, home: Home, user: str = "hanako") -> None:
        self.client, self.home, self.told = client(api, user), home, list[Reason]()

    async def __call__(self, name: str | None = None) -> captures.Captured:
        self.told = []

        def run() -> captures.Captured:
            keep = self.home.kajiya / "captured"
            return captures.capture(self.client, self.home.environment(), keep, name=name, progress=self.told.append)

        return await asyncio.to_thread(run)

    @property
    def codes(self) -> list[str]:
        return [reason.code for reason in self.told]


async def refused(error: type[errors.KajiyaError], call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with pytest.raises(error) as raised:
        await asyncio.to_thread(call, *args, **kwargs)
    return raised.value.params


async def test_capture_change_diff_and_restore(api: Service, home: Home, cache: Path, tmp_path: Path) -> None:
    capture = Captures(api, home)
    first = await capture("base-1")
    assert first.new and first.snapshot.names == ["base-1"]
    assert "capture.base" in capture.codes, "what all have is in the base's layer"
    assert len(first.snapshot.layers) == 2 and first.snapshot.added < 20_000 < first.snapshot.size

    again = await capture()
    assert (again.new, again.snapshot.digest) == (False, first.snapshot.digest)
    assert capture.codes == ["capture.looking", "capture.unchanged"]

    # There and back again: known, so that no layer is written.
    install(home.environment(), cache, wheel(tmp_path, "third", "3.0"))
    assert (await capture("between")).new
    uninstall(home.environment(), "third")
    back = await capture("again")
    assert (back.new, back.snapshot.digest) == (False, first.snapshot.digest)
    assert back.snapshot.names == ["again", "base-1"] and back.snapshot.packages
    assert "capture.writing" not in capture.codes

    install(home.environment(), cache, wheel(tmp_path, "second", "2.0", BIG))
    own = "x = '/opt/kajiya/env/bin'  # for a reason of its own\n"
    (home.environment() / "share").mkdir(exist_ok=True)
    (home.environment() / "share/own.py").write_text(own)
    install(home.environment(), cache, wheel(tmp_path, "first", "1.1", BIG))
    second = await capture("学習")
    assert second.new and second.snapshot.base == first.snapshot.digest
    assert second.snapshot.layers[:2] == first.snapshot.layers and len(second.snapshot.layers) == 3

    found = diff.diff(first.snapshot, second.snapshot)
    assert [(c.kind, c.name, c.before, c.after) for c in found.changes] == [
        ("added", "second", "", "2.0"),
        ("changed", "first", "1.0", "1.1"),
    ]

    elsewhere = Home("hanako", tmp_path / "another 家")
    for snapshot, name in ((first.snapshot, "one"), (second.snapshot, "two")):
        await asyncio.to_thread(restore.restore, capture.client, snapshot, elsewhere, name)
    assert says(elsewhere, "one", "first-say") == "1.0"
    assert says(elsewhere, "two", "first-say") == "1.1"
    assert (elsewhere.environment("two") / "share/own.py").read_text() == own
    assert says(elsewhere, "two", "python", "-c", "import second; print(second.VERSION)") == "2.0"
    assert not list(elsewhere.environment("two").glob("lib/python*/site-packages/first-1.0*")), "whited out"
    spec = json.loads((elsewhere.jupyter_path / "kernels/two/kernel.json").read_text("utf-8"))
    assert spec["argv"][0] == str(elsewhere.python("two"))
    assert spec["metadata"]["kajiya"] == {"environment": "two", "snapshot": second.snapshot.digest}
    for path in elsewhere.environment("two").rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert os.fsencode(home.path) not in path.read_bytes(), path

    # What was restored is the same environment, so it is captured as the same snapshot.
    moved = Home("hanako", elsewhere.path)
    shutil.move(elsewhere.environment("one"), tmp_path / "kept")
    await asyncio.to_thread(restore.restore, capture.client, second.snapshot, moved, "three")
    other = await asyncio.to_thread(
        captures.capture, capture.client, moved.environment("three"), moved.kajiya / "captured", environment="three"
    )
    assert (other.new, other.snapshot.digest) == (False, second.snapshot.digest)
    assert Layout(tmp_path / "service/snapshots").verify() == []


async def test_two_people_with_the_same_environment_have_the_same_digest(
    api: Service, home: Home, base: Path, tmp_path: Path
) -> None:
    mine = await Captures(api, home)("x")
    other = Home("taro", tmp_path / "taro")
    other.environment().parent.mkdir(parents=True)
    clone.clone(base, other.environment(), share=True)
    environments.mark(other.environment())
    theirs = await Captures(api, other, "taro")("x")
    assert theirs.new and theirs.snapshot.digest == mine.snapshot.digest
    await asyncio.to_thread(client(api, "taro").delete_snapshot, "x")
    # The image is still hanako's.
    assert (await asyncio.to_thread(client(api).snapshot, "x")).digest == mine.snapshot.digest
    assert f"snapshot-{mine.snapshot.digest[7:]}" in Layout(tmp_path / "service/snapshots").tags()


async def test_a_digest_of_another_user_opens_nothing(api: Service, home: Home, cache: Path, tmp_path: Path) -> None:
    install(home.environment(), cache, wheel(tmp_path, "own", "1.0", BIG))
    mine = (await Captures(api, home)("mine")).snapshot
    taro = client(api, "taro")
    for ref in ("mine", mine.digest):
        await refused(errors.SnapshotNotFound, taro.snapshot, ref)
        await refused(errors.SnapshotNotFound, taro.delete_snapshot, ref)
    own = mine.layers[-1]
    assert not await asyncio.to_thread(taro.has_blob, own.digest)
    await refused(errors.BlobNotFound, taro.blob, own.digest, 1 << 30)
    await refused(errors.BlobNotFound, taro.blob, mine.state, 1 << 30)
    wanted = captures._again(mine, "stolen").model_copy(update={"layers": [own]})
    await refused(errors.BlobNotFound, taro.create_snapshot, wanted.model_copy(update={"base": None}))
    await refused(errors.SnapshotNotFound, taro.create_snapshot, wanted.model_copy(update={"base": mine.digest}))
    assert (await asyncio.to_thread(taro.snapshots)).items == []
    assert (await api.get("snapshots", None)).status_code == 401


async def test_secrets_are_left_out_and_named(api: Service, home: Home, tmp_path: Path) -> None:
    environment = home.environment()
    (environment / ".netrc").write_text("machine x password TOPSECRET")
    (environment / "etc").mkdir(exist_ok=True)
    (environment / "etc/id_rsa").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nTOPSECRET\n")
    done = await Captures(api, home)("x")
    assert {entry.path for entry in done.left_out} == {".netrc", "etc/id_rsa"}
    there = Home("hanako", tmp_path / "there")
    await asyncio.to_thread(restore.restore, client(api), done.snapshot, there, "x")
    names = {p.name for p in there.environment("x").rglob("*")}
    assert not names & {".netrc", "id_rsa"} and "kajiya-base.json" in names


async def test_what_needs_a_snapshot_keeps_it(api: Service, home: Home, cache: Path, tmp_path: Path) -> None:
    capture = Captures(api, home)
    first = (await capture("one")).snapshot
    install(home.environment(), cache, wheel(tmp_path, "more", "1.0"))
    second = (await capture("two")).snapshot
    await refused(errors.SnapshotNameTaken, capture.client.create_snapshot, captures._again(second, "one"))
    assert (await refused(errors.SnapshotNeeded, capture.client.delete_snapshot, "one"))["needed_by"] == [
        "snapshot two"
    ]
    spec = {"notebook": "a.ipynb", "notebook_sha256": "0" * 64, "profile": "small", "owner": "hanako", "name": "a"}
    job = NewJob(
        id="j" + "0" * 15,
        resources=Resources(),
        environment=Environment(kind="snapshot", digest=second.digest),
        **spec,  # type: ignore[arg-type]
    )
    api.store.submit(job)
    assert (await refused(errors.SnapshotNeeded, capture.client.delete_snapshot, "two"))["needed_by"] == [
        f"job {job.id}"
    ]
    with api.store._write() as c:
        c.exec_driver_sql("UPDATE jobs SET status = 'stopped'")
    await asyncio.to_thread(capture.client.create_snapshot, captures._again(second, "zwei"))
    await asyncio.to_thread(capture.client.delete_snapshot, "zwei")
    assert (await asyncio.to_thread(capture.client.snapshot, second.digest)).names == ["two"]
    await asyncio.to_thread(capture.client.delete_snapshot, second.digest)
    await asyncio.to_thread(capture.client.delete_snapshot, "one")
    assert (await asyncio.to_thread(capture.client.snapshots)).items == []
    assert set(Layout(tmp_path / "service/snapshots").tags()) == {
        f"{kind}-{first.base[7:]}" for kind in ("snapshot", "state") if first.base
    }
    layout = Layout(tmp_path / "service/snapshots")
    swept = layout.sweep(grace=0)
    assert {first.layers[-1].digest, second.layers[-1].digest, first.state} <= set(swept.removed)
    assert layout.verify() == [] and layout.has(first.layers[0].digest)
    assert (await capture("again")).new, "it is made again, on the base that is there"


async def test_blobs_are_what_they_should_be_or_nothing(api: Service, tmp_path: Path) -> None:
    user = client(api)
    blobs = tmp_path / "service/snapshots"
    right = f"sha256:{hashlib.sha256(b'right').hexdigest()}"
    params = await refused(errors.LayerInvalid, user.send_blob, b"wrong", right)
    assert params["cause"] == "oci.digest_mismatch"
    await refused(errors.UploadTooLarge, user.send_blob, b"0" * (51 << 20), right)
    for digest in ("sha256:0", "md5:0", "../../etc/passwd", "sha256:" + "A" * 64):
        response = await api.post("blobs", params={"digest": digest}, content=b"x")
        assert response.status_code == 422, digest
    assert not await asyncio.to_thread(user.has_blob, right)

    async def breaks_off() -> AsyncIterator[bytes]:
        yield b"ri"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await api.post("blobs", params={"digest": right}, content=breaks_off())
    async with asyncio.timeout(20):
        while list((blobs / ".new").iterdir()):
            await asyncio.sleep(0.02)
    assert list((blobs / "blobs/sha256").iterdir()) == []
    await asyncio.to_thread(user.send_blob, b"right", right)
    assert await asyncio.to_thread(user.has_blob, right)
    # It is no layer, so no snapshot can be made of it.
    zeros = "sha256:" + "0" * 64
    kind = "application/vnd.oci.image.layer.v1.tar+zstd"
    layer = {"digest": right, "diff_id": zeros, "size": 5, "media_type": kind}
    response = await api.post("snapshots", json={"layers": [layer], "content": zeros, "state": right})
    assert (response.status_code, response.json()["error"]["code"]) == (422, "snapshot.layer_invalid")
    wanted = {"layers": [layer], "content": zeros, "state": right}
    response = await api.post("snapshots", json=wanted, headers={"Accept-Language": "ja"})
    message = response.json()["error"]["message"]
    assert "oci." not in message and "The layer" not in message and "レイヤー" in message


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "sha256:" + "0" * 64, "a\nb", "x" * 64])
async def test_names_that_could_mean_something_else_are_refused(api: Service, home: Home, name: str) -> None:
    zeros = "sha256:" + "0" * 64
    response = await api.post("snapshots", json={"layers": [], "content": zeros, "state": zeros, "name": name})
    assert response.status_code == 422


async def test_a_capture_that_is_killed_leaves_nothing_torn(
    api: Service, home: Home, cache: Path, tmp_path: Path
) -> None:
    # Random data can't be packed, so the writing takes long enough to be met.
    install(home.environment(), cache, wheel(tmp_path, "large", "1.0", os.urandom(30 << 20)))
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from kajiya.client import Client\nfrom kajiya.environment import capture\n"
        "url, root, keep = sys.argv[1:]\n"
        "capture.capture(Client(url, 't-hanako'), Path(root), Path(keep), name='x')\n"
    )
    keep = home.kajiya / "captured"
    argv = [sys.executable, "-c", code, f"{api.http.base_url}{PREFIX}", str(home.environment()), str(keep)]
    process = subprocess.Popen(argv)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None and not list(keep.glob(".layer-*")):
        await asyncio.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert await asyncio.to_thread(process.wait) == -signal.SIGKILL, "it was met while it wrote"
    assert (await asyncio.to_thread(client(api).snapshots)).items == []
    done = await Captures(api, home)("x")
    assert done.new and not list(keep.glob(".layer-*"))
    assert Layout(tmp_path / "service/snapshots").verify() == []


async def test_restore_refuses_what_it_can_not_do(api: Service, home: Home, tmp_path: Path) -> None:
    snapshot = (await Captures(api, home)("x")).snapshot
    user, there = client(api), Home("hanako", tmp_path / "there")
    await refused(errors.InvalidName, restore.restore, user, snapshot, there, "../x")
    await refused(errors.InvalidName, restore.restore, user, snapshot, there, "default")
    gone = snapshot.model_copy(update={"interpreter": ["/nowhere/python3.11"]})
    await refused(errors.InterpreterMissing, restore.restore, user, gone, there)
    bad = snapshot.layers[-1].model_copy(update={"diff_id": "sha256:" + "0" * 64})
    damaged = snapshot.model_copy(update={"layers": [*snapshot.layers[:-1], bad]})
    await refused(errors.DownloadDamaged, restore.restore, user, damaged, there, "bad")
    assert list(there.kajiya.rglob("*")) == [there.kajiya / "envs"], "nothing is left of it"
    await asyncio.to_thread(restore.restore, user, snapshot, there)
    await refused(errors.EnvironmentExists, restore.restore, user, snapshot, there, "x")


async def test_a_change_while_it_is_captured_is_captured_whole(
    api: Service, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = home.environment() / "bin/first-say"
    tries: list[int] = []
    write = captures.write_layer

    def change(*args: Any) -> Any:
        layer = write(*args)
        if not tries:
            path.write_text(path.read_text() + "# changed\n")
        tries.append(1)
        return layer

    monkeypatch.setattr(captures, "write_layer", change)
    done = await Captures(api, home)("x")
    assert len(tries) == 2
    other = Home("hanako", home.path / "other")
    await asyncio.to_thread(restore.restore, client(api), done.snapshot, other, "x")
    assert "# changed" in (other.environment("x") / "bin/first-say").read_text()


async def test_other_tools_unpack_exactly_what_was_captured(
    api: Service, home: Home, cache: Path, tmp_path: Path
) -> None:
    for tool in ("skopeo", "umoci"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed here (Debian: apt-get install skopeo umoci)")
    capture = Captures(api, home)
    await capture("one")
    install(home.environment(), cache, wheel(tmp_path, "first", "1.2", BIG))
    taken = (await capture("two")).snapshot
    tag, copy = f"snapshot-{taken.digest[7:]}", f"oci:{tmp_path}/copy:x"
    source = f"oci:{tmp_path}/service/snapshots:{tag}"
    # The umoci of Debian reads gzip only; skopeo, which reads zstd, makes it that.
    gzip = ["--dest-compress", "--dest-compress-format", "gzip"]
    for argv in (
        ["skopeo", "copy", "--quiet", "--insecure-policy", *gzip, source, copy],
        ["umoci", "unpack", "--rootless", "--image", f"{tmp_path}/copy:x", f"{tmp_path}/bundle"],
    ):
        done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    root = tmp_path / "bundle/rootfs/opt/kajiya/env"
    held = states.unpack(await asyncio.to_thread(client(api).blob, taken.state, states.LARGEST)).entries
    assert {str(p.relative_to(root)) for p in root.rglob("*")} == set(held)
    for path, kept in held.items():
        place = root / path
        if kept.kind == "l":
            assert os.fspath(place.readlink()) == kept.target
        elif kept.kind == "f":
            assert hashlib.sha256(place.read_bytes()).hexdigest() == kept.digest, path
            assert place.stat().st_mode & 0o7777 == kept.mode, path
    assert "first-1.2.dist-info" in {p.name for p in root.glob("lib/python*/site-packages/*")}
