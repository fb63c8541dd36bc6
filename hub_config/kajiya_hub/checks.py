"""What `kajiya-hub doctor` looks at: this machine, the data directory, and the running parts."""

import os
import shutil
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kajiya.environment import uv
from kajiya.errors import KajiyaError, NotConfigured
from kajiya.machine import memory
from kajiya.machine.gpus import gpus
from kajiya.messages import message
from kajiya_hub import access
from kajiya_hub.datadir import DataDir, holder, network_file_system
from kajiya_hub.ports import answers
from kajiya_hub.settings import Settings, read_site_settings

FREE_BYTES = 2 * 1024**3
Level = Literal["good", "worth_knowing", "bad"]


@dataclass(frozen=True)
class Check:
    """One thing looked at: how it stands, and in one sentence what to do."""

    name: str
    level: Level
    sentence: str

    @property
    def mark(self) -> str:
        return {"good": "✓", "worth_knowing": "·", "bad": "✗"}[self.level]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def run(data: DataDir) -> list[Check]:
    """All checks; none of them changes anything."""
    found = [_python(), _uv(), _data(data), _config(data), _memory(), _gpus()]
    if os.geteuid() == 0:
        found.append(_accounts(data))
    return found + _parts(data)


def _check(name: str, level: Level, code: str, **params: Any) -> Check:
    return Check(name, level, message(code, params))


def _python() -> Check:
    shown = ".".join(str(n) for n in sys.version_info[:3])
    level: Level = "good" if sys.version_info >= (3, 11) else "bad"
    return _check("python", level, "check.python", version=shown)


def _uv() -> Check:
    try:
        return _check("uv", "good", "check.uv", path=uv.find())
    except KajiyaError as e:
        return Check("uv", "bad", e.sentence())


def _data(data: DataDir) -> Check:
    place = data.root
    while not place.exists():
        place = place.parent
    kind = network_file_system(place)
    if kind:
        return _check("data_dir", "bad", "data_dir.nfs", path=data.root, kind=kind)
    free = shutil.disk_usage(place).free
    level: Level = "good" if free >= FREE_BYTES else "bad"
    return _check("data_dir", level, "check.disk" if level == "good" else "check.disk_low", path=place,
                  free=f"{free / 1024**3:.1f} GiB")  # fmt: skip


def _config(data: DataDir) -> Check:
    from kajiya import profiles

    try:
        read_site_settings(data.config)
        if data.profiles.exists():
            profiles.load(data.profiles)
    except KajiyaError as e:
        return Check("config", "bad", e.sentence())
    return _check("config", "good", "check.config")


def _memory() -> Check:
    if memory.delegated(enable=False) is not None:
        return _check("memory", "good", "check.memory_cgroup")
    return _check("memory", "worth_knowing", "check.memory_polled")


def _gpus() -> Check:
    kinds = Counter(gpu.kind for gpu in gpus())
    if not kinds:
        return _check("gpus", "good", "check.gpus_none")
    return _check("gpus", "good", "check.gpus", gpus=[f"{count} × {kind}" for kind, count in kinds.items()])


def _accounts(data: DataDir) -> Check:
    try:
        access.check(data.root if data.root.exists() else data.root.parent)
    except (KajiyaError, OSError) as e:
        sentence = e.sentence() if isinstance(e, KajiyaError) else str(e)
        return Check("accounts", "worth_knowing", sentence)
    return _check("accounts", "good", "check.accounts")


def _parts(data: DataDir) -> list[Check]:
    pid = holder(data)
    if pid is None:
        return [_check("running", "worth_knowing", "check.not_running")]
    try:
        settings = Settings.load(data.settings)
    except (NotConfigured, ValueError):
        return [_check("running", "bad", "check.settings_unreadable", path=data.settings)]
    found = [_check("running", "good", "check.running", pid=pid, url=settings.public_url)]
    for part, url, statuses in (
        ("hub", f"{settings.hub_url}/login", range(200, 400)),
        ("service", f"{settings.service_url}/health", range(200, 300)),
        ("mlflow", f"{settings.mlflow_url}/health", range(200, 500)),
    ):
        good = answers(url, statuses)
        code = "check.part" if good else "check.part_silent"
        found.append(_check(part, "good" if good else "bad", code, part=part, log=data.logs / f"{part}.log"))
    return found
