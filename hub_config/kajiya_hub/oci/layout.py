"""An image layout on disk: blobs by digest, and an index with names, that `skopeo` and `umoci` read.

https://github.com/opencontainers/image-spec/blob/main/image-layout.md. Every file is written beside its place, brought
to the disk and renamed, so that a kill or a full disk leaves what was there before. Changes of the index and sweeps
exclude each other by a mutex (flock), between processes too.
"""

import fcntl
import io
import os
import re
import stat
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kajiya.oci.errors import (
    BlobMissing,
    LayoutInvalid,
    ManifestInvalid,
    ManifestTooLarge,
    NoSpace,
    OciError,
    TagMissing,
)
from kajiya.oci.extract import verify
from kajiya.oci.layer import Layer, sync
from kajiya_hub.oci import image, validate
from kajiya_hub.oci.image import Descriptor, Image

GRACE = 24 * 3600.0
"""Seconds for which a blob that nothing names yet is left alone: something is being made of it."""

_MARK = b'{"imageLayoutVersion":"1.0.0"}'
# As the image specification has it for org.opencontainers.image.ref.name, with a length that a file name could have.
_NAME = re.compile(r"(?=.{1,255}\Z)[A-Za-z0-9]+(?:[-._:@/+]+[A-Za-z0-9]+)*")


@dataclass(frozen=True)
class Swept:
    """What a sweep removed, or would remove, and what it left: digests, and bytes."""

    removed: tuple[str, ...]
    bytes: int
    kept: int
    waiting: int
    """Blobs that nothing names, but that are younger than the grace period."""


class Layout:
    """One layout; any number of processes may use it at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blobs = path / "blobs" / "sha256"
        self.new = path / ".new"
        """Where layers are written before they are added; on the same file system as the blobs."""

    def create(self) -> "Layout":
        """Makes an empty layout, or finds the one that is there. Raises `NoSpace`, `OSError`."""
        for folder in (self.path, self.path / "blobs", self.blobs, self.new):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._mutex():
            if not (self.path / "index.json").exists():
                self._replace(self.path / "index.json", image.index([]))
            if not (self.path / "oci-layout").exists():
                self._replace(self.path / "oci-layout", _MARK)
        return self

    # --- blobs
    def blob(self, digest: str) -> Path:
        """Where a blob lies. Raises `DigestInvalid`, `BlobMissing`."""
        path = self.blobs / validate.digest(digest).removeprefix("sha256:")
        if not path.is_file():
            raise BlobMissing(digest=digest)
        return path

    def has(self, digest: str) -> bool:
        """Whether a blob is there; one that is counts as new again, so that no sweep takes it from under its user."""
        with self._mutex(shared=True):
            try:
                os.utime(self.blob(digest))
            except (BlobMissing, FileNotFoundError):
                return False
            return True

    def read(self, digest: str, limit: int = validate.MAX_CONFIG) -> bytes:
        """A small blob, verified. Raises `BlobMissing`, `ManifestTooLarge`, `DigestMismatch`."""
        path = self.blob(digest)
        with path.open("rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ManifestTooLarge(size=path.stat().st_size, limit=limit)
        verify(io.BytesIO(data), digest)
        return data

    def add(self, data: bytes, media_type: str) -> Descriptor:
        """Adds a small blob. Raises `NoSpace`, `OSError`."""
        found = image.describe(data, media_type)
        if not self.has(found.digest):
            self._replace(self.blobs / found.digest.removeprefix("sha256:"), data)
        return found

    def add_layer(self, layer: Layer) -> Descriptor:
        """Takes over a layer that was written below `new` or elsewhere on this file system; its file is moved."""
        found = Descriptor(layer.media_type, layer.digest, layer.size)
        if self.has(layer.digest):
            layer.path.unlink(missing_ok=True)
            return found
        # The time is when it came here, not when its writing began: the grace period counts from it.
        os.utime(layer.path)
        layer.path.replace(self.blobs / validate.digest(layer.digest).removeprefix("sha256:"))
        sync(self.blobs)
        return found

    def add_image(self, made: Image) -> Descriptor:
        """Adds configuration and manifest, in this order; the layers must be there. Raises `BlobMissing`."""
        for layer in made.layers:
            if not self.has(layer.digest):
                raise BlobMissing(digest=layer.digest)
        self.add(made.config, image.CONFIG)
        return self.add(made.manifest, made.media_type)

    def image(self, digest: str) -> Image:
        """An image by the digest of its manifest, validated. Raises `BlobMissing`, `ManifestInvalid`."""
        data = self.read(digest, validate.MAX_MANIFEST)
        manifest = validate.manifest(data, expected=digest)
        config = self.read(manifest["config"]["digest"])
        validate.config(config, manifest)
        return Image(config, data, manifest.get("mediaType", image.MANIFEST))

    # --- names
    def tags(self) -> dict[str, Descriptor]:
        """All names, and what they name. Raises `LayoutInvalid`."""
        return {t: d for d in self.manifests() if (t := d.annotations.get(image.REF_NAME))}

    def manifests(self) -> list[Descriptor]:
        """All that the index lists, with a name or without."""
        path = self.path / "index.json"
        try:
            return [image.descriptor(entry) for entry in validate.index(path.read_bytes())["manifests"]]
        except (OSError, ManifestInvalid) as e:
            raise LayoutInvalid(path=str(path), problem=_why(e)) from e

    def resolve(self, tag: str) -> Descriptor:
        """What a name names. Raises `TagMissing`."""
        found = self.tags().get(tag)
        if found is None:
            raise TagMissing(tag=tag)
        return found

    def tag(self, name: str, found: Descriptor) -> None:
        """Gives a manifest a name, taking it from another that had it. Raises `ManifestInvalid`, `BlobMissing`."""
        if not _NAME.fullmatch(name):
            raise ManifestInvalid(problem=f"{name[:80]} is not a name that an image can have")
        if not self.has(found.digest):
            raise BlobMissing(digest=found.digest)
        named = Descriptor(
            found.media_type,
            found.digest,
            found.size,
            dict(found.annotations) | {image.REF_NAME: name},
            found.platform,
            found.artifact_type,
        )
        self._change(lambda listed: [*(d for d in listed if d.annotations.get(image.REF_NAME) != name), named])

    def untag(self, name: str) -> None:
        """Takes a name away; the blobs stay until a sweep. Raises `TagMissing`."""

        def without(listed: list[Descriptor]) -> list[Descriptor]:
            left = [d for d in listed if d.annotations.get(image.REF_NAME) != name]
            if len(left) == len(listed):
                raise TagMissing(tag=name)
            return left

        self._change(without)

    # --- sweeping
    def sweep(self, pinned: Iterable[str] = (), *, grace: float = GRACE, dry_run: bool = False) -> Swept:
        """Removes what no name and no pinned digest needs, if it is older than the grace period in seconds.

        Where something that is needed can't be read nothing is removed at all: it might name what would be taken.
        Raises `LayoutInvalid`, `BlobMissing`.
        """
        with self._mutex():
            needed = self._reachable([*(d.digest for d in self.manifests()), *pinned])
            before = time.time() - grace
            removed: list[str] = []
            size = kept = waiting = 0
            for path in sorted(self.blobs.iterdir()):
                digest = f"sha256:{path.name}"
                status = path.lstat()
                if not stat.S_ISREG(status.st_mode):
                    continue
                if digest in needed:
                    kept += 1
                elif status.st_mtime > before:
                    waiting += 1
                else:
                    removed.append(digest)
                    size += status.st_size
                    if not dry_run:
                        path.unlink()
            for path in self.new.iterdir():  # of a writer that was killed
                if not dry_run and path.stat().st_mtime <= before:
                    path.unlink()
        return Swept(tuple(removed), size, kept, waiting)

    def verify(self) -> list[str]:
        """The digests of blobs whose content is another, or that are missing though they are needed."""
        wrong: list[str] = []
        for path in sorted(self.blobs.iterdir()):
            with path.open("rb") as file:
                try:
                    verify(file, f"sha256:{path.name}")
                except OciError:
                    wrong.append(f"sha256:{path.name}")
        needed = self._reachable([d.digest for d in self.manifests()], unread=wrong)
        return sorted({*wrong, *(d for d in needed if not (self.blobs / d.removeprefix("sha256:")).is_file())})

    def _reachable(self, roots: Iterable[str], unread: list[str] | None = None) -> set[str]:
        """Everything that is needed; what can't be read is noted in `unread`, or else an error."""
        needed: set[str] = set()
        read: set[str] = (
            set()
        )  # apart from `needed`: a manifest can be named as a layer of another, to hide what it names
        todo = [validate.digest(d) for d in roots]
        while todo:
            digest = todo.pop()
            if digest in read:
                continue
            read.add(digest)
            needed.add(digest)
            try:
                manifests, leaves = _named(self.read(digest, validate.MAX_MANIFEST))
            except OciError as e:
                if unread is None:
                    raise LayoutInvalid(path=digest, problem=_why(e)) from e
                unread.append(digest)
                continue
            needed |= leaves
            todo += manifests
        return needed

    # --- inside
    def _change(self, change: Callable[[list[Descriptor]], list[Descriptor]]) -> None:
        with self._mutex():
            self._replace(self.path / "index.json", image.index(change(self.manifests())))

    @contextmanager
    def _mutex(self, shared: bool = False) -> Generator[None]:
        fd = os.open(self.path / ".mutex", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _replace(self, path: Path, data: bytes) -> None:
        new = self.new / f"{os.getpid()}-{os.urandom(6).hex()}"
        try:
            with new.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
            sync(path.parent)
        except BaseException as e:
            with suppress(OSError):
                new.unlink()
            if isinstance(e, OSError) and e.errno in (28, 122):  # ENOSPC, EDQUOT
                raise NoSpace(path=str(self.path)) from e
            raise


def _named(data: bytes) -> tuple[list[str], set[str]]:
    """The manifests that a manifest or an index names, and the blobs that name nothing more."""
    try:
        value = validate.index(data)
    except ManifestInvalid:
        value = validate.manifest(data)
        # What a manifest is about is not needed by it: a list of packages does not keep its image alive.
        return [], {value["config"]["digest"], *(layer["digest"] for layer in value["layers"])}
    return [entry["digest"] for entry in value["manifests"]], set()


def _why(error: Exception) -> str:
    if isinstance(error, OciError):
        return str(error.params.get("problem", error.code))
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return str(error)
