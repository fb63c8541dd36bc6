"""How an ending follows from an exit, and that the supervisor's words are the wire's words."""

import signal
from typing import Any

import pytest

from kajiya.machine.endings import BY_STATUS, Verdict, verdict
from kajiya.messages import sentences
from kajiya.types import Ending

STOPPED = Verdict("stopped")
OOM = Verdict("out_of_memory", "memory.exceeded", {"process": "p", "used": "2 GiB", "allowed": "1 GiB"})
SAID = {"ending": "kernel_died", "reason": {"code": "kernel.died", "params": {"signal": "SIGKILL", "cell": 3}}}


@pytest.mark.parametrize(
    ("kind", "code", "outcome", "forced", "oom", "expected"),
    [
        ("attempt", 0, None, None, False, ("succeeded", None)),
        ("attempt", 1, None, None, False, ("notebook_error", None)),
        ("attempt", 3, SAID, None, False, ("kernel_died", "kernel.died")),
        ("attempt", 3, SAID, None, True, ("out_of_memory", "memory.machine")),
        ("attempt", 3, None, None, True, ("kernel_died", None)),
        ("attempt", 1, SAID, None, False, ("notebook_error", None)),
        ("attempt", 143, None, None, False, ("kernel_died", "process.signal")),
        ("attempt", 143, None, STOPPED, False, ("stopped", None)),
        ("attempt", 0, None, STOPPED, False, ("succeeded", None)),
        ("attempt", 0, None, OOM, False, ("out_of_memory", "memory.exceeded")),
        ("attempt", -signal.SIGKILL, None, None, False, ("kernel_died", "process.signal")),
        ("attempt", -signal.SIGKILL, None, None, True, ("out_of_memory", "memory.machine")),
        ("attempt", -signal.SIGSEGV, None, None, True, ("kernel_died", "process.signal")),
        ("attempt", 99, None, None, False, ("kernel_died", "process.exit")),
        ("attempt", None, None, None, False, ("could_not_start", "process.unknown")),
        ("server", 0, None, STOPPED, False, ("stopped", None)),
        ("server", 1, {"ending": "notebook_error"}, None, False, ("kernel_died", "process.exit")),
    ],
)
def test_verdict(
    kind: str, code: int | None, outcome: Any, forced: Any, oom: bool, expected: tuple[str, str | None]
) -> None:
    found = verdict(kind, code, outcome, forced, oom)
    assert (found.ending, found.code) == expected
    assert found.code is None or found.code == "kernel.died" or found.code in sentences("en")


def test_the_endings_are_those_of_the_wire() -> None:
    assert {*BY_STATUS.values(), "stopped", "out_of_memory", "timed_out", "preempted"} == {e.value for e in Ending}


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ({"code": "x", "params": {"a": 1, "b": ["c", {}], "d": {"e": 1}, "f": None}}, {"a": 1, "b": ["c"], "f": None}),
        ({"code": "x", "params": {"long": "y" * 10_000}}, {"long": "y" * 2000}),
        ({"code": "x", "params": ["no"]}, {}),
        ({"code": "x" * 1000, "params": {"a": 1}}, {}),
        ({"code": 7}, {}),
        ("text", {}),
    ],
)
def test_a_hostile_reason_is_cut_to_what_a_sentence_can_show(reason: Any, expected: dict[str, Any]) -> None:
    assert verdict("attempt", 1, {"ending": "notebook_error", "reason": reason}).params == expected
