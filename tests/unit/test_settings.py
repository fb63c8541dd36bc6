"""Settings: kajiya.yaml, addresses, the file for the parts; and the data directory."""

import stat
from pathlib import Path
from typing import Any

import pytest

from kajiya.errors import ConfigInvalid, DataDirInUse, DataDirOnNfs, DataDirUnusable, NotConfigured
from kajiya_hub import datadir, ports
from kajiya_hub.datadir import DataDir, holder, take_lease
from kajiya_hub.embedded import ProxyNotInstalled, prepare, proxy_command
from kajiya_hub.processes import rotate
from kajiya_hub.proxy.options import parse
from kajiya_hub.settings import Ports, Settings, earlier_ports, read_site_settings
from kajiya_hub.singleuser import idle_arguments

PORTS = Ports(hub=18081, proxy_api=18082, service=18083, mlflow=18084)


def settings(root: Path, **given: Any) -> Settings:
    return Settings(data_dir=root, ports=PORTS, **given)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({}, "http://127.0.0.1:8000/"),
        ({"port": 80}, "http://127.0.0.1/"),
        ({"ip": "0.0.0.0"}, "http://127.0.0.1:8000/"),
        ({"ip": "::1", "base_url": "/team/"}, "http://[::1]:8000/team/"),
        ({"ip": "10.1.2.3", "ssl_key": "k", "ssl_cert": "c", "port": 443}, "https://10.1.2.3/"),
        ({"public_address": "https://hub.example.org/"}, "https://hub.example.org/"),
    ],
)
def test_the_address_people_open(tmp_path: Path, given: dict[str, Any], url: str) -> None:
    assert settings(tmp_path, **given).public_url == url


def test_inner_addresses_carry_the_base_url(tmp_path: Path) -> None:
    s = settings(tmp_path, base_url="/team/")
    assert s.service_url == "http://127.0.0.1:18083/team/services/kajiya"
    assert s.mlflow_url == "http://127.0.0.1:18084/team/services/mlflow"
    assert s.tracking_uri == f"{s.public_url}services/mlflow"
    assert s.hub_api_url == "http://127.0.0.1:18081/team/hub/api"


@pytest.mark.parametrize(
    ("ip", "loopback"), [("127.0.0.1", True), ("::1", True), ("0.0.0.0", False), ("10.0.0.1", False)]
)
def test_loopback(tmp_path: Path, ip: str, loopback: bool) -> None:
    assert settings(tmp_path, ip=ip).loopback is loopback


@pytest.mark.parametrize(
    ("text", "line", "key", "expected"),
    [
        ("port: 8000\nprot: 9000\n", 2, "prot", "one of ip, port"),
        ("ip: 127.0.0.1\nport: 70000\n", 2, "port", "less than or equal to 65535"),
        ("retention:\n  days: 0\n", 2, "retention.days", "greater than or equal to 1"),
        ("site:\n  index: http://x\n", 2, "site.index", "index_url"),
        ("base_url: team\n", 1, "the file", "begin and end with one slash"),
        ("ssl_key: k.pem\n", 1, "the file", "given together"),
        ("public_address: hub.example.org\n", 1, "the file", "https://kajiya.example.org/"),
        ("public_address: https://hub.example.org\n", 1, "the file", "end with base_url"),
        ("base_url: /a/\npublic_address: https://x.org/b/\n", 1, "the file", "end with base_url"),
        ("proxy: nginx\n", 1, "proxy", "configurable-http-proxy"),
        ("port: [\n", 2, "the YAML", ""),
        ("port: 1\nport: 2\n", 2, "port", "each key once"),
    ],
)
def test_a_wrong_file_is_answered_with_line_key_and_expectation(
    tmp_path: Path, text: str, line: int, key: str, expected: str
) -> None:
    path = tmp_path / "kajiya.yaml"
    path.write_text(text)
    with pytest.raises(ConfigInvalid) as e:
        read_site_settings(path)
    assert e.value.params["line"] == line
    assert e.value.params["key"] == key
    assert expected in e.value.params["expected"]
    assert str(path) in e.value.sentence("en")


# --- the proxy in front
def test_kajiyas_own_proxy_is_the_default_and_takes_the_same_flags(tmp_path: Path) -> None:
    tls = {"ssl_key": "/k.pem", "ssl_cert": "/c.pem"}
    program, *words = proxy_command(settings(tmp_path, **tls))
    assert (Path(program).name.startswith("python"), words[:2]) == (True, ["-m", "kajiya_hub.proxy"])
    options = parse(words[2:], {})
    assert (options.ip, options.port, options.api_ip, options.api_at) == ("127.0.0.1", 8000, "127.0.0.1", 18082)
    assert options.error_target == "http://127.0.0.1:18081/hub/error"
    assert (str(options.public_tls.key), str(options.public_tls.cert)) == ("/k.pem", "/c.pem")


def test_npms_proxy_is_found_on_the_path_and_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "configurable-http-proxy"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    npms = proxy_command(settings(tmp_path, proxy="configurable-http-proxy"))
    assert npms == [str(program), *proxy_command(settings(tmp_path))[3:]]


def test_a_missing_proxy_is_named_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    data = DataDir(tmp_path / "data")
    with pytest.raises(ProxyNotInstalled) as e:
        prepare(data, {"proxy": "configurable-http-proxy"})
    assert "npm install" in e.value.sentence("en")
    assert not data.root.exists()


def test_only_what_the_file_says_is_set(tmp_path: Path) -> None:
    path = tmp_path / "kajiya.yaml"
    assert read_site_settings(path) == {}
    path.write_text("port: 9000\nretries: {preempted: 1}\n")
    assert read_site_settings(path) == {"port": 9000, "retries": {"preempted": 1}}


def test_settings_survive_the_file_and_are_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataDir(tmp_path / "データ ✓")
    data.prepare()
    s = settings(data.root, site={"proxy": "http://proxy:3128"}, retention={"days": None})
    path = s.save()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    monkeypatch.setenv("KAJIYA_SETTINGS", str(path))
    assert Settings.load() == s
    assert earlier_ports(path) == PORTS
    monkeypatch.setenv("KAJIYA_SETTINGS", str(tmp_path / "none"))
    with pytest.raises(NotConfigured):
        Settings.load()


@pytest.mark.parametrize("text", ["", "{}", '{"ports": {"hub": 1}}', "not json", '{"ports": []}'])
def test_a_damaged_settings_file_only_loses_the_ports(tmp_path: Path, text: str) -> None:
    path = tmp_path / "settings.json"
    path.write_text(text)
    assert earlier_ports(path) is None


# --- the data directory
def test_folders_and_secrets_are_private(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "new" / "kajiya")
    data.prepare()
    for path in (data.root, data.secrets, data.run, data.hub, data.homes, data.service, data.logs):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
    secrets = {data.secret(name) for name in datadir.SECRETS}
    assert len(secrets) == len(datadir.SECRETS)
    assert all(len(s) == 64 for s in secrets)
    assert all(stat.S_IMODE((data.secrets / n).stat().st_mode) == 0o600 for n in datadir.SECRETS)
    data.prepare()
    assert {data.secret(name) for name in datadir.SECRETS} == secrets


def test_with_accounts_users_may_walk_to_what_is_theirs_only(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    data.prepare(accounts=True)
    assert stat.S_IMODE(data.root.stat().st_mode) == 0o711
    assert stat.S_IMODE(data.homes.stat().st_mode) == 0o711
    assert stat.S_IMODE(data.secrets.stat().st_mode) == 0o700


def test_the_lease_is_exclusive_and_names_its_holder(tmp_path: Path) -> None:
    import os

    data = DataDir(tmp_path)
    assert holder(data) is None
    lease = take_lease(data)
    assert holder(data) == os.getpid()
    with pytest.raises(DataDirInUse) as e:
        take_lease(data)
    assert e.value.params["pid"] == str(os.getpid())
    lease.release()
    assert holder(data) is None
    take_lease(data).release()


def test_a_network_file_system_is_refused_and_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datadir, "file_system_type", lambda path: 0x6969)
    data = DataDir(tmp_path / "new")
    with pytest.raises(DataDirOnNfs) as e:
        data.prepare()
    assert "NFS" in e.value.sentence("en")
    assert not data.root.exists()


def test_this_file_system_is_read_as_local(tmp_path: Path) -> None:
    assert datadir.file_system_type(tmp_path) != 0
    assert datadir.network_file_system(tmp_path) is None


def test_a_file_in_the_way_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    for root in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(DataDirUnusable):
            DataDir(root).prepare()


# --- ports and logs
def test_ports_of_the_last_start_are_kept_where_free() -> None:
    import socket

    first = ports.pick_ports(None, set())
    assert len(set(first.model_dump().values())) == 4
    assert ports.pick_ports(first, set()) == first
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first.service))
        taken.listen()
        second = ports.pick_ports(first, {first.hub})
    assert second.service != first.service
    assert second.hub != first.hub
    assert second.mlflow == first.mlflow


def test_a_taken_port_names_the_option() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ports.PortInUse) as e:
            ports.check_address("127.0.0.1", taken.getsockname()[1], patience=0)
    assert "--port" in e.value.sentence("en")
    assert "--port" in e.value.sentence("ja")
    with pytest.raises(ports.AddressUnusable):
        ports.check_address("192.0.2.1", 8000)


def test_a_large_log_moves_aside_under_whoever_writes_it(tmp_path: Path) -> None:
    log = tmp_path / "hub.log"
    rotate(log)
    with log.open("ab") as writer:
        for round_ in range(6):
            writer.write(b"%d" % round_ * 100)
            writer.flush()
            rotate(log, size=50, kept=3)
        writer.write(b"end")
    assert log.read_bytes() == b"end"
    assert [p.read_bytes()[:1] for p in sorted(tmp_path.glob("hub.log.*"))] == [b"5", b"4", b"3"]


@pytest.mark.parametrize("minutes", ["", "0", "-1", "soon"])
def test_without_an_idle_rule_a_server_is_never_ended(minutes: str) -> None:
    assert idle_arguments({"KAJIYA_IDLE_MINUTES": minutes}) == []
    assert idle_arguments({}) == []


def test_the_idle_rule_is_understood_by_the_server() -> None:
    from jupyter_server.serverapp import ServerApp
    from jupyter_server.services.kernels.kernelmanager import MappingKernelManager
    from jupyter_server_terminals.terminalmanager import TerminalManager

    classes = {c.__name__: c for c in (ServerApp, MappingKernelManager, TerminalManager)}
    given = dict(argument.removeprefix("--").split("=") for argument in idle_arguments({"KAJIYA_IDLE_MINUTES": "30"}))
    for option, value in given.items():
        name, trait = option.split(".")
        assert trait in classes[name].class_traits(config=True), option
        assert value in ("1800", "60", "True", "False")
    assert given["MappingKernelManager.cull_busy"] == "False"
