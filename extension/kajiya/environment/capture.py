"""Capture: an environment becomes a snapshot, by a layer of what it has beyond the snapshot before it.

Nothing is torn by a kill: the layer is a temporary file until it is whole, the service keeps a blob only with its
digest, and the snapshot is made last. What was sent and not used is removed by the service.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, cast

from kajiya.environment import Progress, delta, fingerprint, silent
from kajiya.environment import state as states
from kajiya.environment.base import mutex
from kajiya.environment.delta import Delta, Kept
from kajiya.environment.fingerprint import Fingerprint
from kajiya.environment.installed import installed, sites
from kajiya.environment.leftout import Leftout
from kajiya.environment.make import read_mark
from kajiya.errors import DiskFull, EnvironmentChanging, EnvironmentUnreadable, NotFound
from kajiya.oci.errors import ContentChanged, NoSpace
from kajiya.oci.layer import Layer, write
from kajiya.sizes import show_size
from kajiya.types import Package, Page, Reason, Snapshot, SnapshotCreate, SnapshotLayer

LONGEST_CHAIN = 32
"""Layers; a snapshot that would have more is put on the base again, because each layer costs a restore time."""

_TRIES = 3


class Service(Protocol):
    """What of the client is needed here."""

    def snapshots(
        self, text: str = "", limit: int = 50, cursor: str | None = None, content: str | None = None
    ) -> Page[Snapshot]: ...
    def snapshot(self, ref: str) -> Snapshot: ...
    def base_snapshot(self, lock: str) -> Snapshot: ...
    def create_snapshot(self, wanted: SnapshotCreate) -> tuple[Snapshot, bool]: ...
    def has_blob(self, digest: str) -> bool: ...
    def send_blob(self, source: Path | bytes, digest: str) -> None: ...
    def blob(self, digest: str, most: int) -> bytes: ...


@dataclass(frozen=True)
class Look:
    """An environment as it is: what it adds to a base, its state as bytes, and what it has installed."""

    fingerprint: Fingerprint
    delta: Delta
    state: bytes
    content: str
    python: str
    packages: list[Package]

    def create(
        self, name: str | None, environment: str, base: str | None, layers: list[SnapshotLayer], state: str
    ) -> SnapshotCreate:
        """What is asked of the service; `state` is the digest of the blob of the state."""
        return SnapshotCreate(
            name=name,
            environment=environment,
            base=base,
            layers=layers,
            content=self.content,
            state=state,
            interpreter=[link for link in self.delta.links if not _has_control(link)],
            python=self.python,
            packages=self.packages,
        )


@dataclass(frozen=True)
class Captured:
    """A snapshot, whether this capture made it, and what was left out of it."""

    snapshot: Snapshot
    new: bool
    left_out: tuple[Leftout, ...] = ()


def look(
    root: Path, before: Fingerprint | None = None, base: Mapping[str, Kept] | None = None, *, taken: bool = False
) -> Look:
    """Reads an environment and plans its layer; with `taken`, `before` is how it is now and nothing is read again.

    Raises `EnvironmentChanging`, `EnvironmentUnreadable`, `EnvironmentNotMovable`, `EnvironmentNameReserved`.
    """
    present = before if taken and before is not None else fingerprint.take(root, before)
    planned = delta.plan(present, base)
    plain = states.dump(planned.state, planned.moved)
    return Look(
        present,
        planned,
        states.pack(plain),
        f"sha256:{sha256(plain).hexdigest()}",
        _python(root),
        packages_of(root),
    )


def write_layer(planned: Delta, folder: Path) -> Layer:
    """The layer as a file in a folder. Raises `EnvironmentChanging`, `DiskFull`."""
    try:
        return write(planned.items, folder)
    except ContentChanged as e:
        raise EnvironmentChanging(**e.params) from e
    except FileNotFoundError as e:
        raise EnvironmentChanging(path=os.fsdecode(e.filename or "")) from e
    except NoSpace as e:
        raise DiskFull(**e.params) from e


def described(layer: Layer) -> SnapshotLayer:
    """A layer as the service is told of it."""
    kind: Any = layer.media_type
    return SnapshotLayer(digest=layer.digest, diff_id=layer.diff_id, size=layer.size, media_type=kind)


def capture(
    service: Service,
    root: Path,
    keep: Path,
    *,
    name: str | None = None,
    environment: str = "default",
    progress: Progress = silent,
) -> Captured:
    """Captures the environment at `root`; `keep` is a folder in the home for what makes the next capture quick.

    Raises what `look` raises, `DiskFull`, and what the service refuses with: `SnapshotNameTaken` among others.
    """
    for attempt in range(_TRIES):
        try:
            return _alone(service, root, keep, name, environment, progress)
        except EnvironmentChanging:
            # Something is being installed: everything is read again, a moment later.
            if attempt == _TRIES - 1:
                raise
            time.sleep(0.5 * (attempt + 1))
    raise AssertionError


def _alone(
    service: Service, root: Path, keep: Path, name: str | None, environment: str, progress: Progress
) -> Captured:
    if not root.is_dir():
        raise EnvironmentUnreadable(path=str(root), problem="there is no such folder")
    try:
        keep.mkdir(parents=True, exist_ok=True, mode=0o700)
        with mutex(keep / ".mutex"):
            for left in keep.glob(".layer-*"):  # of a capture that was killed; we hold the mutex
                shutil.rmtree(left, ignore_errors=True)
            return _capture(service, root, keep, name, environment, progress)
    except OSError as e:
        if e.errno in (28, 122):  # ENOSPC, EDQUOT
            raise DiskFull(path=str(keep)) from e
        raise


def _capture(
    service: Service, root: Path, keep: Path, name: str | None, environment: str, progress: Progress
) -> Captured:
    progress(Reason(code="capture.looking", params={"environment": environment}))
    print_file, note_file = keep / f"{environment}.fingerprint", keep / f"{environment}.json"
    before = fingerprint.load(_read(print_file))
    present = fingerprint.take(root, before)
    if before is None or present.read or not present.same_as(before):
        _replace(print_file, present.dump())
    note = _note(note_file)
    last: Snapshot | None = None
    if digest := note.get("snapshot"):
        with suppress(NotFound):
            last = service.snapshot(digest)
    if last is not None and note.get("fingerprint") == present.digest:
        if name is not None and name not in last.names:
            last = service.create_snapshot(_again(last, name))[0]
        progress(Reason(code="capture.unchanged", params={"snapshot": shown(last)}))
        return Captured(last, False, present.left_out)
    if last is None or len(last.layers) >= LONGEST_CHAIN:
        last = _base(service, root, progress)
    state = None if last is None else _state(service, last)
    seen = look(root, present, state, taken=True)
    if same := service.snapshots(content=seen.content).items:
        # As it was once before, or as a restored one: nothing is to be written or sent.
        _replace(note_file, json.dumps({"snapshot": same[0].digest, "fingerprint": present.digest}).encode())
        known = same[0]
        if name is not None and name not in known.names:
            known = service.create_snapshot(_again(known, name))[0]
        progress(Reason(code="capture.unchanged", params={"snapshot": shown(known)}))
        return Captured(service.snapshot(known.digest), False, seen.delta.left_out)
    base = last if state is not None else None
    sent: list[SnapshotLayer] = []
    if base is None or not seen.delta.empty:
        sent.append(_send_layer(service, seen.delta, keep, progress))
    state_digest = f"sha256:{sha256(seen.state).hexdigest()}"
    if not service.has_blob(state_digest):
        service.send_blob(seen.state, state_digest)
    if fingerprint.take(root, present).digest != present.digest:
        raise EnvironmentChanging(path=str(root))
    wanted = seen.create(name, environment, base.digest if base else None, sent, state_digest)
    snapshot, new = service.create_snapshot(wanted)
    _replace(note_file, json.dumps({"snapshot": snapshot.digest, "fingerprint": present.digest}).encode())
    how = "capture.done" if new else "capture.unchanged"
    params: dict[str, Any] = {"snapshot": shown(snapshot), "packages": len(seen.packages)}
    params |= {"added": show_size(snapshot.added), "size": show_size(snapshot.size)}
    progress(Reason(code=how, params=params))
    return Captured(snapshot, new, seen.delta.left_out)


def shown(snapshot: Snapshot) -> str:
    """A snapshot as people call it: its name, else the beginning of its digest."""
    return snapshot.names[0] if snapshot.names else snapshot.digest[:19]


def packages_of(root: Path) -> list[Package]:
    """What is installed in an environment, by normalised name."""
    found = installed(sites(root)).installed
    return [Package(name=one.name[:200], version=one.version[:200]) for one in found]


# --- the steps
def _again(last: Snapshot, name: str) -> SnapshotCreate:
    """The same snapshot, for another name of it."""
    kept = {"environment", "base", "content", "state", "interpreter", "python", "packages"}
    return SnapshotCreate(name=name, layers=[], **{k: getattr(last, k) for k in kept})


def _base(service: Service, root: Path, progress: Progress) -> Snapshot | None:
    lock = (read_mark(root) or {}).get("base", "")
    if len(lock) != 64:
        return None
    progress(Reason(code="capture.base"))
    with suppress(NotFound):
        return service.base_snapshot(lock)
    return None


def _state(service: Service, snapshot: Snapshot) -> dict[str, Kept] | None:
    """What a snapshot holds; None where that can't be known, so that the next layer holds everything."""
    try:
        return states.unpack(service.blob(snapshot.state, states.LARGEST)).entries
    except (NotFound, ValueError):
        return None


def _send_layer(service: Service, planned: Delta, keep: Path, progress: Progress) -> SnapshotLayer:
    counts: dict[str, Any] = {k: len(getattr(planned, k)) for k in ("added", "changed", "removed")}
    progress(Reason(code="capture.writing", params=counts | {"size": show_size(planned.size)}))
    with tempfile.TemporaryDirectory(dir=keep, prefix=".layer-") as folder:
        layer = write_layer(planned, Path(folder))
        if not service.has_blob(layer.digest):
            progress(Reason(code="capture.sending", params={"size": show_size(layer.size)}))
            service.send_blob(layer.path, layer.digest)
        return described(layer)


def _python(root: Path) -> str:
    for line in _read(root / "pyvenv.cfg").decode("utf-8", "replace").splitlines():
        key, _, value = line.partition("=")
        if key.strip() in ("version", "version_info"):
            return value.strip()[:64]
    return ""


def _has_control(text: str) -> bool:
    return not text.isprintable()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _note(path: Path) -> dict[str, str]:
    try:
        value: Any = json.loads(_read(path))
    except ValueError:
        return {}
    return {str(k): str(v) for k, v in cast("dict[Any, Any]", value).items()} if isinstance(value, dict) else {}


def _replace(path: Path, data: bytes) -> None:
    new = path.with_name(f".new-{os.getpid()}-{path.name}")
    new.write_bytes(data)
    new.replace(path)
