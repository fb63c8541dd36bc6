"""uv, called as a process: found, given this site's settings, and its failures said in one sentence."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from kajiya.errors import DiskFull, EnvironmentFailed, PackagesUnavailable, UvMissing

_NETWORK = (
    "failed to fetch",
    "error sending request",
    "client error",
    "dns error",
    "could not connect",
    "connection",
    "no solution found",
    "network connectivity is disabled",
    "not found in the cache",
    "timed out",
)

# Where distributions keep the authorities that the machine trusts: a site's own authority is among them.
_AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


def find() -> str:
    """The path of uv: beside this interpreter, else on PATH. Raises `UvMissing`."""
    beside = Path(sys.prefix) / "bin" / "uv"
    if beside.exists():
        return str(beside)
    found = shutil.which("uv")
    if found is None:
        raise UvMissing()
    return found


def run(arguments: Sequence[str], *, cache: Path | None, variables: Mapping[str, str], cwd: Path) -> str:
    """Runs uv and returns what it said on stderr. Raises `PackagesUnavailable`, `DiskFull`, `EnvironmentFailed`."""
    env = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "CONDA_PREFIX")}
    if any(Path(place).exists() for place in _AUTHORITIES):
        # As pip does; uv alone would trust only what is built into it. The second name is that of older releases.
        env = {"UV_SYSTEM_CERTS": "1", "UV_NATIVE_TLS": "1"} | env
    if "PIP_INDEX_URL" in env:  # uv reads nothing that is said to pip, and who said it meant all fetching
        env = {"UV_DEFAULT_INDEX": env["PIP_INDEX_URL"]} | env
    env |= {"NO_COLOR": "1", "UV_NO_PROGRESS": "1", "UV_PYTHON_DOWNLOADS": "never"} | dict(variables)
    argv = [find(), *arguments, *(["--no-cache"] if cache is None else ["--cache-dir", str(cache)])]
    try:
        done = subprocess.run(
            argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
    except OSError as e:
        raise EnvironmentFailed(problem=str(e)) from e
    if done.returncode == 0:
        return done.stderr
    said = " ".join(done.stderr.split())
    low = said.lower()
    if "no space left" in low or "disk quota" in low:
        raise DiskFull(path=str(cwd))
    problem = _last_words(done.stderr) or f"uv ended with status {done.returncode}"
    if any(sign in low for sign in _NETWORK):
        raise PackagesUnavailable(problem=problem)
    raise EnvironmentFailed(problem=problem)


def _last_words(stderr: str) -> str:
    # uv prints a chain of causes, outermost first; the first line names the package, the last the reason.
    lines = [line.strip(" ×╰─▶├│\t") for line in stderr.splitlines()]
    lines = [line.removeprefix("error: ").removeprefix("Caused by: ") for line in lines if line]
    lines = [line for line in lines if not line.startswith(("Using ", "Resolved ", "hint:", "warning:", "Creating "))]
    if len(lines) > 1:
        return f"{lines[0]}: {lines[-1]}"
    return lines[0] if lines else ""
