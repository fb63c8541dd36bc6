"""What an environment holds: every edit is seen, nothing else is, and what must not be captured is left out."""

import json
import os
import socket
import time
from pathlib import Path

import pytest

from kajiya.environment import fingerprint
from kajiya.environment.fingerprint import Fingerprint, load, take
from kajiya.errors import EnvironmentChanging, EnvironmentUnreadable

SITE = "lib/python3.11/site-packages"
KEY = b"-----BEGIN RSA PRIVATE KEY-----\nabc\n"


@pytest.fixture
def env(tmp_path: Path) -> Path:
    root = tmp_path / "env"
    package = root / SITE / "made"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("x = 1\n")
    (package / "データ.csv").write_text("1,2\n")
    (root / "bin").mkdir()
    (root / "bin/tool").write_text(f"#!{root}/bin/python\n")
    (root / "bin/tool").chmod(0o755)
    (root / "bin/python").symlink_to("/usr/bin/python3")
    (root / "lib64").symlink_to("lib")
    for path in root.rglob("*"):  # made long ago: a fresh file's hash is not trusted
        os.utime(path, (1, 1), follow_symlinks=False)
    return root


def settled(found: Fingerprint) -> Fingerprint:
    """As if it had been taken well after the files were made."""
    later = time.time_ns() + 10_000_000_000
    entries = {p: e._replace(hashed=later) if e.hashed else e for p, e in found.entries.items()}
    return Fingerprint(found.root, entries, found.left_out, found.digest)


def test_what_did_not_change_is_not_read_again(env: Path) -> None:
    first = take(env)
    assert (first.read, len(first.entries)) == (3, 10)
    kept = load(settled(first).dump())
    again = take(env, kept)
    assert (again.digest, again.read) == (first.digest, 0)
    assert again.same_as(first)
    assert {p: e.digest for p, e in again.entries.items()} == {p: e.digest for p, e in first.entries.items()}


def test_a_file_made_a_moment_ago_is_read_again(env: Path) -> None:
    """It may have been changed within one tick of the clock after it was hashed."""
    (env / "new").write_text("1")
    assert take(env, take(env)).read >= 1


EDITS = {
    "content": lambda root: (root / SITE / "made/__init__.py").write_text("x = 2\n"),
    "content, same time": lambda root: _same_time(root / SITE / "made/__init__.py"),
    "new file": lambda root: (root / SITE / "new.py").write_text(""),
    "gone": lambda root: (root / SITE / "made/データ.csv").unlink(),
    "renamed": lambda root: (root / "bin/tool").rename(root / "bin/tool2"),
    "new folder": lambda root: (root / "empty").mkdir(),
    "executable": lambda root: (root / SITE / "made/__init__.py").chmod(0o755),
    "link": lambda root: ((root / "lib64").unlink(), (root / "lib64").symlink_to("bin")),
    "link to file": lambda root: ((root / "lib64").unlink(), (root / "lib64").write_text("lib")),
    "replaced": lambda root: _replaced(root / SITE / "made/__init__.py"),
}


def _same_time(path: Path) -> None:
    status = path.stat()
    path.write_text("x = 3\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _replaced(path: Path) -> None:
    status = path.stat()
    new = path.with_name("other")
    new.write_text("x = 4\n")
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.replace(path)


@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_gives_another_digest(env: Path, edit: str) -> None:
    before = settled(take(env))
    time.sleep(0.02)  # beyond one tick of the file system's clock
    EDITS[edit](env)
    after = take(env, before)
    assert after.digest != before.digest
    assert after.digest == take(env).digest


def test_what_running_changes_gives_the_same_digest(env: Path) -> None:
    before = settled(take(env))
    cache = env / SITE / "made/__pycache__"
    cache.mkdir()
    (cache / "__init__.cpython-311.pyc").write_bytes(b"\x01")
    (env / ".lock").write_bytes(b"")
    (env / "bin/tool").touch()
    (env / SITE / "made/__init__.py").chmod(0o600)
    os.link(env / SITE / "made/データ.csv", env.parent / "cache-of-uv")
    after = take(env, before)
    assert after.digest == before.digest
    assert after.left_out == ()
    assert after.read == 2  # touched, and another mode; that only a link was made is seen


def test_two_places_with_the_same_files_have_the_same_digest(env: Path, tmp_path: Path) -> None:
    (env / "bin/tool").write_text("#!/bin/sh\n")
    first = take(env)
    env.rename(tmp_path / "moved")
    second = take(tmp_path / "moved", settled(first))
    assert (second.digest, second.read) == (first.digest, 3)  # another root: nothing is believed


def test_files_that_name_their_environment_are_marked(env: Path, tmp_path: Path) -> None:
    (env / "across").write_bytes(b"x" * (fingerprint._CHUNK - 5) + os.fsencode(env) + b"y")
    (tmp_path / "by-link").symlink_to(env)
    for root in (env, tmp_path / "by-link"):
        found = take(root)
        assert {p for p, e in found.entries.items() if e.embeds} == {"bin/tool", "across"}


SECRETS = {
    ".netrc": b"",
    f"{SITE}/.pypirc": b"",
    "server.pem": b"cert\n" + KEY,
    "private.key": b"-----BEGIN EC PRIVATE KEY-----",
    "id_ed25519": b"-----BEGIN OPENSSH PRIVATE KEY-----",
    "id_rsa": b"-----BEGIN ENCRYPTED PRIVATE KEY-----",
    "cert.p12": b"\x30\x82",
    "pip.conf": b"[global]\nindex-url = https://me:secret@index.example/simple\n",
    "uv.toml": b'[[index]]\nurl = "https://__token__:abc@index.example/simple"\n',
    ".npmrc": b"//registry.example/:_authToken=abc\n",
    ".ssh/config": b"",
    ".aws/credentials": b"",
    ".config/gcloud/x.json": b"",
    "etc/kaggle.json": b"{}",
    ".env": b"KEY=1",
}
KEPT = {
    f"{SITE}/certifi/cacert.pem": b"-----BEGIN CERTIFICATE-----\n",
    "id_rsa.pub": b"ssh-rsa AAA",
    "pip.conf2": b"https://a:b@c/",
    "etc/pip.conf": b"[global]\ntimeout = 60\nindex-url = https://index.example/simple\n",
    "keynote.key": b"PK\x03\x04",
    f"{SITE}/gcloud/__init__.py": b"",
    f"{SITE}/token.py": b"",
    "CACHEDIR.TAG": b"Signature: 8a477f597d28d172789f06886806bc55",
}
OTHERS = {
    ".cache/x": "cache",
    f"{SITE}/.ipynb_checkpoints/a.ipynb": "cache",
    "big/cache/CACHEDIR.TAG": "cache",
    "big/cache/x": "cache",
    "share/jupyter/runtime/kernel-1.json": "runtime",
    "jpserver-12.json": "runtime",
}


def test_secrets_caches_and_leftovers_are_left_out_by_name(env: Path) -> None:
    for path, content in (SECRETS | KEPT | dict.fromkeys(OTHERS, KEPT["CACHEDIR.TAG"])).items():
        (env / path).parent.mkdir(parents=True, exist_ok=True)
        (env / path).write_bytes(content)
    with socket.socket(socket.AF_UNIX) as listening:
        here = Path.cwd()
        os.chdir(env)  # a socket's path is short
        try:
            listening.bind("sock")
        finally:
            os.chdir(here)
    os.mkfifo(env / "pipe")
    found = take(env)
    files = {p for p, e in found.entries.items() if e.kind == "f"}
    assert files & (SECRETS.keys() | OTHERS.keys()) == set()
    assert KEPT.keys() <= files
    why = dict(found.left_out)
    tops = {".ssh/config": ".ssh", ".aws/credentials": ".aws", ".config/gcloud/x.json": ".config/gcloud"}
    assert {tops.get(p, p) for p in SECRETS} == {p for p, w in why.items() if w == "secret"}
    assert {p: w for p, w in why.items() if w != "secret"} == {
        ".cache": "cache",
        f"{SITE}/.ipynb_checkpoints": "cache",
        "big/cache": "cache",
        "share/jupyter/runtime": "runtime",
        "jpserver-12.json": "runtime",
        "sock": "special",
        "pipe": "special",
    }


def test_a_file_that_changes_while_it_is_read_is_read_again(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real, times = env / "growing", fingerprint._content, []
    path.write_text("1")

    def content(fd: int, needles: tuple[bytes, ...]) -> tuple[str, bool, int]:
        found = real(fd, needles)
        if Path(f"/proc/self/fd/{fd}").readlink() == path and len(times) < 2:
            times.append(1)
            time.sleep(0.02)
            path.write_text("1" * (len(times) + 1))
        return found

    monkeypatch.setattr(fingerprint, "_content", content)
    found = take(env)
    assert (found.entries["growing"].size, len(times)) == (3, 2)
    monkeypatch.setattr(fingerprint, "_TRIES", 2)
    times.clear()
    with pytest.raises(EnvironmentChanging) as refused:
        take(env)
    assert refused.value.params == {"path": str(path)}


def test_a_file_that_goes_while_it_is_looked_at_is_not_there(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fingerprint._hash

    def hash_after_removal(top: str, path: str, needles: tuple[bytes, ...]) -> object:
        if path == "bin/tool":
            (env / path).unlink()
        return real(top, path, needles)

    monkeypatch.setattr(fingerprint, "_hash", hash_after_removal)
    assert "bin/tool" not in take(env).entries


def test_what_can_not_be_read_is_named(env: Path) -> None:
    with pytest.raises(EnvironmentUnreadable):
        take(env / "none")
    if os.geteuid() == 0:
        pytest.skip("root reads everything, so the other half needs another account")
    (env / "bin/tool").chmod(0)
    with pytest.raises(EnvironmentUnreadable, match="bin/tool"):
        take(env)


def test_odd_names_are_kept(env: Path) -> None:
    odd = os.fsdecode(b"latin-\xe9\n")
    (env / odd).write_text("1")
    first = settled(take(env))
    kept = load(first.dump())
    assert kept is not None and odd in kept.entries
    assert take(env, kept).digest == first.digest


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b'{"version":1}', b'{"version":99}', b"\xff"])
def test_anything_else_is_no_fingerprint(data: bytes) -> None:
    assert load(data) is None


def test_a_fingerprint_of_nothing_is_kept_too(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    first = take(tmp_path / "empty")
    kept = load(first.dump())
    assert kept is not None and kept.entries == {}
    assert json.loads(first.dump())["digest"] == take(tmp_path / "empty", kept).digest
