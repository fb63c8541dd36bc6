"""An owner's environment, made from the base: there whole or not at all, whatever is killed meanwhile.

With Unix accounts the making runs as a process of the account (`python -m kajiya.environment.make`), so that root never
writes into a folder where a user could have put a link.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from kajiya.environment import Progress, silent, uv
from kajiya.environment.base import Base, Prepared, mutex, prepare
from kajiya.environment.clone import clone
from kajiya.errors import DiskFull, EnvironmentFailed, KajiyaError, leaves
from kajiya.machine.homes import Home
from kajiya.types import Reason

MARK = "kajiya-base.json"
KERNEL = "python3"


def ensure(home: Home, base: Base, progress: Progress = silent) -> Path:
    """The owner's default environment, made or brought up to this Kajiya if needed; returns its folder.

    Takes from milliseconds (nothing to do) to about two seconds once the base is there, and as long as the network
    needs the very first time. May be called from any thread; a second call waits for the first. Raises
    `PackagesUnavailable`, `EnvironmentFailed`, `DiskFull`.
    """
    prepared = prepare(base, progress)
    if home.uid is not None and os.geteuid() == 0 and home.uid != 0:
        _as_account(home, prepared, base, progress)
    else:
        make(home, prepared, base, progress)
    return home.environment()


def make(home: Home, base: Prepared, how: Base, progress: Progress = silent) -> None:
    """The same as this process's own account, the base being ready."""
    environment = home.environment()
    try:
        environment.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with mutex(environment.parent / ".mutex"):
            _make(home, environment, base, how, progress)
        write_kernel(home)
    except OSError as e:
        if e.errno in (28, 122):  # ENOSPC, EDQUOT
            raise DiskFull(path=str(environment)) from e
        raise EnvironmentFailed(problem=f"{environment}: {(e.strerror or str(e)).lower()}") from e


def _make(home: Home, environment: Path, base: Prepared, how: Base, progress: Progress) -> None:
    for left in environment.parent.glob(".new-*"):  # of a making that was killed; we hold the mutex
        shutil.rmtree(left, ignore_errors=True)
    mark = read_mark(environment)
    if environment.exists() and not _runs(environment, base, mark):
        aside = environment.with_name(f"{environment.name}-before-{(mark or {}).get('python', 'unknown')}")
        while aside.exists():
            aside = aside.with_name(f"{aside.name}-again")
        progress(Reason(code="environment.set_aside", params={"kept": str(aside)}))
        environment.rename(aside)
    if environment.exists():
        if mark is None or mark.get("kajiya") != base.wheel_digest:
            progress(Reason(code="environment.updating"))
            same = mark is not None and mark.get("requires") == base.requires
            _install_kajiya(environment, base, how, with_dependencies=not same)
            _compile(environment, environment)
            # What it was made from stays: additions are told from the base by it.
            now = {k: v for k, v in base.mark.items() if k != "base"}
            _write_mark(environment, (mark or {}) | now)
        return
    progress(Reason(code="environment.making"))
    new = environment.parent / f".new-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        clone(base.environment, new, share=not how.accounts)
        _install_kajiya(new, base, how, with_dependencies=False)
        _compile(new, environment)
        _write_mark(new, base.mark)
        new.rename(environment)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _runs(environment: Path, base: Prepared, mark: dict[str, str] | None) -> bool:
    """Whether the environment's interpreter is there and of the version that its packages were installed for."""
    if not os.access(environment / "bin" / "python", os.X_OK):
        return False
    minor = ".".join(base.python.split(".")[:2])
    return (environment / "lib" / f"python{minor}" / "site-packages").is_dir()


def _install_kajiya(environment: Path, base: Prepared, how: Base, with_dependencies: bool) -> None:
    # Of every Kajiya ever built the cache would keep a copy.
    cache = how.cache if with_dependencies and not how.accounts else None
    python = str(environment / "bin" / "python")
    arguments = ["pip", "install", "--quiet", "--python", python, "--reinstall-package", "kajiya"]
    # A link into the cache of a wheel that is rebuilt with the same name would only fill the cache.
    arguments += ["--link-mode", "copy"]
    if with_dependencies:
        arguments += [f"kajiya[widgets] @ {base.wheel.resolve().as_uri()}"]
    else:
        arguments += ["--no-deps", "--offline", str(base.wheel)]
    uv.run(arguments, cache=cache, variables=how.variables, cwd=environment)


def _compile(environment: Path, final: Path) -> None:
    packages = [str(p) for p in environment.glob("lib/python*/site-packages/kajiya*") if p.suffix != ".dist-info"]
    argv = [str(environment / "bin" / "python"), "-m", "compileall", "-q", "-s", str(environment), "-p", str(final)]
    # Only speed is lost without it, so its failure is no reason to fail.
    subprocess.run([*argv, *packages], capture_output=True, check=False)


def read_mark(environment: Path) -> dict[str, str] | None:
    """What an environment records of the base it was made from, or None."""
    try:
        data = json.loads((environment / MARK).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(data, dict):
        return None
    return {str(k): str(v) for k, v in cast("dict[Any, Any]", data).items()}


def _write_mark(environment: Path, mark: dict[str, str]) -> None:
    _write(environment / MARK, mark)


def write_kernel(home: Home) -> None:
    """The kernel `python3` that runs the default environment; written only where it differs."""
    variables = home.variables(path="${PATH}")
    spec = {
        "argv": [str(home.python()), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3 (default)",
        "language": "python",
        "interrupt_mode": "signal",
        "env": {k: variables[k] for k in ("PATH", "VIRTUAL_ENV", "PIP_USER", "PYTHONNOUSERSITE")},
        "metadata": {"debugger": True, "kajiya": {"environment": "default"}},
    }
    folder = home.jupyter_path / "kernels" / KERNEL
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "kernel.json"
    try:
        if json.loads(path.read_bytes()) == spec:
            return
    except (OSError, ValueError):
        pass
    _write(path, spec)


def _write(path: Path, data: Any) -> None:
    # Two threads of one process may be here at once.
    new = path.with_name(f".new-{os.getpid()}-{os.urandom(4).hex()}-{path.name}")
    new.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    new.replace(path)


# --- as the account of a user
def _as_account(home: Home, base: Prepared, how: Base, progress: Progress) -> None:
    assert home.uid is not None and home.gid is not None
    order = {
        "home": {"user": home.user, "path": str(home.path), "uid": home.uid, "gid": home.gid},
        "prepared": {k: str(v) for k, v in asdict(base).items()},
        "base": {"folder": str(how.folder), "cache": str(how.cache), "accounts": True, "variables": how.variables},
    }
    env = {k: v for k, v in os.environ.items() if not k.startswith(("KAJIYA_", "JUPYTERHUB_", "CONFIGPROXY_"))}
    env |= {"HOME": str(home.path), "USER": home.user, "TMPDIR": "/tmp"}  # noqa: S108
    worker = subprocess.Popen(
        [sys.executable, "-m", "kajiya.environment.make"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        cwd=home.path,
        user=home.uid,
        group=home.gid,
        extra_groups=[],
        umask=0o077,
    )
    assert worker.stdin is not None and worker.stdout is not None
    with worker:
        worker.stdin.write(json.dumps(order))
        worker.stdin.close()
        failure: dict[str, Any] | None = None
        for line in worker.stdout:
            said = json.loads(line)
            if "error" in said:
                failure = said["error"]
            else:
                progress(Reason.model_validate(said))
    if failure is not None:
        found = next((leaf for leaf in leaves() if leaf.code == failure["code"]), EnvironmentFailed)
        raise found(**failure["params"])
    if worker.returncode != 0:
        raise EnvironmentFailed(problem=f"the process that makes it ended with status {worker.returncode}")


def _worker() -> int:
    order = json.loads(sys.stdin.read())
    home = Home(order["home"]["user"], Path(order["home"]["path"]), order["home"]["uid"], order["home"]["gid"])
    ready: dict[str, str] = order["prepared"]
    prepared = Prepared(
        lock=Path(ready["lock"]),
        environment=Path(ready["environment"]),
        wheel=Path(ready["wheel"]),
        lock_digest=ready["lock_digest"],
        wheel_digest=ready["wheel_digest"],
        requires=ready["requires"],
        python=ready["python"],
    )
    raw = order["base"]
    how = Base(Path(raw["folder"]), Path(raw["cache"]), accounts=raw["accounts"], variables=raw["variables"])

    def tell(reason: Reason) -> None:
        print(reason.model_dump_json(), flush=True)

    try:
        make(home, prepared, how, tell)
    except KajiyaError as e:
        params = {k: str(v) for k, v in e.params.items()}
        print(json.dumps({"error": {"code": e.code, "params": params}}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_worker())
