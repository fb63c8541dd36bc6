"""Why a server can't start, as the Hub tells it: one sentence and status for form, API and progress page."""

import unicodedata
from collections.abc import Mapping
from typing import Any

from jupyterhub.spawner import SpawnException

from kajiya.errors import Conflict, KajiyaError
from kajiya.types import Reason
from kajiya_spawner.look import Look


class ServerFailed(KajiyaError):
    """The server's process ended before it answered."""

    code, status = "server.failed", 500


class ServerSilent(KajiyaError):
    """The server's process runs, and does not answer."""

    code, status = "server.silent", 504


class ServerMemory(KajiyaError):
    """The server's process was ended because its memory was used up."""

    code, status = "server.out_of_memory", 507


class ServersLimit(Conflict):
    """The user has as many servers as the site allows."""

    code, status = "limit.servers", 429


def one_line(text: str) -> str:
    """The text as it may stand in a log: at most 2,000 characters, none of them a control character."""
    short = text if len(text) <= 2000 else f"{text[:1999]}…"
    return "".join("�" if unicodedata.category(c) in ("Cc", "Cs") or c in "\u2028\u2029" else c for c in short)


class Refused(SpawnException):
    """A `KajiyaError` in the Hub's own terms; the Hub counts it as no fault of the Hub's."""

    def __init__(self, error: KajiyaError, language: str) -> None:
        # Parts may be a client's own words: no line break of theirs may stand in the Hub's log, nor a whole novel.
        sentence = one_line(str(Look(language).reason(error.code, error.params)))
        super().__init__(sentence, reason=error.code, log_message=one_line(str(error)), status_code=error.status)
        self.error = error
        # What the Hub shows on its pages and in its event stream.
        self.jupyterhub_message: Any = sentence


def ending(record: Mapping[str, Any]) -> Reason | None:
    """Why a server ended unasked, from its exit record; None where its user shut it down."""
    if record.get("exit_code") == 0 and record.get("ending") != "out_of_memory":
        return None
    reason = record.get("reason") or {}
    return Reason(code=reason.get("code") or "process.unknown", params=reason.get("params") or {})
