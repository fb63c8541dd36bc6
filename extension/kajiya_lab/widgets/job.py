"""JobWidget: one job, live, in JupyterLab and Notebook 7."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from kajiya import describe
from kajiya.connection import Event
from kajiya.errors import FileExists, KajiyaError
from kajiya.handle import Job
from kajiya.messages import message, preferred_language
from kajiya_lab.widgets.follow import Follower, Throttle
from kajiya_lab.widgets.live import Live, words
from kajiya_lab.widgets.views import Views

HERE = Path(__file__).parent
LOG_TAIL = 200_000  # bytes of a log that a view holds
LOG_PAUSE = 1.0


class JobWidget(anywidget.AnyWidget):
    """Shows a job and follows it until its end: progress, output, log, and what can be done with it.

    It closes with `close()`; the job goes on whatever becomes of the widget.
    """

    _esm = HERE / "job.js"
    _css = HERE / "kajiya.css"

    words = traitlets.Dict().tag(sync=True)
    view = traitlets.Dict().tag(sync=True)
    tail = traitlets.Unicode("").tag(sync=True)
    image = traitlets.Dict().tag(sync=True)
    log_text = traitlets.Unicode("").tag(sync=True)
    notice = traitlets.Dict().tag(sync=True)

    def __init__(self, job: Job, language: str | None = None) -> None:
        self._language = language or preferred_language()
        self._job = job
        self._live = Live(job.record, self._language)
        self._log_open = threading.Event()
        self._log_thread: threading.Thread | None = None
        self._follower: Follower | None = None
        super().__init__(words=words(self._language), view=self._live.view)
        self._throttle = Throttle(self._publish)
        self._views = Views(self._rest, self._wake)
        self.on_msg(self._on_message)
        self._follow()

    # --- following
    def _follow(self) -> None:
        job, live = self._job, self._live

        def take(event: Event) -> None:
            if event.kind == "job":
                live.take_job(event.job)
            elif event.kind == "cell":
                live.take_cell(event.data, event.id)
            if live is self._live:
                # A ping counts too: it proves that what is shown still holds.
                self._throttle.mark()

        def trouble(sentence: str) -> None:
            live.trouble = sentence
            if live is self._live:
                self._throttle.mark()

        def lost(_: str) -> None:
            trouble(message("widget.lost", None, self._language))

        self._follower = Follower(
            lambda stop, lost: job.client.events(job.id, live.last, stop=stop, lost=lost, patience=None),
            take,
            lost,
            trouble,
            f"kajiya-{job.id}",
        )

    def _rest(self) -> None:
        """Nobody looks: the service need not tell."""
        if self._follower is not None:
            self._follower.stop()
        self._log_open.clear()

    def _wake(self) -> None:
        """Somebody looks again."""
        if not self._live.job.status.final and not (self._follower and self._follower.alive):
            self._follow()

    def _publish(self) -> None:
        live = self._live
        try:
            with self.hold_sync():
                self.view, self.tail, self.image = live.view, live.tail, live.image
        except Exception:
            # The kernel is going down, or the front end has closed the comm: there is nobody to tell.
            if self._follower is not None:
                self._follower.stop()

    def close(self) -> None:
        """Stops following and takes the widget away."""
        self._rest()
        super().close()

    # --- what the buttons ask for
    def _on_message(self, _: Any, content: Any, buffers: Any) -> None:
        asked = content if isinstance(content, dict) else {}
        actions: dict[str, Callable[[], None]] = {
            "stop": self._stop,
            "again": self._again,
            "save": self._save,
            "download": self._download,
            "keep": lambda: self._keep(str(asked.get("path"))),
            "log": lambda: self._show_log(bool(asked.get("open"))),
        }
        match asked.get("do"):
            case "here":
                return self._views.here(str(asked.get("view")))
            case "gone":
                return self._views.gone(str(asked.get("view")))
            case _:
                action = actions.get(str(asked.get("do")))
        if action is not None:
            # Off the kernel's own thread: a service that is slow must not hold up the next cell.
            threading.Thread(target=self._act, args=(action,), daemon=True, name="kajiya-action").start()

    def _act(self, action: Callable[[], None]) -> None:
        try:
            action()
        except KajiyaError as e:
            self._say(e.sentence(), kind="error")
        except OSError as e:
            sentence = message("widget.not_saved", {"problem": e.strerror or str(e)}, self._language)
            self._say(sentence, kind="error")

    def _say(self, text: str, kind: str = "info", path: str | None = None) -> None:
        count = int(self.notice.get("count", 0)) + 1
        self.notice = {"text": text, "kind": kind, "path": path or "", "count": count}

    def _stop(self) -> None:
        self._live.take_job(self._job.stop().record)
        self._throttle.flush()

    def _again(self) -> None:
        new = self._job.again()
        if self._follower is not None:
            self._follower.stop()
        self._job, self._live = new, Live(new.record, self._language)
        self.log_text = ""
        self._say(message("widget.runs_again", {"job": new.id}, self._language))
        self._throttle.flush()
        self._follow()

    def _save(self) -> None:
        data = self._job.client.notebook(self._job.id)
        name = Path(describe.notebook_file(self._job.record))
        for path in [name, *(name.with_stem(f"{name.stem}-{n}") for n in range(2, 1000))]:
            try:
                with path.open("xb") as out:
                    out.write(data)
            except FileExistsError:
                continue
            return self._say(message("widget.saved", {"path": path}, self._language), path=server_path(path))
        raise FileExists(path=str(name))

    def _download(self) -> None:
        data = self._job.client.notebook(self._job.id)
        self.send({"download": describe.notebook_file(self._job.record)}, [data])

    def _keep(self, path: str) -> None:
        saved = self._job.download(path)
        self._say(message("widget.saved", {"path": ", ".join(str(p) for p in saved)}, self._language))

    def _show_log(self, wanted: bool) -> None:
        if not wanted:
            return self._log_open.clear()
        self._log_open.set()
        if self._log_thread is None or not self._log_thread.is_alive():
            self._log_thread = threading.current_thread()
            self._read_log()

    def _read_log(self) -> None:
        shown: tuple[str, int | None] | None = None
        text, offset = b"", 0
        while self._log_open.is_set():
            live, client = self._live, self._job.client
            final = live.job.status.final
            attempt = live.job.attempts[-1].number if live.job.attempts else None
            if attempt is not None:
                if shown != (live.job.id, attempt):
                    shown, text = (live.job.id, attempt), b""
                    offset = max(0, client.log_size(live.job.id, attempt) - LOG_TAIL)
                new = client.log(live.job.id, attempt, offset)
                offset += len(new)
                text = (text + new)[-LOG_TAIL:]
                if live is self._live:
                    self.log_text = text.decode("utf-8", "replace")
            if final and live is self._live:
                return
            threading.Event().wait(LOG_PAUSE)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle
        return {**data, "text/plain": describe.text(self._live.job, self._language)}, metadata


def server_path(path: Path) -> str | None:
    """The path of a file as the Jupyter server of this kernel names it, or None where that is unknown."""
    root = os.environ.get("KAJIYA_SERVER_ROOT")
    if not root:
        return None
    whole = path.absolute()
    return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else None
