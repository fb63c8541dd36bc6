"""Homes with Unix accounts: real accounts, made and removed; and the refusals that keep them honest."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from helpers.stack import BIN, free_port
from kajiya.errors import AccountFailed, AccountsNeedRoot, HomeOfAnother
from kajiya.machine import homes
from kajiya.machine.homes import Homes
from kajiya.names import account
from kajiya_hub.access import closed_folder

root_only = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("useradd") is None, reason="only root can make Unix accounts, and with useradd"
)
USER = "試験-kajiya-test"


@pytest.fixture
def user() -> Iterator[str]:
    yield USER
    subprocess.run(["userdel", account(USER)], capture_output=True, check=False)


@root_only
def test_each_user_gets_an_account_and_a_home_that_others_can_not_enter(tmp_path: Path, user: str) -> None:
    made = Homes(tmp_path / "homes", accounts=True).ensure(user)
    entry = pwd.getpwnam(account(user))
    assert (made.uid, made.gid) == (entry.pw_uid, entry.pw_gid)
    assert made.uid != 0
    status = made.path.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (made.uid, made.gid, 0o700)
    assert all(path.lstat().st_uid == made.uid for path in made.path.rglob("*"))
    assert Homes(tmp_path / "homes", accounts=True).ensure(user) == made


@root_only
def test_a_home_made_without_accounts_is_named_not_taken(tmp_path: Path, user: str) -> None:
    Homes(tmp_path / "homes").ensure(user)
    with pytest.raises(HomeOfAnother) as e:
        Homes(tmp_path / "homes", accounts=True).ensure(user)
    assert "chown" in e.value.sentence("en")


@root_only
def test_an_account_that_is_not_kajiyas_is_never_used(tmp_path: Path, user: str) -> None:
    subprocess.run(["useradd", "--no-create-home", account(user)], check=True)
    for ask in (Homes(tmp_path / "homes", accounts=True).ensure, Homes(tmp_path / "homes", accounts=True).of):
        with pytest.raises(AccountFailed):
            ask(user)


def test_without_root_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes.os, "geteuid", lambda: 1000)
    with pytest.raises(AccountsNeedRoot) as e:
        Homes(tmp_path / "homes", accounts=True).ensure("nobody-of-that-name")
    assert "--accounts" in e.value.sentence("en")


@root_only
def test_a_start_where_accounts_could_reach_nothing_is_refused(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    argv = [str(BIN / "kajiya-hub"), "up", "--accounts", "--data-dir", str(closed / "data"), "--port", str(free_port())]
    refused = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=os.environ | {"KAJIYA_LANG": "en"})
    assert refused.returncode == 1
    assert "closed to others" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_the_first_closed_folder_on_the_way_is_named() -> None:
    # Not below pytest's own folder, which is closed to others itself.
    with TemporaryDirectory(dir="/var/tmp") as name:
        inner = Path(name) / "a" / "b"
        inner.mkdir(parents=True)
        for folder in (Path(name), inner.parent, inner):
            folder.chmod(0o755)
        assert closed_folder(inner) is None
        inner.parent.chmod(0o700)
        assert closed_folder(inner) == inner.parent.resolve()
