"""JobsWidget: a list of jobs as a table that stays up to date."""

from pathlib import Path
from typing import Any

import anywidget
import traitlets

from kajiya import describe
from kajiya.connection import Event
from kajiya.handle import Jobs
from kajiya.messages import message, preferred_language
from kajiya.types import Job
from kajiya_lab.widgets.follow import Follower, Throttle
from kajiya_lab.widgets.live import words
from kajiya_lab.widgets.views import Views

HERE = Path(__file__).parent


class JobsWidget(anywidget.AnyWidget):
    """Shows a page of jobs and keeps the rows up to date; new jobs come in on top where the list is not filtered."""

    _esm = HERE / "jobs.js"
    _css = HERE / "kajiya.css"

    words = traitlets.Dict().tag(sync=True)
    columns = traitlets.List().tag(sync=True)
    rows = traitlets.List().tag(sync=True)
    foot = traitlets.Unicode("").tag(sync=True)

    def __init__(self, jobs: Jobs, language: str | None = None) -> None:
        self._language = language or preferred_language()
        self._jobs = jobs
        self._records: dict[str, Job] = {j.id: j.record for j in jobs}
        self._open = not jobs.query.get("filtered")
        self._limit = int(jobs.query.get("limit", 50))
        self._total = jobs.total
        self._trouble = ""
        super().__init__(words=words(self._language), columns=describe.columns(self._language))
        self._throttle = Throttle(self._publish)
        self._publish()
        self._last = ""
        self._views = Views(self._rest, self._wake)
        self.on_msg(self._on_message)
        self._follow()

    def _follow(self) -> None:
        self._follower = Follower(
            lambda stop, lost: self._jobs.client.changes(self._last, stop=stop, lost=lost, patience=None),
            self._take,
            lambda _: self._say(message("widget.lost", None, self._language)),
            self._say,
            "kajiya-jobs",
        )

    def _on_message(self, _: Any, content: Any, buffers: Any) -> None:
        match content:
            case {"do": "here", "view": view}:
                self._views.here(str(view))
            case {"do": "gone", "view": view}:
                self._views.gone(str(view))
            case _:
                pass

    def _rest(self) -> None:
        """Nobody looks: the service need not tell."""
        self._follower.stop()

    def _wake(self) -> None:
        """Somebody looks again."""
        if not self._follower.alive:
            self._follow()

    def _take(self, event: Event) -> None:
        self._trouble = ""
        self._last = event.id or self._last
        if event.kind == "job":
            job = event.job
            if job.id in self._records or self._open:
                self._total += job.id not in self._records
                known = self._records | {job.id: job}
                # Ids grow with time, so the newest come first.
                self._records = {k: known[k] for k in sorted(known, reverse=True)[: self._limit]}
        self._throttle.mark()

    def _say(self, sentence: str) -> None:
        self._trouble = sentence
        self._throttle.mark()

    def _publish(self) -> None:
        rows = [{"status": str(j.status), "cells": describe.row(j, self._language)} for j in self._records.values()]
        foot = self._trouble
        if not foot and not rows:
            foot = message("jobs.none" if self._open else "jobs.none_match", None, self._language)
        elif not foot and self._total > len(rows):
            foot = message("jobs.more", {"shown": len(rows), "total": self._total}, self._language)
        try:
            with self.hold_sync():
                self.rows, self.foot = rows, foot
        except Exception:
            # The kernel is going down, or the front end has closed the comm: there is nobody to tell.
            self._rest()

    def close(self) -> None:
        """Stops following and takes the widget away."""
        self._rest()
        super().close()

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        bundle = super()._repr_mimebundle_(**kwargs)
        return None if bundle is None else ({**bundle[0], "text/plain": repr(self._jobs)}, bundle[1])
