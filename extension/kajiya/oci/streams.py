"""Compressed streams: zstd and gzip, through buffers of constant size, counted and hashed."""

import hashlib
import sys
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, Literal, Protocol

from kajiya.oci.errors import BlobDamaged, BlobTruncated, Bomb, TooLarge

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Compression = Literal["zstd", "gzip"]

# https://github.com/opencontainers/image-spec/blob/main/layer.md
MEDIA_TYPES: dict[Compression, str] = {
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
}

CHUNK = 1 << 20
_WINDOW_LOG = 27  # 128 MiB: what a reader must be ready to hold, as the zstd tool's own default


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class Sink:
    """Takes a tar's bytes, writes them compressed, and knows both digests and sizes at the end."""

    def __init__(self, file: BinaryIO, compression: Compression, level: int, threads: int) -> None:
        self._file = file
        self._compressor = _compressor(compression, level, threads)
        self._pending: list[bytes] = []
        self._held = 0
        self._plain = hashlib.sha256()
        self._packed = hashlib.sha256()
        self.plain_size = 0
        self.size = 0

    def write(self, data: bytes) -> None:
        """Takes the next bytes; raises `OSError`."""
        self._pending.append(data)
        self._held += len(data)
        if self._held >= CHUNK:
            self._flush()

    def close(self) -> None:
        """Writes what is left; the file stays open."""
        self._flush()
        self._put(self._compressor.flush())

    @property
    def diff_id(self) -> str:
        return f"sha256:{self._plain.hexdigest()}"

    @property
    def digest(self) -> str:
        return f"sha256:{self._packed.hexdigest()}"

    def _flush(self) -> None:
        data = b"".join(self._pending)
        self._pending, self._held = [], 0
        self._plain.update(data)
        self.plain_size += len(data)
        self._put(self._compressor.compress(data))

    def _put(self, data: bytes) -> None:
        if data:
            self._packed.update(data)
            self._file.write(data)
            self.size += len(data)


def _compressor(compression: Compression, level: int, threads: int) -> _Compressor:
    if compression == "gzip":
        # No name and no time in the header, so that the same content gives the same bytes.
        return zlib.compressobj(level, zlib.DEFLATED, 31)
    parameters = zstd.CompressionParameter
    options: dict[int, int] = {
        parameters.compression_level: level,
        parameters.checksum_flag: 1,
        # At least one worker: with none the bytes would differ from those of several.
        parameters.nb_workers: max(1, threads),
    }
    return zstd.ZstdCompressor(options=options)


class Source:
    """Gives a tar's bytes out of a compressed file; reads no more than it must, and counts.

    Raises `BlobTruncated`, `BlobDamaged`, `TooLarge` beyond `most` bytes, and `Bomb` where more than `floor` bytes
    come out and they are more than `ratio` times those that went in.
    """

    def __init__(self, file: BinaryIO, compression: Compression, most: int, ratio: int, floor: int) -> None:
        self._file = file
        self._new: Callable[[], Any] = _gunzip if compression == "gzip" else _unzstd
        self._gzip = compression == "gzip"
        self._error: tuple[type[Exception], ...] = (zlib.error,) if self._gzip else (zstd.ZstdError, EOFError)
        self._decompressor: Any = self._new()
        self._fed = b""
        self._buffer = b""
        self._at = 0
        self._most, self._ratio, self._floor = most, ratio, floor
        self._hash = hashlib.sha256()
        self.read_size = 0
        self.plain_size = 0
        self._end = False

    @property
    def diff_id(self) -> str:
        """Of all bytes that came out so far."""
        return f"sha256:{self._hash.hexdigest()}"

    def read(self, count: int) -> bytes:
        """The next `count` bytes; fewer only at the end."""
        available = self._buffer[self._at : self._at + count]
        self._at += len(available)
        if len(available) == count:
            return available
        parts, missing = [available], count - len(available)
        while missing and self._fill():
            part = self._buffer[:missing]
            self._at = len(part)
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def rest_is_padding(self) -> bool:
        """Reads to the end; whether only zeros were left, as after the last block of a tar."""
        while data := self.read(CHUNK):
            if data.count(0) != len(data):
                return False
        return True

    def _fill(self) -> bool:
        self._buffer, self._at = b"", 0
        while not self._end:
            if self._decompressor.eof:
                if not self._next_frame():
                    break
                continue
            data = self._decompress()
            if data:
                self._count(data)
                self._buffer = data
                return True
        return False

    def _decompress(self) -> bytes:
        feed, self._fed = self._fed, b""
        over = False
        if not feed and (self._gzip or self._decompressor.needs_input):
            feed = self._file.read(CHUNK)
            self.read_size += len(feed)
            over = not feed
        try:
            data: bytes = self._decompressor.decompress(feed, CHUNK)
        except self._error as e:
            raise BlobDamaged(problem=str(e)) from e
        # No data alone says nothing: the bytes held may have ended within a block.
        if over and not data and not self._decompressor.eof:
            raise BlobTruncated()
        if self._gzip and not self._decompressor.eof:
            self._fed = self._decompressor.unconsumed_tail
        return data

    def _next_frame(self) -> bool:
        # Several frames in a row are one stream, in both formats.
        left: bytes = self._decompressor.unused_data or self._file.read(CHUNK)
        if not self._decompressor.unused_data:
            self.read_size += len(left)
        if not left:
            self._end = True
            return False
        self._decompressor = self._new()
        self._fed = left
        return True

    def _count(self, data: bytes) -> None:
        self._hash.update(data)
        self.plain_size += len(data)
        if self.plain_size > self._most:
            raise TooLarge(what="the unpacked layer", limit=self._most)
        if self.plain_size > self._floor and self.plain_size > self._ratio * max(self.read_size, 1):
            raise Bomb(ratio=self._ratio)


def _gunzip() -> Any:
    return zlib.decompressobj(31)


def _unzstd() -> Any:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
