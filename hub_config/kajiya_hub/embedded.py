"""The whole stack on one machine: proxy, Hub, service and MLflow as children of one process.

The parent takes the data directory, starts the parts, starts one again that ended by itself, and ends them in order.
User servers and jobs are no children of it: servers are stopped by the Hub as it ends, jobs go on.
"""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kajiya import profiles
from kajiya.errors import AccountsNeedRoot, DataDirUnusable, DiskFull, KajiyaError, SetupError
from kajiya.messages import message
from kajiya_hub import access
from kajiya_hub.datadir import DataDir, Lease, take_lease
from kajiya_hub.ports import answers, ask, ask_json, check_address, listens, pick_ports
from kajiya_hub.processes import Child, rotate
from kajiya_hub.settings import ENVIRONMENT_VARIABLE, Settings, SiteSettings, earlier_ports, read_site_settings

POLL_SECONDS = 0.1
START_PATIENCE = 120.0
HUB_END_SECONDS = 40.0
NEEDED_BYTES = 16 * 1024**2  # below it not even the databases of a first start have room


class NotInstalled(SetupError):
    """The extra `embedded` is not installed."""

    code = "stack.not_installed"


class ProxyNotInstalled(SetupError):
    """kajiya.yaml asks for configurable-http-proxy, which is not there."""

    code = "stack.proxy_not_installed"


class PartFailed(SetupError):
    """A part of the stack can't be started."""

    code = "stack.part_failed"


def say(code: str, **params: Any) -> None:
    """One line for the person at the terminal, in their language."""
    # A terminal that is gone must not keep us from ending the parts in order.
    with suppress(OSError):
        print(message(code, params), flush=True)


def prepare(data: DataDir, given: Mapping[str, Any]) -> tuple[Settings, Lease]:
    """Takes the data directory and writes the effective settings: kajiya.yaml with `given` over it.

    Raises `DataDirInUse`, `DataDirUnusable`, `DataDirOnNfs`, `ConfigInvalid`, `PortInUse`, `AddressUnusable`,
    `NotInstalled`, `ProxyNotInstalled`, `AccountsNeedRoot`, `DiskFull`.
    """
    for module in ("jupyterhub", "jupyterlab", "mlflow", "uv", "fastapi", "aiohttp"):
        if find_spec(module) is None:
            raise NotInstalled(module=module)
    site = SiteSettings.model_validate(read_site_settings(data.config) | dict(given))
    if site.accounts and os.geteuid() != 0:
        raise AccountsNeedRoot()
    if site.proxy != "kajiya" and shutil.which(site.proxy) is None:
        raise ProxyNotInstalled(program=site.proxy)
    data.prepare(site.accounts)
    if shutil.disk_usage(data.root).free < NEEDED_BYTES:
        raise DiskFull(path=data.root)
    lease = take_lease(data)
    try:
        if site.accounts:
            access.check(data.root)
        if data.profiles.exists():
            profiles.load(data.profiles)
        check_address(site.ip, site.port)
        ports = pick_ports(earlier_ports(data.settings), {site.port})
        settings = Settings(**site.model_dump(), data_dir=data.root, ports=ports)
        settings.save()
    except OSError as e:
        lease.release()
        raise DataDirUnusable(path=data.root, problem=(e.strerror or str(e)).lower()) from e
    except BaseException:
        lease.release()
        raise
    return settings, lease


def proxy_command(settings: Settings) -> list[str]:
    """The command line of the proxy that the settings name; Kajiya's own takes the flags of npm's."""
    own = settings.proxy == "kajiya"
    # Whole, so that a part that starts again later does not depend on where it is looked for.
    program = [sys.executable, "-m", "kajiya_hub.proxy"] if own else [shutil.which(settings.proxy) or settings.proxy]
    listen = ["--ip", settings.ip, "--port", str(settings.port)]
    api = ["--api-ip", "127.0.0.1", "--api-port", str(settings.ports.proxy_api)]
    key, cert = settings.ssl_key, settings.ssl_cert
    tls = ["--ssl-key", key, "--ssl-cert", cert] if key and cert else []
    return [*program, *listen, *api, *tls, "--error-target", f"{settings.hub_url}/error", "--log-level", "warn"]


@dataclass
class Stack:
    """The running parts. `ready` is called once, when the login page can be opened."""

    settings: Settings
    ready: Callable[[], None] = field(default=lambda: None)
    stop_signals: int = 0
    began: float = field(default_factory=time.monotonic)
    restarted: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        s, logs = self.settings, self.settings.data.logs
        env = self._environment()
        self._proxy_token = s.secret("proxy.token")
        secret = {"CONFIGPROXY_AUTH_TOKEN": self._proxy_token}
        python = sys.executable

        self.proxy = Child(
            "proxy",
            proxy_command(s),
            env | secret,
            logs / "proxy.log",
            ready_check=lambda: listens(s.ports.proxy_api),
        )
        self.hub = Child(
            "hub",
            [python, "-m", "kajiya_hub.hub"],
            env,
            logs / "hub.log",
            orphan_signal=signal.SIGKILL,
            ready_check=self._login_page,
        )
        self.service = Child(
            "service",
            [python, "-m", "kajiya_hub.app"],
            env,
            logs / "service.log",
            ready_check=lambda: answers(f"{s.service_url}/health"),
        )
        self.mlflow = Child(
            "mlflow",
            [python, "-m", "kajiya_hub.mlflow_app"],
            env,
            logs / "mlflow.log",
            nice=5,  # it starts longest, and must not hold back the login page
            ready_check=lambda: answers(f"{s.mlflow_url}/health", range(200, 500)),
        )
        # Not one of the parts: it makes what all environments begin with, and ends.
        self.base = Child("base", [python, "-m", "kajiya_hub.prepare_base"], env, logs / "base.log", nice=10)

    @property
    def parts(self) -> list[Child]:
        """The parts, in the order in which they are started."""
        return [self.proxy, self.hub, self.service, self.mlflow]

    def _environment(self) -> dict[str, str]:
        # A setting of another Kajiya or Hub around this one would mislead the parts.
        strange = ("JUPYTERHUB_", "KAJIYA_", "MLFLOW_", "CONFIGPROXY_")
        keep = ("KAJIYA_LANG", "KAJIYA_FAKE_GPUS")
        env = {k: v for k, v in os.environ.items() if not k.startswith(strange) or k in keep}
        env |= self.settings.site.variables()
        env |= {ENVIRONMENT_VARIABLE: str(self.settings.data.settings), "PYTHONUNBUFFERED": "1"}
        bin_folder = str(Path(sys.executable).parent)
        return env | {"PATH": f"{bin_folder}:{env.get('PATH', '/usr/bin:/bin')}"}

    def _login_page(self) -> bool:
        # Of the Hub itself, and known to the proxy: only then can a browser open it.
        if not answers(f"{self.settings.hub_url}/login"):
            return False
        return bool(ask_json(f"http://127.0.0.1:{self.settings.ports.proxy_api}/api/routes", self._proxy_token))

    def _send_routes_again(self) -> None:
        ask(f"{self.settings.hub_api_url}/proxy", "POST", self.settings.secret("stack.token"), timeout=30)

    # --- life
    def run(self) -> None:
        """Starts everything and stays until it is told to end. Raises `PartFailed`."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._stop_asked)
        try:
            self._start()
            rotated = time.monotonic()
            while not self.stop_signals:
                self._tend()
                if time.monotonic() - rotated > 60:
                    rotated = time.monotonic()
                    for part in self.parts:
                        rotate(part.log)
                time.sleep(POLL_SECONDS)
        finally:
            self.end()

    def _stop_asked(self, *_: Any) -> None:
        self.stop_signals += 1

    def _start(self) -> None:
        say("stack.starting")
        for part in (self.proxy, self.hub, self.service):
            part.start()
        told = time.monotonic()
        while not self.stop_signals:
            for part in (self.proxy, self.hub):
                if part.ended() is not None:
                    raise PartFailed(part=part.name, words=part.last_words(), log=part.log)
            if self.hub.ready_check():
                break
            now = time.monotonic()
            if now - self.began > START_PATIENCE:
                raise PartFailed(part="hub", words=self.hub.last_words(), log=self.hub.log)
            if now - told > 5:
                told = now
                say("stack.still_starting", seconds=round(now - self.began))
            time.sleep(POLL_SECONDS / 2)
        if self.stop_signals:
            return
        self.proxy.ready = self.hub.ready = True
        self.mlflow.start()
        self.ready()
        self.base.start()

    def _tend(self) -> None:
        """One look at every part: says what became ready, and starts again what ended."""
        now = time.monotonic()
        status = self.base.ended()
        if status is not None:
            self.base.process = None
            if status != 0:
                say("stack.base", words=self.base.last_words())
        for part in self.parts:
            if part.process is None:
                if now >= part.again_at:
                    part.start()
                continue
            status = part.ended()
            if status is not None:
                part.kill_group()
                words = part.last_words()
                delay = part.plan_restart()
                self.restarted.add(part.name)
                how = f"signal {-status}" if status < 0 else f"status {status}"
                code = "stack.part_again" if delay < 1 else "stack.part_again_later"
                say(code, part=part.name, how=how, seconds=round(delay), words=words, log=part.log)
            elif not part.ready and part.ready_check():
                part.ready = True
                if part.name in self.restarted:
                    self.restarted.discard(part.name)
                    say("stack.part_back", part=part.name)
                    if part is self.proxy:
                        # A new proxy knows no routes, and the Hub would look only minutes later.
                        threading.Thread(target=self._send_routes_again, daemon=True).start()

    def end(self) -> None:
        """Ends all parts in order: the Hub first, which stops the user servers; jobs go on."""
        say("stack.stopping")
        self.base.signal(signal.SIGTERM)
        self.base.kill_group()
        self.hub.signal(signal.SIGTERM)
        self._wait(self.hub, HUB_END_SECONDS)
        for part in (self.service, self.mlflow, self.proxy):
            part.signal(signal.SIGTERM)
        for part in (self.service, self.mlflow, self.proxy):
            self._wait(part, 10)
            part.kill_group()
        self.hub.kill_group()
        say("stack.stopped")

    def _wait(self, part: Child, seconds: float) -> None:
        until, before = time.monotonic() + seconds, self.stop_signals
        while not part.wait(0.1):
            # A second Ctrl-C means now.
            if time.monotonic() > until or self.stop_signals > max(1, before):
                part.signal(signal.SIGKILL)
                part.wait(5)
                return


def up(data: DataDir, given: Mapping[str, Any]) -> None:
    """Runs the stack in the foreground until Ctrl-C. Raises what `prepare` raises, and `PartFailed`."""
    settings, lease = prepare(data, given)
    say("stack.data", path=data.root)
    if not settings.loopback and not settings.encrypted:
        say("stack.no_tls", ip=settings.ip)
    if settings.accounts:
        say("stack.accounts")
    stack = Stack(settings, ready=lambda: _ready(settings))
    try:
        stack.run()
    finally:
        lease.release()


def _ready(settings: Settings) -> None:
    from kajiya_hub import signin

    try:
        say("stack.sign_in", url=signin.link(settings))
    except KajiyaError as e:
        print(e.sentence(), flush=True)
