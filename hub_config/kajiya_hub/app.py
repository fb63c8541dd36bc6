"""The composition root of the service, the only place that constructs its parts: `python -m kajiya_hub.app`.

SIGTERM ends the service and no job. SIGKILL does no harm: what matters is stored before it is said.
"""

import asyncio
import contextlib
import logging
import signal
import sys
import time
from importlib.metadata import entry_points
from types import FrameType
from typing import Any

import uvicorn

from kajiya.errors import KajiyaError, SetupError
from kajiya_hub import logs
from kajiya_hub.api.application import create_app
from kajiya_hub.api.deps import Deps, Limits
from kajiya_hub.auth import AttemptTokens, Authenticators, HubAuthenticator, ServiceTokens
from kajiya_hub.metrics import Metrics
from kajiya_hub.reconcile import Reconciler, Site
from kajiya_hub.settings import Settings
from kajiya_hub.snapshots import SnapshotImages
from kajiya_hub.store.files import JobFiles
from kajiya_hub.store.store import Store
from kajiya_hub.this_machine import Kernels, Machine, Profiles
from kajiya_hub.tracked import LoopSettings

__all__ = ["Service", "create_app", "main"]
log = logging.getLogger("kajiya_hub.app")
BACKENDS = "kajiya.backends"
LOOP_IS_LATE = 60.0
STOP_SECONDS = 5.0


class BackendUnknown(SetupError):
    """No installed package gives a backend of that name."""

    code = "backend.unknown"


class Service:
    """The parts of one running service."""

    def __init__(self, settings: Settings, backend: str = "local") -> None:
        data = settings.data
        self.settings = settings
        self.began = time.time()
        self.store = Store(f"sqlite:///{data.service_db}")
        self.files = JobFiles(data.jobs)
        self.snapshots = SnapshotImages(data.snapshots, self.store, settings.environment_base.made_from)
        self.machine = Machine(data.machine)
        self.profiles = Profiles(data.profiles, self.machine)
        self.profiles()  # a wrong file is told now, not at the first submit
        self.metrics = Metrics()
        self.hub = HubAuthenticator(settings.hub_api_url)
        self.reconciler = Reconciler(
            self.store,
            make_backend(backend, settings),
            self.files,
            Site(
                capacity=self.machine.without_jobs,
                limits=self.profiles.limits,
                profile_limits=self.profiles.profile_limits,
                in_use=self.machine.servers,
            ),
            LoopSettings(retention_days=settings.retention.days, retention_per_owner=settings.retention.per_owner),
            measures=self.metrics,
        )
        self.app = create_app(self._deps())
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []

    def _deps(self) -> Deps:
        settings = self.settings
        return Deps(
            store=self.store,
            files=self.files,
            authenticator=Authenticators(
                [
                    ServiceTokens({"kajiya": settings.secret("service.token")}),
                    AttemptTokens(self.store.attempt_for_token),
                    self.hub,
                ]
            ),
            profiles=self.profiles,
            capacity=self.machine.capacity,
            wake=self.reconciler.wake,
            kernels=Kernels(settings.homes),
            used=self.machine.used,
            health={"hub": self.hub.reachable, "loop": self._loop_state},
            limits=Limits(notebook_bytes=settings.uploads.notebook, files_bytes=settings.uploads.files),
            retries=settings.retries,
            prefix=settings.service_prefix,
            scrape_token=settings.scrape_token,
            metrics=self.metrics,
            snapshots=self.snapshots,
            startup=[self._start],
            shutdown=[self._end],
        )

    async def _start(self) -> None:
        self._tasks = [asyncio.create_task(self.reconciler.run(self._stop)), asyncio.create_task(self._sweep())]

    async def _sweep(self) -> None:
        # Only what is older than this process: nothing younger can be a crash's leftover.
        age = time.time() - self.began + 1
        try:
            await asyncio.to_thread(self.files.sweep, self.store.known, age)
            await asyncio.to_thread(self.snapshots.sweep)
        except Exception:
            log.exception("what the last run left could not be swept up")

    async def _end(self) -> None:
        self._stop.set()
        _, late = await asyncio.wait(self._tasks, timeout=STOP_SECONDS)
        for task in late:
            task.cancel()
        await self.hub.close()
        self.store.close()

    async def _loop_state(self) -> str:
        if self._tasks and self._tasks[0].done():
            return "has ended"
        age = self.reconciler.age()
        return "ok" if age < LOOP_IS_LATE else f"last finished a round {age:.0f} s ago"


def make_backend(name: str, settings: Settings) -> Any:
    """The backend of that name, from the entry points. Raises `BackendUnknown`."""
    found = entry_points(group=BACKENDS)
    if name not in found.names:
        raise BackendUnknown(name=name, known=sorted(found.names))
    make = found[name].load()
    from_settings = getattr(make, "from_settings", None)
    if from_settings is not None:
        return from_settings(settings)
    variables = settings.site.variables() | {
        "KAJIYA_API_URL": settings.service_url,
        "MLFLOW_TRACKING_URI": settings.tracking_uri,
    }

    def prepare(owner: str, environment: str) -> None:
        home = settings.homes.ensure(owner)
        if environment == "default":
            from kajiya.environment.make import ensure

            ensure(home, settings.environment_base)

    async def prepared(owner: str, environment: str) -> None:
        await asyncio.to_thread(prepare, owner, environment)

    return make(settings.homes, settings.data.machine, variables=variables, prepare=prepared)


class _Server(uvicorn.Server):
    """Ends the streams as soon as a signal comes: uvicorn would wait for them to end by themselves."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(self.config.app.state.streams.close)  # type: ignore[union-attr]
        super().handle_exit(sig, frame)


async def serve(settings: Settings) -> None:
    """Runs the service until a signal ends it."""
    service = Service(settings)
    config = uvicorn.Config(
        service.app,
        host="127.0.0.1",
        port=settings.ports.service,
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=3,
    )
    # What uvicorn puts back and raises again at its end: by default SIGTERM would then kill a process that ended well.
    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, lambda *_: None)
    log.info("the service begins", extra={"port": settings.ports.service})
    await _Server(config).serve()
    log.info("the service has ended")


def main() -> int:
    """The command; the exit status is 0 after a signal, 1 where the set-up is wrong."""
    logs.setup()
    try:
        settings = Settings.load()
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve(settings))
    except KajiyaError as e:
        log.error("%s", e)
        print(e.sentence(), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
