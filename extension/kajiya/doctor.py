"""What `kajiya doctor` looks at: this Python, its environment, this machine, and the service behind it.

Each check is one sentence that says how things stand and, where something is wrong, what to do. Nothing is changed.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from kajiya import __version__, credentials
from kajiya.client import Client
from kajiya.errors import AccessError, KajiyaError, NotConfigured
from kajiya.messages import message
from kajiya.sizes import show_size

State = Literal["good", "note", "wrong"]
OLDEST_PYTHON = (3, 11)
# Below this a notebook can still be saved, and little else.
LEAST_FREE = 500 * 1024**2


@dataclass(frozen=True)
class Check:
    """One thing looked at: how it stands, and a sentence."""

    name: str
    state: State
    sentence: str


def examine(environ: Mapping[str, str] | None = None) -> list[Check]:
    """All checks, in the order of what needs what. A check that fails itself is told as wrong, never hidden."""
    env = os.environ if environ is None else environ
    out: list[Check] = []
    checks: list[Callable[[], list[Check]]] = [
        python,
        lambda: environment(env),
        lambda: variables(env),
        lambda: kernel(env),
        lambda: disk(Path.home()),
        memory,
        gpus,
        login,
        service,
        lambda: mlflow(env),
    ]
    for check in checks:
        try:
            out += check()
        except Exception as e:
            out.append(_check("doctor", "wrong", "failed", problem=f"{type(e).__name__}: {e}"))
    return out


def report(checks: list[Check]) -> dict[str, Any]:
    """The checks as one JSON document."""
    return {"ok": not any(c.state == "wrong" for c in checks), "checks": [asdict(c) for c in checks]}


def lines(checks: list[Check]) -> list[str]:
    """The checks as lines, and a last one that sums up."""
    marks = {"good": "✓", "note": "·", "wrong": "✗"}
    wrong = sum(c.state == "wrong" for c in checks)
    end = message("doctor.wrong", {"count": wrong}) if wrong else message("doctor.ok")
    return [*(f"{marks[c.state]} {c.sentence}" for c in checks), end]


def _check(name: str, state: State, code: str, /, **params: Any) -> Check:
    return Check(name, state, message(f"doctor.{code}", params))


# --- this Python
def python() -> list[Check]:
    """The version of Python."""
    shown = ".".join(str(n) for n in sys.version_info[:3])
    if sys.version_info < OLDEST_PYTHON:
        return [_check("python", "wrong", "python_old", version=shown)]
    return [_check("python", "good", "python", version=shown, path=sys.executable)]


def environment(env: Mapping[str, str]) -> list[Check]:
    """Whether this Python is the kernels' environment, and carries pip and the widgets."""
    out: list[Check] = []
    prefix = Path(sys.prefix)
    if prefix.parent.name == "envs" and prefix.parent.parent.name == ".kajiya":
        out.append(_check("environment", "good", "environment", name=prefix.name, path=prefix))
    elif env.get("KAJIYA_API_URL"):
        # On a server or in a job what runs should be the owner's environment.
        out.append(_check("environment", "note", "environment_other", path=prefix))
    else:
        out.append(_check("environment", "good", "environment_outside", path=prefix))
    if find_spec("pip") is None:
        out.append(_check("pip", "note", "pip_missing"))
    else:
        out.append(_check("pip", "good", "pip"))
    if find_spec("anywidget") is None:
        out.append(_check("widgets", "note", "widgets_missing"))
    return out


def variables(env: Mapping[str, str]) -> list[Check]:
    """Variables that would send installs, or imports, somewhere else."""
    out: list[Check] = []
    if env.get("PIP_USER", "0").lower() not in ("", "0", "no", "false", "off"):
        out.append(_check("variables", "wrong", "pip_user", value=env["PIP_USER"]))
    for name in ("PIP_TARGET", "PIP_PREFIX", "PYTHONPATH", "PYTHONHOME"):
        if env.get(name):
            out.append(_check("variables", "note", "variable", name=name, value=env[name]))
    if env.get("KAJIYA_API_URL") and not env.get("PYTHONNOUSERSITE"):
        out.append(_check("variables", "note", "user_site"))
    return out or [_check("variables", "good", "variables")]


def kernel(env: Mapping[str, str]) -> list[Check]:
    """Whether the kernel `python3` is this environment."""
    for folder in [
        *filter(None, env.get("JUPYTER_PATH", "").split(os.pathsep)),
        str(Path(sys.prefix) / "share/jupyter"),
    ]:
        file = Path(folder) / "kernels/python3/kernel.json"
        try:
            first = json.loads(file.read_text("utf-8"))["argv"][0]
        except OSError:
            continue
        except (ValueError, LookupError, TypeError):
            return [_check("kernel", "wrong", "kernel_broken", path=file)]
        # A bare name means the Python that starts it.
        mine = not os.path.isabs(first) or Path(first).parent == Path(sys.executable).parent  # noqa: PTH117
        if mine:
            return [_check("kernel", "good", "kernel", path=file)]
        if not Path(first).exists():
            return [_check("kernel", "wrong", "kernel_gone", path=file, python=first)]
        return [_check("kernel", "note", "kernel_other", python=first)]
    return [_check("kernel", "note", "kernel_none")]


# --- this machine
def disk(home: Path) -> list[Check]:
    """Whether there is room in the home."""
    free = shutil.disk_usage(home).free
    state: State = "good" if free >= LEAST_FREE else "wrong"
    return [_check("disk", state, "disk" if state == "good" else "disk_full", path=home, free=show_size(free))]


def memory() -> list[Check]:
    """How the memory of servers and jobs would be held to its limit here."""
    from kajiya.machine.memory import delegated

    return [_check("memory", "good", "memory_cgroup" if delegated() else "memory_polling")]


def gpus() -> list[Check]:
    """The GPUs that this process sees."""
    from kajiya.machine.gpus import gpus as seen

    found = seen()
    if not found:
        return [_check("gpus", "good", "gpus_none")]
    kinds = [f"{sum(g.kind == kind for g in found)} × {kind}" for kind in sorted({g.kind for g in found})]
    return [_check("gpus", "good", "gpus", gpus=kinds)]


# --- the service
def login() -> list[Check]:
    """Whether the stored token is private."""
    if credentials.readable_by_others():
        return [_check("login", "wrong", "login_open", path=credentials.path())]
    return []


def service(client: Client | None = None) -> list[Check]:
    """Whether the service answers, knows the token, and has a profile open."""
    try:
        api = client or Client(patience=2)
    except NotConfigured as e:
        return [Check("service", "wrong", e.sentence())]
    out: list[Check] = []
    with api:
        try:
            health = api.health()
        except KajiyaError as e:
            return [Check("service", "wrong", e.sentence())]
        wrong = {k: v for k, v in health.parts.items() if v != "ok"}
        if health.ok and not wrong:
            out.append(_check("service", "good", "service", url=api.url, version=health.version))
        else:
            parts = [f"{k}: {v}" for k, v in wrong.items()]
            out.append(_check("service", "wrong", "service_ill", url=api.url, parts=parts))
        if health.version.split(".")[:2] != __version__.split(".")[:2]:
            out.append(_check("version", "note", "version_other", mine=__version__, theirs=health.version))
        try:
            who = api.whoami()
            out.append(_check("token", "good", f"token_{who.kind}", name=who.name, groups=who.groups or "-"))
            profiles = api.profiles()
        except AccessError as e:
            return [*out, Check("token", "wrong", e.sentence())]
        except KajiyaError as e:
            return [*out, Check("service", "wrong", e.sentence())]
        if profiles:
            out.append(_check("profiles", "good", "profiles", names=[p.slug for p in profiles]))
        else:
            out.append(_check("profiles", "wrong", "profiles_none"))
    return out


def mlflow(env: Mapping[str, str]) -> list[Check]:
    """Whether MLflow answers and knows the token."""
    uri = env.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        return [_check("mlflow", "note", "mlflow_unset")]
    if not uri.startswith(("http://", "https://")):
        return [_check("mlflow", "note", "mlflow_local", uri=uri)]
    import httpx

    token = env.get("MLFLOW_TRACKING_TOKEN", "")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        # Answered to everybody who is known, with what that user may read.
        answer = httpx.post(
            f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search",
            json={"max_results": 1},
            headers=headers,
            timeout=10,
            trust_env=not credentials.loopback(uri),
        )
    except httpx.HTTPError as e:
        return [_check("mlflow", "wrong", "mlflow_away", uri=uri, problem=str(e) or type(e).__name__)]
    if answer.status_code in (401, 403):
        return [_check("mlflow", "wrong", "mlflow_refused", uri=uri, status=answer.status_code)]
    if answer.status_code != 200 or "json" not in answer.headers.get("content-type", ""):
        return [_check("mlflow", "wrong", "mlflow_odd", uri=uri, status=answer.status_code)]
    try:
        installed = version("mlflow-skinny")
    except PackageNotFoundError:
        return [_check("mlflow", "note", "mlflow_missing", uri=uri)]
    return [_check("mlflow", "good", "mlflow", uri=uri, version=installed)]
