"""Homes: one folder a user, 0700, with example notebooks; with accounts, owned by the user's Unix account."""

import grp
import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from kajiya.errors import AccountFailed, AccountsNeedRoot, HomeOfAnother, InvalidName
from kajiya.names import account, safe_environment_name, slug

ACCOUNTS_GROUP = "kajiya-users"


@dataclass(frozen=True)
class Home:
    """A user's home and what lies at fixed places in it. `uid` and `gid` are None where all run as one account."""

    user: str
    path: Path
    uid: int | None = None
    gid: int | None = None

    @property
    def kajiya(self) -> Path:
        """Where Kajiya keeps what is the user's own: environments and kernels."""
        return self.path / ".kajiya"

    def environment(self, name: str = "default") -> Path:
        """The folder of an environment, there or not. Raises `InvalidName`."""
        if not safe_environment_name(name):
            raise InvalidName(name=name, problem="an environment's name is 1 to 63 of a-z, 0-9 and inner hyphens")
        return self.kajiya / "envs" / name

    def python(self, name: str = "default") -> Path:
        """The interpreter of an environment, there or not."""
        return self.environment(name) / "bin" / "python"

    @property
    def jupyter_path(self) -> Path:
        """Where the kernel `python3` stands that runs the default environment; goes into `JUPYTER_PATH`."""
        return self.kajiya / "share" / "jupyter"

    def variables(self, name: str = "default", path: str | None = None) -> dict[str, str]:
        """The environment variables by which servers, kernels and jobs find an environment first.

        `path` is the PATH to go behind it; this process's if left out.
        """
        env = self.environment(name)
        rest = os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin") if path is None else path
        return {
            "HOME": str(self.path),
            "PATH": f"{env / 'bin'}:{rest}",
            "VIRTUAL_ENV": str(env),
            "PIP_USER": "0",
            "PYTHONNOUSERSITE": "1",
            "JUPYTER_PATH": str(self.jupyter_path),
        }


@dataclass(frozen=True)
class Homes:
    """All homes below one folder; with `accounts` each belongs to its user's Unix account (needs root)."""

    root: Path
    accounts: bool = False

    def of(self, user: str) -> Home:
        """A user's home, there or not; nothing is made."""
        path = self.root / slug(user)
        if not self.accounts:
            return Home(user, path)
        entry = _account(account(user))
        return Home(user, path) if entry is None else Home(user, path, entry.pw_uid, entry.pw_gid)

    def ensure(self, user: str) -> Home:
        """The home, made with the example notebooks if it is not there. Raises `SetupError` leaves, `OSError`."""
        if self.accounts:
            _ensure_account(account(user), self.root / slug(user))
        home = self.of(user)
        if home.path.is_dir():
            if home.uid is not None and home.path.stat().st_uid != home.uid:
                raise HomeOfAnother(path=home.path, account=account(user))
            return home
        self.root.mkdir(parents=True, exist_ok=True)
        # Made beside and renamed: a home is there whole or not at all, and root never writes into a user's folder.
        new = self.root / f".new-{slug(user)}-{os.getpid()}-{os.urandom(4).hex()}"
        new.mkdir(mode=0o700)
        try:
            copy_examples(new)
            if home.uid is not None and home.gid is not None:
                for folder, folders, names in os.walk(new):
                    for name in [*folders, *names]:
                        os.lchown(Path(folder) / name, home.uid, home.gid)
                os.chown(new, home.uid, home.gid)
            new.rename(home.path)
        except OSError:
            shutil.rmtree(new, ignore_errors=True)
            if not home.path.is_dir():  # else another start made it in the meantime
                raise
        return home


def examples() -> Path | None:
    """The folder of example notebooks: in the package, or in the checkout of an editable install."""
    package = Path(str(files("kajiya")))
    for place in (package / "notebooks", package.parents[1] / "notebooks"):
        if place.is_dir():
            return place
    return None


def copy_examples(target: Path) -> None:
    """Copies the example notebooks and what lies beside them into a folder, hidden files left out."""
    source = examples()
    if source is None:
        return
    for entry in sorted(source.iterdir()):
        if entry.name.startswith((".", "_")):
            continue
        if entry.is_dir():
            shutil.copytree(entry, target / entry.name, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        else:
            shutil.copyfile(entry, target / entry.name)


def _account(name: str) -> pwd.struct_passwd | None:
    """The entry of an account that Kajiya made, or None. Raises `AccountFailed` where the name is another's."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    try:
        ours = name in grp.getgrnam(ACCOUNTS_GROUP).gr_mem
    except KeyError:
        ours = False
    if not ours or entry.pw_uid == 0:
        raise AccountFailed(command="useradd", problem=f"{name} is there already and is not Kajiya's")
    return entry


def _ensure_account(name: str, home: Path) -> None:
    if _account(name) is not None:
        return
    if os.geteuid() != 0:
        raise AccountsNeedRoot()
    _run(["groupadd", "--system", "--force", ACCOUNTS_GROUP])
    # A group of its own for each account, so that a file's group never opens it to another user.
    place = ["--home-dir", str(home), "--shell", "/bin/bash"]
    _run(["useradd", "--no-create-home", "--user-group", "--groups", ACCOUNTS_GROUP, *place, name])


def _run(argv: list[str]) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise AccountFailed(command=argv[0], problem=str(e)) from e
    if done.returncode not in (0, 9):  # 9: the name exists, made by another start in the meantime
        raise AccountFailed(command=argv[0], problem=done.stderr.strip() or f"exit status {done.returncode}")
