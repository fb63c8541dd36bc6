"""How an attempt or a server ended: from its exit, never from what a notebook says. Pure."""

import signal
from collections.abc import Mapping
from typing import Any, NamedTuple

Params = dict[str, Any]

# The runner's exit statuses (kajiya.runner): what each says where nothing else ended it.
BY_STATUS = {0: "succeeded", 1: "notebook_error", 2: "could_not_start", 3: "kernel_died"}
STOPPED_STATUS = 143  # a runner that got SIGTERM; where we did not send it, somebody else did


class Verdict(NamedTuple):
    """An ending of `kajiya.types.Ending`, and why, as code and parameters."""

    ending: str
    code: str | None = None
    params: Params = {}  # noqa: RUF012

    @property
    def reason(self) -> Params | None:
        """As the exit record has it."""
        return None if self.code is None else {"code": self.code, "params": self.params}


def verdict(
    kind: str,
    code: int | None,
    outcome: Mapping[str, Any] | None = None,
    forced: Verdict | None = None,
    kernel_killed: bool = False,
) -> Verdict:
    """The ending of a tree whose first process ended with `code` (negative: by that signal).

    `forced` is what the supervisor ended it for, `outcome` what the runner left and is believed only where its exit
    status agrees, `kernel_killed` whether the machine ran out of memory meanwhile.
    """
    if forced is not None:
        # Who succeeds in spite of being asked to stop has succeeded: its results are all there.
        if forced.ending in ("stopped", "preempted", "timed_out") and kind == "attempt" and code == 0:
            return Verdict("succeeded")
        return forced
    if code is None:
        return Verdict("could_not_start", "process.unknown")
    said = _believed(kind, code, outcome)
    killed_by = -code if code < 0 else _number((said.params if said else {}).get("signal"))
    if kernel_killed and killed_by == signal.SIGKILL:
        return Verdict("out_of_memory", "memory.machine")
    if said is not None:
        return said
    if code < 0:
        return Verdict("kernel_died", "process.signal", {"signal": name_of(-code)})
    if kind == "attempt" and code == STOPPED_STATUS:
        return Verdict("kernel_died", "process.signal", {"signal": "SIGTERM"})
    if code == 0:
        return Verdict("succeeded")
    if kind == "attempt" and code in BY_STATUS:
        return Verdict(BY_STATUS[code])
    return Verdict("kernel_died", "process.exit", {"status": code})


def name_of(number: int) -> str:
    """A signal as people know it: SIGKILL."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _believed(kind: str, code: int, outcome: Mapping[str, Any] | None) -> Verdict | None:
    if kind != "attempt" or outcome is None or outcome.get("ending") != BY_STATUS.get(code, ""):
        return None
    reason = outcome.get("reason")
    if not isinstance(reason, Mapping):
        return Verdict(BY_STATUS[code])
    text = reason.get("code")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    params = reason.get("params")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if not isinstance(text, str) or len(text) > 100:
        return Verdict(BY_STATUS[code])
    return Verdict(BY_STATUS[code], text, _plain(params))


def _plain(params: Any) -> Params:
    # The runner's owner may write anything here: keep what a sentence can show.
    if not isinstance(params, Mapping):
        return {}
    out: Params = {}
    for key, value in list(params.items())[:20]:  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        if isinstance(value, list):
            value = [v[:200] if isinstance(v, str) else v for v in value[:50] if isinstance(v, (str, int, float))]  # pyright: ignore[reportUnknownVariableType]
        elif isinstance(value, str):
            value = value[:2000]
        elif not (value is None or isinstance(value, (bool, int, float))):
            continue
        out[str(key)[:100]] = value  # pyright: ignore[reportUnknownArgumentType]
    return out


def _number(value: Any) -> int:
    if isinstance(value, str) and value in signal.Signals.__members__:
        return int(signal.Signals[value])
    return int(value) if isinstance(value, int) else 0
