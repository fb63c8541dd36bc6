"""Servers as processes of this machine: each below a supervisor that outlives the Hub and is found again."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from jupyterhub.spawner import Spawner
from jupyterhub.utils import url_path_join
from markupsafe import Markup
from traitlets import Any as AnyTrait
from traitlets import Bool, Dict, Float, Unicode, default

from kajiya.errors import KajiyaError, NoCapacity
from kajiya.machine import process
from kajiya.machine.homes import Home, Homes
from kajiya.machine.launch import Standing
from kajiya.machine.process import Identity
from kajiya.profiles import Selection
from kajiya.types import Reason
from kajiya_spawner import picker
from kajiya_spawner.look import Look, language_of
from kajiya_spawner.machine import Machine
from kajiya_spawner.picker import Choice
from kajiya_spawner.progress import ProgressLog
from kajiya_spawner.refusal import Refused, ServerFailed, ServerMemory, ServerSilent, ending
from kajiya_spawner.rules import Rules
from kajiya_spawner.server import RunFolder, Server, answers, free_port, telling, variables


class LocalSpawner(Spawner):
    """A user's server as a process of this machine, with the memory, CPUs and GPUs of the chosen profile."""

    homes_dir = Unicode(help="The folder of the users' homes.").tag(config=True)
    accounts = Bool(False, help="Whether each user has a Unix account; the Hub must run as root.").tag(config=True)
    machine_dir = Unicode(help="The folder of this machine's allocations.").tag(config=True)
    servers_dir = Unicode(help="The folder of the servers' logs and records; never below a home.").tag(config=True)
    profiles_file = Unicode(help="The profile file; without one, profiles that fit this machine.").tag(config=True)
    service_url = Unicode(help="Kajiya's service, for KAJIYA_API_URL of servers.").tag(config=True)
    mlflow_url = Unicode(help="MLflow, for MLFLOW_TRACKING_URI of servers.").tag(config=True)
    prepare = AnyTrait(None, help="Async callable (user, progress) that makes the user's environment.").tag(config=True)
    variables = Dict(help="More environment variables of servers.").tag(config=True)
    grace = Float(10.0, help="Seconds between asking a server to end and ending it.").tag(config=True)
    answer_timeout = Float(120.0, help="Seconds that a started server may take to answer.").tag(config=True)

    language = Unicode("en")

    def __init__(self, **kwargs: Any) -> None:
        self.identity: Identity | None = None
        self.choice: Choice | None = None
        self.ended: Reason | None = None
        self._starting = False
        self._stopping = False
        self.progress_log: ProgressLog | None = None
        super().__init__(**kwargs)

    # Defaults that suit this spawner; configuration goes before them.
    @default("cmd")
    def _default_cmd(self) -> list[str]:
        # -P: a file in the home, which is the working folder, must not stand in for a module of the server's.
        return [sys.executable, "-P", "-m", "jupyterhub.singleuser"]

    @default("env_keep")
    def _default_env_keep(self) -> list[str]:
        return []

    @default("default_url")
    def _default_default_url(self) -> str:
        return "/lab"

    @default("start_timeout")
    def _default_start_timeout(self) -> int:
        # The Hub's own patience includes the making of the environment, which the network may draw out; ours does not.
        return 3600

    @default("http_timeout")
    def _default_http_timeout(self) -> int:
        return 120

    @default("poll_interval")
    def _default_poll_interval(self) -> int:
        return 5

    @default("ip")
    def _default_ip(self) -> str:
        return "127.0.0.1"

    @default("options_form")
    def _default_options_form(self) -> Any:
        return type(self).picker_form

    @default("options_from_form")
    def _default_options_from_form(self) -> Any:
        return self.choose_from_form

    @default("apply_user_options")
    def _default_apply_user_options(self) -> Any:
        # `start` checks and applies them, whatever hooks a configuration puts before it.
        return lambda spawner, options: None

    @default("progress_ready_hook")
    def _default_progress_ready_hook(self) -> Any:
        def ready(spawner: "LocalSpawner", event: dict[str, Any]) -> dict[str, Any]:
            return {"progress": 100, "ready": True, "url": event["url"], "message": spawner.look.say("progress.ready")}

        return ready

    # --- who and what
    @property
    def machine(self) -> Machine:
        """Capacity and allocations of this machine."""
        return Machine.at(Path(self.machine_dir))

    @property
    def homes(self) -> Homes:
        """The users' homes."""
        return Homes(Path(self.homes_dir), self.accounts)

    @property
    def local(self) -> Server:
        """The server on this machine, there or not."""
        return Server(self.user.name, self.name, Path(self.servers_dir), Path(self.machine_dir))

    @property
    def folder(self) -> RunFolder:
        """Where this server's records and log lie."""
        return self.local.folder

    @property
    def look(self) -> Look:
        """Sentences in the language of whoever asked last."""
        return Look(self.language)

    def listen(self) -> None:
        """Remembers the language that the present request asks for, for the pages and sentences that follow."""
        language = language_of(self.handler)
        if language is None:
            return
        self.language = language
        for person in (self.user, getattr(self.handler, "current_user", None)):
            spawner = getattr(person, "spawner", None)
            if isinstance(spawner, LocalSpawner):
                spawner.language = language

    @property
    def rules(self) -> Rules:
        """What this user may have."""
        file = Path(self.profiles_file) if self.profiles_file else None
        return Rules(self.machine, file, self.user.name, [group.name for group in self.user.groups])

    # --- the picker
    async def picker_form(self) -> Markup:
        """The picker for the Hub's spawn page."""
        self.listen()
        capacity = await self.machine.capacity()
        try:
            shown = await self.rules.views(capacity, self.language)
        except KajiyaError as e:
            raise Refused(e, self.language) from e
        # The browser reaches the API below the Hub's public path, whatever address the Hub itself listens on.
        url = url_path_join(self.hub.base_url, "api/kajiya/capacity", self.user.escaped_name)
        notice = ""
        if self.ended:
            why = self.look.reason(self.ended.code, self.ended.params)
            notice = self.look.say("picker.ended", why=why, log=str(self.folder.log))
        return picker.form(shown, picker.preselect(shown, self._last()), capacity, self.look, url, notice)

    async def live(self, language: str) -> dict[str, Any]:
        """What the open picker asks for again and again."""
        capacity = await self.machine.capacity()
        return picker.live(await self.rules.views(capacity, language), capacity, Look(language))

    def _last(self) -> Choice | None:
        if self.choice is not None:
            return self.choice
        try:
            return picker.choice_from_options(self.orm_spawner.user_options or {})
        except KajiyaError:
            return None

    async def choose_from_form(self, form_data: Mapping[str, Any]) -> dict[str, Any]:
        """`user_options` from a posted form, refused before anything is stored if it is outside the rules."""
        self.listen()
        try:
            rules = self.rules
            choice = picker.choice_from_form(form_data, await rules.profiles(), rules.user, rules.groups)
            await rules.select(choice)
        except KajiyaError as e:
            raise Refused(e, self.language) from e
        return choice.as_options()

    async def options_from_query(self, query_data: Mapping[str, Any]) -> dict[str, Any]:
        """`user_options` from a link with `opt-profile` and other options."""
        self.listen()
        try:
            choice = picker.choice_from_query(query_data)
            await self.rules.select(choice)
        except KajiyaError as e:
            raise Refused(e, self.language) from e
        return choice.as_options()

    # --- state that outlives the Hub
    def load_state(self, state: dict[str, Any]) -> None:
        """Finds the server again after a restart of the Hub."""
        super().load_state(state)
        who = state.get("supervisor")
        if isinstance(who, list | tuple) and len(who) == 3:
            self.identity = Identity(int(who[0]), int(who[1]), str(who[2]))
        elif self.servers_dir:
            # The Hub was killed before it could store whom it had started.
            self.identity = self.local.found()
        if isinstance(state.get("choice"), dict):
            try:
                self.choice = picker.choice_from_options(state["choice"])
            except KajiyaError:
                self.choice = None
        if isinstance(state.get("ended"), dict):
            self.ended = Reason.model_validate(state["ended"])
        self.language = str(state.get("language", "en"))

    async def get_url(self) -> str:
        """Where the server is: by its own record, for the Hub may have been killed before it could store it."""
        port = self.folder.read_port()
        if port and self.server:
            return f"http://127.0.0.1:{port}{self.server.base_url}"
        return await super().get_url()

    def get_state(self) -> dict[str, Any]:
        """The supervisor's identity while a server runs; the last choice and the last ending beyond that."""
        state = super().get_state()
        if self.identity is not None:
            state["supervisor"] = list(self.identity)
        if self.choice is not None:
            state["choice"] = self.choice.as_options()
        if self.ended is not None:
            state["ended"] = self.ended.model_dump(mode="json")
        return state | {"language": self.language}

    def clear_state(self) -> None:
        """Forgets the server, not the choice."""
        super().clear_state()
        self.identity = None

    # --- start, poll, stop
    async def start(self) -> tuple[str, int]:
        """Starts the server and waits until it listens; returns its address. Raises `Refused`."""
        self.listen()
        log = self.progress_log = ProgressLog()
        self._starting, self._stopping = True, False
        try:
            return await self._start(log)
        except KajiyaError as e:
            await self._abandon()
            raise Refused(e, self.language) from e
        except OSError as e:
            await self._abandon()
            raise Refused(ServerFailed(problem=e.strerror or str(e), log=str(self.folder.log)), self.language) from e
        except BaseException:  # also a start that is called off
            await self._abandon()
            raise
        finally:
            self._starting = False
            log.end()

    async def _start(self, log: ProgressLog) -> tuple[str, int]:
        look = self.look

        def checking(wanted: Selection) -> None:
            given = " · ".join(text for text in picker.figures(wanted.resources, look).values() if text)
            log.say(5, look.say("progress.checking", profile=wanted.profile, given=given))

        try:
            choice = picker.choice_from_options(self.user_options)
            chosen = await self.rules.select(choice, checking)
        except KajiyaError:
            # The Hub stored the options before they were checked; the next start must not meet them again.
            self.orm_spawner.user_options = self.choice.as_options() if self.choice else {}
            raise
        home = await asyncio.to_thread(self.homes.ensure, self.user.name)
        await self._prepare_environment(log)
        self.choice, self.ended = Choice(chosen.profile, chosen.options), None
        self.mem_limit, self.cpu_limit = chosen.resources.memory, chosen.resources.cpu
        log.say(60, look.say("progress.starting"))
        for last_try in (False, True):
            # What an interrupted start or a killed supervisor left is ended before its folder is used again.
            await self.local.end(None, self.grace)
            await self._launch(home, chosen)
            problem = await self._wait(log)
            if problem is None:
                log.say(95, look.say("progress.answers"))
                return "127.0.0.1", self.port
            if last_try or "already in use" not in self.folder.tail():
                raise problem
        raise AssertionError("unreachable")

    async def _prepare_environment(self, log: ProgressLog) -> None:
        if self.prepare is None:
            return
        loop, look = asyncio.get_running_loop(), self.look
        steps = 0

        def tell(reason: Reason) -> None:
            nonlocal steps
            steps += 1
            percent = min(55, 12 + 6 * steps)
            loop.call_soon_threadsafe(log.say, percent, look.say(reason.code, **reason.params))

        log.say(12, look.say("progress.environment"))
        await self.prepare(self.user.name, tell)

    async def _launch(self, home: Home, chosen: Selection) -> None:
        local, self.port = self.local, free_port()
        await asyncio.to_thread(local.folder.prepare, home)
        await asyncio.to_thread(local.folder.write_port, self.port)
        env = variables(home, local.folder, chosen, self.get_env())
        # An editable install carries no server configuration, so what enables our extension is said here.
        argv = [*self.cmd, *self.get_args(), "--ServerApp.jpserver_extensions={'kajiya_lab': True}"]
        if os.geteuid() == 0 and not home.uid:
            argv.append("--allow-root")  # without accounts it is whoever started Kajiya
        self.identity = await local.start(home, chosen, argv, env, self.grace)

    async def _wait(self, log: ProgressLog) -> KajiyaError | None:
        """Until the server listens: None, or why it never will."""
        said, until = False, 0.0
        while True:
            # Alive before the records: who is gone after the look has written its exit before.
            alive = self.identity is not None and process.alive(self.identity)
            standing = self.local.standing()
            if not alive:
                return self._why(standing)
            if standing.started:
                if not said:
                    said, until = True, time.monotonic() + self.answer_timeout
                    log.say(75, self.look.say("progress.waiting"))
                if await answers(self.port):
                    return None
                if time.monotonic() > until:
                    return ServerSilent(seconds=int(self.answer_timeout), log=str(self.folder.log))
            await asyncio.sleep(0.05)

    def _why(self, standing: Standing) -> KajiyaError:
        record = standing.exit or {}
        reason = ending(record) or Reason(code="process.unknown")
        if reason.code == NoCapacity.code:
            return NoCapacity(**reason.params)
        why = self.look.reason(reason.code, reason.params)
        if record.get("ending") == "out_of_memory":
            return ServerMemory(why=why)
        # What the server itself said last tells more than its exit status.
        said = telling(self.folder.tail()) if reason.code.startswith("process.") else ""
        return ServerFailed(problem=said or why.rstrip(".。"), log=str(self.folder.log))

    async def _abandon(self) -> None:
        who, self.identity = self.identity, None
        await asyncio.shield(self.local.end(who, self.grace))

    def get_env(self) -> dict[str, str]:
        """The Hub's variables, and by which a server reaches Kajiya and MLflow as its user."""
        env = {str(k): str(v) for k, v in self.variables.items()} | super().get_env()
        env["KAJIYA_TOKEN"] = self.api_token
        if self.service_url:
            env["KAJIYA_API_URL"] = self.service_url
        if self.mlflow_url:
            env |= {"MLFLOW_TRACKING_URI": self.mlflow_url, "MLFLOW_TRACKING_TOKEN": self.api_token}
        return env

    async def poll(self) -> int | None:
        """None while the server runs or starts, else its exit status, 0 if there never was one."""
        if self._starting:
            return None
        if self.identity is None:
            return 0
        if process.alive(self.identity):
            return None
        record = self.local.standing().exit or {}
        if not self._stopping and self.ended is None:
            self.ended = ending(record)
            await asyncio.to_thread(self.local.clear)
        status = record.get("exit_code")
        return status if isinstance(status, int) and status != 0 else 1

    async def stop(self, now: bool = False) -> None:
        """Ends the server; no process of it is left when this returns."""
        self._stopping = True
        if self.identity is not None:
            await self.local.end(self.identity, 0 if now else self.grace)

    async def progress(self) -> AsyncGenerator[dict[str, Any], None]:
        """The sentences of the present start."""
        log = self.progress_log
        if log is None:
            return
        async for event in log.follow():
            yield event
