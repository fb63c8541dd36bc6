"""Reading an attempt's event log and printed log as they grow. Their owner may write there, so nothing is trusted."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from kajiya.errors import AttemptNotFound, InvalidPath
from kajiya.runner.events import FILE, Event, containers, decode
from kajiya_hub.store.files import JobFiles

CHUNK = 256 * 1024
LINE_BYTES = 32 * 1024**2
# Some twice what a runner writes at most; a job's own code may write more there than any runner.
ASSEMBLE_BYTES = 512 * 1024**2
ASSEMBLE_CONTAINERS = 2_000_000
KEPT = ("output", "update_display", "widget_state")
LOG = "log.txt"


@dataclass(frozen=True)
class Line:
    """One event, and the byte offset after its line."""

    event: Event
    offset: int
    containers: int = 0


@dataclass(frozen=True)
class Lines:
    """Some events, where to go on from, and whether more is there already."""

    lines: list[Line]
    offset: int
    more: bool


def open_or_none(files: JobFiles, job: str, attempt: int, name: str) -> BinaryIO | None:
    """A file of an attempt, or None where there is none, or something there that is no plain file."""
    try:
        return files.open_attempt(job, attempt, name)
    except (FileNotFoundError, AttemptNotFound, InvalidPath):
        return None


def read_events(files: JobFiles, job: str, attempt: int, offset: int) -> Lines:
    """The events from a byte offset on, some 256 KiB at a time; a torn last line waits to be finished."""
    file = open_or_none(files, job, attempt, FILE)
    if file is None:
        return Lines([], offset, False)
    with file:
        return lines_of(file, offset)


def lines_of(file: BinaryIO, offset: int) -> Lines:
    """See `read_events`. A line longer than 32 MiB is passed over, and so is what is no event."""
    # A place that a client made up: file systems refuse to go there.
    if offset > file.seek(0, os.SEEK_END):
        return Lines([], offset, False)
    file.seek(offset)
    data = file.read(CHUNK)
    full = len(data) == CHUNK
    end = data.rfind(b"\n") + 1
    while end == 0 and full:
        if len(data) > LINE_BYTES:
            return Lines([], _after_newline(file, offset + len(data)), True)
        chunk = file.read(CHUNK)
        full = len(chunk) == CHUNK
        # Only the new chunk is searched: else a long line would cost its square.
        found = chunk.rfind(b"\n") + 1
        end = len(data) + found if found else 0
        data += chunk
    out: list[Line] = []
    at = offset
    for line in data[:end].split(b"\n")[:-1] if end else ():
        at += len(line) + 1
        event = decode(line)
        if event is not None:
            out.append(Line(event, at, containers(line)))
    return Lines(out, offset + end, full)


def _after_newline(file: BinaryIO, offset: int) -> int:
    file.seek(offset)
    while chunk := file.read(CHUNK):
        found = chunk.find(b"\n")
        if found >= 0:
            return offset + found + 1
        offset += len(chunk)
    return offset


def all_events(file: BinaryIO) -> Iterator[Event]:
    """All events of a log, up to 512 MiB of it, a chunk at a time; of what it shows, at most 2 million parts."""
    at = held = 0
    while at < ASSEMBLE_BYTES:
        read = lines_of(file, at)
        for line in read.lines:
            if line.event["type"] in KEPT:
                held += line.containers
                if held > ASSEMBLE_CONTAINERS:
                    continue
            yield line.event
        if read.offset == at:
            return
        at = read.offset


def size_of(files: JobFiles, job: str, attempt: int, name: str) -> int:
    """The size of an attempt's file in bytes; 0 where there is none."""
    try:
        return (files.attempt(job, attempt) / name).lstat().st_size
    except OSError:
        return 0
