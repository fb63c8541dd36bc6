"""Images of captured environments: received as blobs, checked, put together, kept in an image layout.

The layout says what is stored, the store says whose it is. The image of a snapshot has the base's layers below its own,
and every part of it was checked before it was believed.
"""

import hashlib
import os
import platform
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from kajiya.environment import capture
from kajiya.environment.delta import PREFIX
from kajiya.errors import BlobNotFound, DiskFull, LayerInvalid, SnapshotNotFound, UploadTooLarge
from kajiya.oci.errors import BlobMissing, DigestMismatch, NoSpace, OciError
from kajiya.oci.extract import Blob, inspect
from kajiya.oci.layer import Layer, sync
from kajiya.oci.streams import MEDIA_TYPES
from kajiya.sizes import show_size
from kajiya.types import Snapshot, SnapshotCreate, SnapshotLayer
from kajiya_hub.oci import image
from kajiya_hub.oci.image import Descriptor, Image, NewLayer
from kajiya_hub.oci.layout import Layout
from kajiya_hub.store.snapshots import OURS
from kajiya_hub.store.store import Store

STATE = "application/vnd.kajiya.environment.state.v1"
CREATED = "1980-01-01T00:00:00Z"
"""One time for all, so that the same environment gives the same digest."""

_PATH = f"{PREFIX}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# As the image specification names processors: Go's names (https://go.dev/doc/install/source#environment).
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class SnapshotImages:
    """The images of all owners' snapshots. `base` gives the base's environment for the digest of its lock, or None."""

    def __init__(
        self, path: Path, store: Store, base: Callable[[str], Path | None] = lambda lock: None, most: int = 20 << 30
    ) -> None:
        self._layout = Layout(path).create()
        self._store = store
        self._base = base
        self._most = most
        # Names in the layout and rows in the store change together.
        self._mutex = threading.Lock()
        self._making_base = threading.Lock()

    # --- blobs
    def receive(self, owner: str, digest: str, chunks: Iterable[bytes]) -> int:
        """Stores a blob as it comes, if it is what it should be; gives its size. Nothing stays of what is refused.

        Raises `LayerInvalid`, `UploadTooLarge`, `DiskFull`.
        """
        new = self._layout.new / f"upload-{os.getpid()}-{os.urandom(6).hex()}"
        found, size = hashlib.sha256(), 0
        try:
            with new.open("xb") as file:
                for chunk in chunks:
                    size += len(chunk)
                    if size > self._most:
                        raise UploadTooLarge(limit=show_size(self._most))
                    found.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            actual = f"sha256:{found.hexdigest()}"
            if actual != digest:
                raise _refused(DigestMismatch(expected=digest, actual=actual))
            self._layout.add_layer(Layer(new, MEDIA_TYPES["zstd"], digest, size, "", 0, 0))
            self._store.note_upload(owner, digest, size)
        except BaseException as e:
            with suppress(OSError):
                new.unlink()
            if isinstance(e, OSError) and e.errno in (28, 122):  # ENOSPC, EDQUOT
                raise DiskFull(path="the data directory") from e
            raise
        return size

    def has(self, owner: str, digest: str) -> bool:
        """Whether the owner need not send a blob. What only others sent does not count, as the answer would tell."""
        return self._store.may_use_blob(owner, digest) and self._layout.has(digest)

    def open(self, owner: str, digest: str) -> BinaryIO:
        """A blob of one of the owner's snapshots. Raises `BlobNotFound`."""
        if not self._store.may_read_blob(owner, digest):
            raise BlobNotFound(digest=digest)
        try:
            return self._layout.blob(digest).open("rb")
        except (OciError, FileNotFoundError) as e:
            raise BlobNotFound(digest=digest) from e

    # --- snapshots
    def create(self, owner: str, wanted: SnapshotCreate) -> tuple[Snapshot, bool]:
        """Makes the image and keeps it; the flag says whether it is new.

        Raises `SnapshotNotFound` (the base), `BlobNotFound`, `LayerInvalid`, `SnapshotNameTaken`, `DiskFull`.
        """
        same = self._store.snapshot_of_content(wanted.content, owner)
        if wanted.name is not None:
            self._store.names_free(wanted.name, owner, same.digest if same else None)
        if same is not None:
            return self._store.add_snapshot(owner, wanted, same.digest, same.layers, same.added)
        below = None if wanted.base is None else self._store.snapshot(wanted.base, owner)
        if below is None and not wanted.layers:
            raise LayerInvalid(problem="there is no layer")
        for layer in wanted.layers:
            self._check(owner, layer, wanted.interpreter)
        if not self.has(owner, wanted.state):
            raise BlobNotFound(digest=wanted.state)
        try:
            made = self._image(below, wanted)
            with self._mutex:
                found = self._keep(made, wanted.state)
                layers = [*(below.layers if below else ()), *wanted.layers]
                added = sum(layer.size for layer in wanted.layers)
                return self._store.add_snapshot(owner, wanted, found.digest, layers, added)
        except BlobMissing as e:
            raise BlobNotFound(**e.params) from e
        except NoSpace as e:
            raise DiskFull(path="the data directory") from e
        except OciError as e:
            raise _refused(e) from e

    def delete(self, owner: str, ref: str) -> None:
        """Forgets a snapshot; its blobs go with the next sweep. Raises `SnapshotNotFound`, `SnapshotNeeded`."""
        with self._mutex:
            gone = self._store.delete_snapshot(ref, owner)
            if gone is not None:
                for tag in (_tag("snapshot", gone), _tag("state", gone)):
                    with suppress(OciError):
                        self._layout.untag(tag)

    def base(self, lock: str) -> Snapshot:
        """The snapshot of what environments made from a lock begin with; made by the first who asks.

        Raises `SnapshotNotFound` where there is no such base.
        """
        name = f"base-{lock[:16]}"
        with self._making_base:
            with suppress(SnapshotNotFound):
                return self._store.snapshot(name, OURS)
            place = self._base(lock)
            if place is None:
                raise SnapshotNotFound(snapshot=name)
            taken = capture.look(place)
            layer = capture.write_layer(taken.delta, self._layout.new)
            self._layout.add_layer(layer)
            state = self._layout.add(taken.state, STATE)
            self._store.note_upload(OURS, layer.digest, layer.size)
            self._store.note_upload(OURS, state.digest, state.size)
            return self.create(OURS, taken.create(name, "base", None, [capture.described(layer)], state.digest))[0]

    def sweep(self) -> None:
        """Removes blobs that nothing needs, a day after they came. Raises `OciError`, `OSError`."""
        self._layout.sweep()

    # --- inside
    def _check(self, owner: str, layer: SnapshotLayer, interpreter: list[str]) -> None:
        if not self.has(owner, layer.digest):
            raise BlobNotFound(digest=layer.digest)
        blob = Blob(self._layout.blob(layer.digest), layer.digest, layer.media_type, layer.size, layer.diff_id)
        try:
            inspect(blob, inside=os.fsencode(PREFIX.strip("/")), links=[os.fsencode(path) for path in interpreter])
        except OciError as e:
            raise _refused(e) from e

    def _image(self, below: Snapshot | None, wanted: SnapshotCreate) -> Image:
        if below is None:
            machine = platform.machine()
            variables = [f"PATH={_PATH}", f"VIRTUAL_ENV={PREFIX}"]
            base = image.scratch(_ARCHITECTURES.get(machine, machine), env=variables, created=CREATED)
        else:
            base = self._layout.image(below.digest)
        new = [NewLayer(Descriptor(x.media_type, x.digest, x.size), x.diff_id, "kajiya capture") for x in wanted.layers]
        return image.append(base, new, created=CREATED)

    def _keep(self, made: Image, state: str) -> Descriptor:
        found = self._layout.add_image(made)
        size = self._layout.blob(state).stat().st_size
        told = image.artifact(STATE, [Descriptor(STATE, state, size)], subject=found)
        self._layout.add(b"{}", image.EMPTY)
        self._layout.tag(_tag("state", found.digest), self._layout.add(told, image.MANIFEST))
        self._layout.tag(_tag("snapshot", found.digest), found)
        sync(self._layout.path)
        return found


def _tag(kind: str, digest: str) -> str:
    return f"{kind}-{digest.removeprefix('sha256:')}"


def _refused(error: OciError) -> LayerInvalid:
    return LayerInvalid(problem=error.code, cause=error.code, details=error.params)
