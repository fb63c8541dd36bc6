"""How far an attempt is, by its growing event log."""

import json
import os

import pytest

from kajiya.runner.events import progress
from kajiya.types import Progress
from kajiya_hub.events import LINE, ProgressTail
from kajiya_hub.store.files import JobFiles
from kajiya_hub.store.ids import new_id

EVENTS = [
    {"t": 1, "type": "start", "cells_total": 3, "kernel": "python3", "language": "python"},
    {"t": 1, "type": "cell_start", "cell": 0, "code_index": 0, "source": "x = 1"},
    {"t": 1, "type": "output", "cell": 0, "output": {"text": '"cell_end" "start" ' + "y" * 40_000}},
    {"t": 1, "type": "cell_end", "cell": 0, "status": "ok", "execution_count": 1, "seconds": 0.1},
    {"t": 1, "type": "output", "cell": 0, "output": {"text": '{"type": "cell_end"}'}},
    {"t": 1, "type": "cell_start", "cell": 2, "code_index": 1, "source": "価格 = 2"},
    {"t": 1, "type": "cell_end", "cell": 2, "status": "ok", "execution_count": 2, "seconds": 0.1},
    {"t": 1, "type": "cell_start", "cell": 3, "code_index": 2, "source": "raise"},
    {"t": 1, "type": "end", "status": "notebook_error"},
]
LOG = b"".join(json.dumps(e, ensure_ascii=False).encode() + b"\n" for e in EVENTS)


@pytest.fixture
def files(tmp_path):
    return JobFiles(tmp_path)


@pytest.fixture
def log(files):
    id = new_id()
    folder = files.attempt(id, 1)
    folder.mkdir(parents=True)
    tail = ProgressTail(files, id, 1)
    return folder / "events.jsonl", tail


@pytest.mark.parametrize("step", [1, 7, 100, 5000, len(LOG)])
def test_read_bit_by_bit_it_says_what_the_whole_says(log, step):
    path, tail = log
    done = 0
    with path.open("wb", buffering=0) as f:
        for at in range(0, len(LOG), step):
            if step == 1 and 600 < at < 40_000:
                continue  # the middle of the long line, in one piece below
            piece = LOG[done : at + step]
            f.write(piece)
            done = at + step
            complete = [e for e, end in zip(EVENTS, _ends(), strict=True) if end <= done]
            assert tail.read() == progress(complete)
    assert tail.read() == progress(EVENTS) == Progress(cells_total=3, cells_done=2)
    assert tail.offset == len(LOG)


def _ends():
    at = 0
    for line in LOG.split(b"\n")[:-1]:
        at += len(line) + 1
        yield at


def test_nothing_there_is_no_progress(log, files):
    _, tail = log
    assert tail.read() == Progress()
    assert ProgressTail(files, new_id(), 3).read() == Progress()
    assert ProgressTail(files, "../x", 1).read() == Progress()


def test_only_so_much_is_read_at_once(log):
    path, tail = log
    path.write_bytes(LOG)
    seen = {tail.read(most=100).cells_done for _ in range(500)}
    assert seen == {0, 1, 2} and tail.offset == len(LOG)


def test_a_log_that_became_shorter_is_read_again(log):
    path, tail = log
    path.write_bytes(LOG)
    tail.read()
    path.write_bytes(LOG[: next(_ends())])
    assert tail.read() == Progress(cells_total=3)


def test_rubbish_is_passed_over(log):
    path, tail = log
    path.write_bytes(
        b'\xff\xfe"start"\n[1,"start"]\n{"type":"cell_end"\n\n"start"\n{"type":"start","cells_total":"many"}\n'
        + b'{"type":"cell_start","x":"' + b"z" * LINE + b'"}\n{"type":"start","cells_total":1}\n'
        + b'{"type":"cell_start","code_index":0,"source":"' + b"s" * 1000 + b'"}\n'
    )  # fmt: skip
    found = tail.read()
    assert found.cells_total == 1 and found.current == 0 and len(found.source) <= 200


def test_no_link_is_followed_and_a_pipe_does_not_hang(log, tmp_path):
    path, tail = log
    (tmp_path / "other").write_bytes(LOG)
    path.symlink_to(tmp_path / "other")
    assert tail.read() == Progress()
    path.unlink()
    os.mkfifo(path)
    assert tail.read() == Progress()
