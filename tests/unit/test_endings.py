"""What follows from the way an attempt ended, as a table."""

import pytest

from kajiya.messages import fields, sentences
from kajiya.types import Ending, Environment, GiB, Progress, Reason, Resources, Status
from kajiya_hub.backends.base import Observation
from kajiya_hub.endings import Retrying, conclude, default_reason
from kajiya_hub.store.rows import ActiveJob, Final, Requeue

NOW = 1000.0
FULL = Reason(code="capacity.none", params={})
SAID = Reason(code="runner.notebook_error", params={"cell": 3})


def job(**changes):
    values = {
        "id": "j000000000000000", "owner": "ann", "status": Status.running, "attempt": 1, "profile": "small",
        "options": {}, "resources": Resources(cpu=1, memory=GiB), "environment": Environment(), "env": {}, "name": "n",
        "notebook": "n", "parameters": {}, "files": [], "results_wanted": [], "time_limit": 60, "retries": {},
        "state": {}, "progress": Progress(), "began_at": 1, "started_at": 1, "stop_requested_at": None, "stop_by": "",
        "reason": None, "used": {},
    }  # fmt: skip
    return ActiveJob(**(values | changes))


def ended(ending, reason=None):
    return Observation("ended", ending, reason=reason)


E = Ending
STOP = {"stop_requested_at": 5.0, "stop_by": "boss"}
TABLE = [
    ("success", {}, ended(E.succeeded), E.succeeded, None, Final(Status.succeeded)),
    ("an error, as the backend says it", {}, ended(E.notebook_error, SAID), E.notebook_error, SAID.code, "failed"),
    ("an error of which nobody says more", {}, ended(E.kernel_died), E.kernel_died, "ended.kernel_died", "failed"),
    ("lost", {}, Observation("gone"), E.preempted, "ended.lost", "failed"),
    ("lost, with a budget", {"retries": {E.preempted: 1}}, Observation("gone"), E.preempted, "ended.lost", 5),
    ("the second retry waits longer", {"retries": {E.preempted: 3}, "used": {E.preempted: 2}}, Observation("gone"),
     E.preempted, "ended.lost", 20),
    ("a budget used up", {"retries": {E.preempted: 2}, "used": {E.preempted: 2}}, Observation("gone"), E.preempted,
     "ended.lost", "failed"),
    ("another class's budget", {"retries": {E.preempted: 9}}, ended(E.timed_out), E.timed_out, "ended.timed_out",
     "failed"),
    ("another class's use", {"retries": {E.timed_out: 1}, "used": {E.preempted: 9}}, ended(E.timed_out), E.timed_out,
     "ended.timed_out", 5),
    ("no capacity costs nothing", {"used": {E.could_not_start: 9}}, ended(E.could_not_start, FULL), E.could_not_start,
     FULL.code, "free"),
    ("a stop wins over a retry", STOP | {"retries": {E.preempted: 9}}, Observation("gone"), E.stopped, "ended.stopped",
     "stopped"),
    ("a stop wins over no capacity", STOP, ended(E.could_not_start, FULL), E.stopped, "ended.stopped", "stopped"),
    ("a stop that killed the kernel", STOP, ended(E.kernel_died), E.stopped, "ended.stopped", "stopped"),
    ("succeeded in spite of a stop", STOP, ended(E.succeeded), E.succeeded, None, "succeeded"),
    ("failed in spite of a stop", STOP | {"retries": {E.notebook_error: 9}}, ended(E.notebook_error, SAID),
     E.notebook_error, SAID.code, "failed"),
    ("stopped from outside", {}, ended(E.stopped), E.stopped, "ended.stopped", "stopped"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "seen", "ending", "code", "then"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE]
)
def test_case(changes, seen, ending, code, then):
    found = conclude(job(**changes), seen, NOW, Retrying(base=5))
    assert found.ending is ending and (found.reason.code if found.reason else None) == code
    if isinstance(then, int):
        then = Requeue(NOW + then)
    elif then == "free":
        then = Requeue(NOW + 0.5, free=True)
    elif isinstance(then, str):
        then = Final(Status(then))
    assert found.then == then


def test_waits_are_bounded():
    retrying = Retrying(base=5, most=600, capacity_base=0.5, capacity_most=15)
    assert [retrying.after(n) for n in (0, 1, 2, 10, 10**6)] == [5, 10, 20, 600, 600]
    assert retrying.after_no_capacity(10**6) == 15


@pytest.mark.parametrize("ending", [e for e in Ending if e is not Ending.succeeded])
def test_every_ending_has_a_sentence(ending):
    reason = default_reason(job(stop_by="boss"), ending)
    for language in ("en", "ja"):
        assert fields(sentences(language)[reason.code]) <= reason.params.keys()
