"""The part of `Client` that is about snapshots: listed, made, deleted, and their blobs sent and fetched."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import httpx

from kajiya.connection import Connection
from kajiya.errors import BlobNotFound, DownloadDamaged, SnapshotNotFound
from kajiya.types import Page, Snapshot, SnapshotCreate

CHUNK = 256 * 1024
TRANSFER_SECONDS = 300.0
MAKE_SECONDS = 900.0
"""How long the service may check what was sent, or make the base."""


class SnapshotCalls:
    """See `Client`."""

    _line: Connection

    def snapshots(
        self, text: str = "", limit: int = 50, cursor: str | None = None, content: str | None = None
    ) -> Page[Snapshot]:
        """Your snapshots, the newest first, without their packages; with `content`, only that of the environment."""
        params = {"q": text, "limit": limit, "cursor": cursor, "content": content}
        return self._line.get(Page[Snapshot], "api/snapshots", {k: v for k, v in params.items() if v not in (None, "")})

    def snapshot(self, ref: str) -> Snapshot:
        """A snapshot by name or digest. Raises `SnapshotNotFound`, also for another user's."""
        return self._line.get(Snapshot, f"api/snapshots/{_ref(ref)}")

    def base_snapshot(self, lock: str) -> Snapshot:
        """What environments made from a lock (sha256 in hex) begin with. Raises `SnapshotNotFound`."""
        answer = self._line.send("GET", f"api/base-snapshots/{quote(lock, safe='')}", timeout=MAKE_SECONDS)
        return self._line.parse(Snapshot, answer)

    def create_snapshot(self, wanted: SnapshotCreate) -> tuple[Snapshot, bool]:
        """Makes a snapshot of blobs that were sent; the flag says whether it is new. The same gives the same."""
        body = wanted.model_dump(mode="json", exclude_none=True)
        answer = self._line.send("POST", "api/snapshots", make=lambda: {"json": body}, timeout=MAKE_SECONDS)
        return self._line.parse(Snapshot, answer), answer.status_code == 201

    def delete_snapshot(self, ref: str) -> None:
        """Deletes a snapshot, or one of its several names. Raises `SnapshotNotFound`, `SnapshotNeeded`."""
        tries: list[int] = []

        def make() -> dict[str, object]:
            tries.append(1)
            return {}

        try:
            self._line.send("DELETE", f"api/snapshots/{_ref(ref)}", make=make)
        except SnapshotNotFound:
            # Gone by the first try, whose answer got lost.
            if len(tries) == 1:
                raise

    # --- blobs
    def has_blob(self, digest: str) -> bool:
        """Whether a blob needs no sending."""
        try:
            self._line.send("GET", f"api/blobs/{digest}/there")
        except BlobNotFound:
            return False
        return True

    def send_blob(self, source: Path | bytes, digest: str, progress: Callable[[int, int], None] | None = None) -> None:
        """Sends a file or bytes. Raises `LayerInvalid` where they have another digest, `UploadTooLarge`."""
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        self._line.send(
            "POST",
            "api/blobs",
            make=lambda: {
                "params": {"digest": digest},
                "content": _chunks(source, size, progress),
                "headers": {"Content-Type": "application/octet-stream", "Content-Length": str(size)},
            },
            timeout=TRANSFER_SECONDS,
        )

    def blob(self, digest: str, most: int) -> bytes:
        """A small blob, verified. Raises `BlobNotFound`, `DownloadDamaged`, also for more than `most` bytes."""
        out = bytearray()

        def take(answer: httpx.Response) -> None:
            out.clear()
            for chunk in answer.iter_raw(CHUNK):
                out.extend(chunk)
                if len(out) > most:
                    raise DownloadDamaged(path=digest)

        self._line.send("GET", f"api/blobs/{digest}", timeout=TRANSFER_SECONDS, take=take)
        if f"sha256:{hashlib.sha256(out).hexdigest()}" != digest:
            raise DownloadDamaged(path=digest)
        return bytes(out)

    def fetch_blob(self, digest: str, to: Path, progress: Callable[[int, int], None] | None = None) -> Path:
        """Saves a blob as a new file, verified. Raises `BlobNotFound`, `DownloadDamaged`, `OSError`."""

        def take(answer: httpx.Response) -> None:
            found, done = hashlib.sha256(), 0
            total = int(answer.headers.get("content-length") or 0)
            with to.open("wb") as out:
                for chunk in answer.iter_raw(CHUNK):
                    out.write(chunk)
                    found.update(chunk)
                    done += len(chunk)
                    if progress is not None:
                        progress(done, total)
            if f"sha256:{found.hexdigest()}" != digest:
                to.unlink()
                raise DownloadDamaged(path=digest)

        self._line.send("GET", f"api/blobs/{digest}", timeout=TRANSFER_SECONDS, take=take)
        return to


def _ref(ref: str) -> str:
    return quote(ref, safe="") or "_"


def _chunks(source: Path | bytes, size: int, progress: Callable[[int, int], None] | None) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    done = 0
    with source.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
            done += len(chunk)
            if progress is not None:
                progress(done, size)
