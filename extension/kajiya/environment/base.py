"""The base of all environments on one machine: a lock, resolved once, and an environment made from it once.

`DATA/base` holds the wheel of Kajiya, `requirements.in`, `pylock-<digest>.toml` (PEP 751) and `env-<digest>`, from
which homes' environments are cloned. uv's cache lies beside it, on the same file system, so that links work.
"""

import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from kajiya.environment import Progress, silent, uv, wheel
from kajiya.types import Reason

PACKAGES = ("pip", "ipykernel", "scikit-learn", "pandas", "matplotlib")

# An optional part of jsonschema's format checks whose grammar costs every importing process 0.9 s of CPU.
OVERRIDES = ("rfc3987-syntax ; python_version < '3'",)


@dataclass(frozen=True)
class Base:
    """Where the base lies and how it is made; `variables` carry the site's index, proxy and certificates.

    With `accounts` files are never shared between owners.
    """

    folder: Path
    cache: Path
    accounts: bool = False
    variables: dict[str, str] = field(default_factory=dict[str, str])
    packages: tuple[str, ...] = PACKAGES
    python: str = field(default_factory=lambda: interpreter())

    def made_from(self, lock_digest: str) -> Path | None:
        """The environment made from the lock of this digest (sha256 in hex), or None where there is none."""
        place = _environment(self.folder, lock_digest)
        return place if (place / "bin" / "python").exists() else None


@dataclass(frozen=True)
class Prepared:
    """A base that is ready: its lock, its environment and the wheel of Kajiya, each with a digest."""

    lock: Path
    environment: Path
    wheel: Path
    lock_digest: str
    wheel_digest: str
    requires: str
    python: str

    @property
    def mark(self) -> dict[str, str]:
        """What an environment made from this base records of it."""
        return {
            "base": self.lock_digest,
            "kajiya": self.wheel_digest,
            "requires": self.requires,
            "python": self.python,
        }


def interpreter() -> str:
    """The interpreter below this one's virtual environments: what environments of homes are made on."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


@contextmanager
def mutex(path: Path) -> Generator[None]:
    """Waits until no other process is inside; ends with the process in any case."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def prepare(base: Base, progress: Progress = silent) -> Prepared:
    """Makes the base, or finds that it is there. Raises `PackagesUnavailable`, `EnvironmentFailed`, `DiskFull`."""
    mode = 0o755 if base.accounts else 0o700
    base.folder.mkdir(parents=True, exist_ok=True, mode=mode)
    base.cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    with mutex(base.folder / ".mutex"):
        path = wheel.build(base.folder)
        lock, lock_digest = _lock(base, path, progress)
        environment = _environment(base.folder, lock_digest)
        if not (environment / "bin" / "python").exists():
            _make(base, lock, environment, progress)
        requires = _sha256("\n".join(_requires()).encode())
        return Prepared(
            lock, environment, path, lock_digest, _sha256(path.read_bytes()), requires, python_version(base)
        )


def python_version(base: Base) -> str:
    """The version of the interpreter of the base; it is this process's own."""
    return f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"


def _requires() -> list[str]:
    """What this Kajiya itself asks for."""
    return sorted(distribution("kajiya").requires or [])


def _requirements(base: Base, path: Path) -> str:
    lines = [f"kajiya[widgets] @ {path.resolve().as_uri()}", *base.packages]
    for name in ("mlflow", "mlflow-skinny"):  # the client's release must be the server's
        with suppress(PackageNotFoundError):
            lines.append(f"mlflow-skinny=={version(name)}")
            break
    return "".join(f"{line}\n" for line in lines)


def _lock(base: Base, path: Path, progress: Progress) -> tuple[Path, str]:
    requirements = _requirements(base, path)
    # Resolved again only when what is asked for changed: then two homes made a year apart have the same base.
    asked = [requirements.split("\n", 1)[1], *_requires(), base.python]
    asked += [python_version(base), base.variables.get("UV_DEFAULT_INDEX", ""), *OVERRIDES]
    lock = base.folder / f"pylock.{_sha256(chr(10).join(asked).encode())[:16]}.toml"
    if not lock.exists():
        progress(Reason(code="environment.resolving"))
        source, overrides = base.folder / "requirements.in", base.folder / "overrides.txt"
        source.write_text(requirements, "utf-8")
        overrides.write_text("".join(f"{line}\n" for line in OVERRIDES), "utf-8")
        new = base.folder / "pylock.new.toml"
        new.unlink(missing_ok=True)
        arguments = ["pip", "compile", str(source), "--format", "pylock.toml", "--output-file", str(new), "--quiet"]
        arguments += ["--overrides", str(overrides), "--no-emit-package", "kajiya", "--python", base.python]
        arguments += ["--no-header", "--no-annotate"]
        uv.run(arguments, cache=base.cache, variables=base.variables, cwd=base.folder)
        new.chmod(0o644)
        new.rename(lock)
    return lock, _sha256(lock.read_bytes())


def _make(base: Base, lock: Path, environment: Path, progress: Progress) -> None:
    progress(Reason(code="environment.base"))
    for left in base.folder.glob(".new-env-*"):  # of a start that was killed; we hold the mutex
        shutil.rmtree(left, ignore_errors=True)
    new = base.folder / f".new-env-{os.getpid()}"

    def call(*arguments: str) -> None:
        uv.run(arguments, cache=base.cache, variables=base.variables, cwd=base.folder)

    try:
        place = ("--python", base.python, "--prompt", "kajiya", str(new))
        call("venv", "--quiet", "--relocatable", "--no-project", *place)
        python = str(new / "bin" / "python")
        call("pip", "sync", "--quiet", "--compile-bytecode", "--python", python, str(lock))
        new.rename(environment)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _environment(folder: Path, lock_digest: str) -> Path:
    return folder / f"env-{lock_digest[:16]}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
