"""JupyterHub's configuration, from the settings of the running Kajiya: `configure(c)`."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import kajiya_spawner
from kajiya.environment import Progress
from kajiya.environment.make import ensure
from kajiya_hub import signin
from kajiya_hub.settings import Settings

SERVICES = ("kajiya", "mlflow")
SERVER_TOKEN_SCOPES = [
    "users:activity!user",
    "access:servers!server",
    *(f"access:services!service={name}" for name in SERVICES),
    "read:users:name!user",
    "read:users:groups!user",
]


def configure(c: Any, settings: Settings | None = None) -> None:
    """Sets all of JupyterHub's configuration for the embedded stack; `settings` are loaded if left out."""
    settings = settings or Settings.load()
    _network(c, settings)
    _state(c, settings)
    _services(c, settings)
    _people(c, settings)
    _servers(c, settings)


def _network(c: Any, settings: Settings) -> None:
    scheme = "https" if settings.ssl_cert else "http"
    host = f"[{settings.ip}]" if ":" in settings.ip else settings.ip
    c.JupyterHub.bind_url = f"{scheme}://{host}:{settings.port}{settings.base_url}"
    if settings.public_address:  # else the Hub answers whatever address a request came by
        c.JupyterHub.public_url = settings.public_address
        # The reverse proxy in front is on this machine; who asked stands before it in X-Forwarded-For.
        c.JupyterHub.trusted_downstream_ips = ["127.0.0.1", "::1"]
    # Everything behind the proxy stays on the loopback interface.
    c.JupyterHub.hub_ip = "127.0.0.1"
    c.JupyterHub.hub_port = settings.ports.hub
    c.JupyterHub.hub_connect_ip = "127.0.0.1"
    c.ConfigurableHTTPProxy.should_start = False
    c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{settings.ports.proxy_api}"
    c.ConfigurableHTTPProxy.auth_token = settings.secret("proxy.token")
    c.JupyterHub.cleanup_proxy = False
    c.JupyterHub.tornado_settings = {
        "cookie_options": {"samesite": "Lax"} | ({"secure": True} if settings.encrypted else {}),
        # Nothing of the Hub is guessed as another type, and its addresses go to nobody.
        "headers": {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"},
    }


def _state(c: Any, settings: Settings) -> None:
    data = settings.data
    c.JupyterHub.db_url = f"sqlite:///{private(data.hub_db)}"
    c.JupyterHub.cookie_secret_file = str(data.secrets / "hub.cookie")
    c.JupyterHub.upgrade_db = True


def private(path: Path) -> Path:
    """A file for the owner's eyes only, made if it is not there: SQLite would make it readable for all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)
    return path


def _services(c: Any, settings: Settings) -> None:
    c.JupyterHub.services = [
        {
            "name": "kajiya",
            "url": f"http://127.0.0.1:{settings.ports.service}",
            "api_token": settings.secret("service.token"),
            "oauth_no_confirm": True,
            "display": False,
        },
        {
            "name": "mlflow",
            "url": f"http://127.0.0.1:{settings.ports.mlflow}",
            "api_token": settings.secret("mlflow.token"),
            "oauth_no_confirm": True,
            "display": True,
        },
        # The process above this one: it tells the Hub to send its routes again when the proxy was started again.
        {"name": "kajiya-stack", "api_token": settings.secret("stack.token"), "display": False},
    ]
    access = [f"access:services!service={name}" for name in SERVICES]
    c.JupyterHub.load_roles = [
        {
            "name": "user",
            "description": "Everyone: what is their own, and the services.",
            "scopes": ["self", *access],
        },
        {
            "name": "kajiya-services",
            "description": "The services ask whose a token is and which groups its user has.",
            "scopes": ["read:users:name", "read:users:groups", "list:users"],
            "services": list(SERVICES),
        },
        {
            "name": "kajiya-stack",
            "description": "The stack tells the Hub that the proxy forgot its routes.",
            "scopes": ["proxy"],
            "services": ["kajiya-stack"],
        },
    ]
    c.JupyterHub.oauth_require_pkce = True


def _people(c: Any, settings: Settings) -> None:
    signin.configure(c, settings)
    kajiya_spawner.configure(c)


def _servers(c: Any, settings: Settings) -> None:
    c.JupyterHub.spawner_class = "kajiya_spawner.local.LocalSpawner"
    c.JupyterHub.allow_named_servers = True
    c.JupyterHub.named_server_limit_per_user = 10
    c.JupyterHub.concurrent_spawn_limit = max(4, 2 * (os.cpu_count() or 2))
    # One user's broken environment must never end the Hub for all.
    c.Spawner.consecutive_failure_limit = 0
    c.Spawner.server_token_scopes = SERVER_TOKEN_SCOPES
    c.Spawner.start_timeout = 900  # the very first start fetches the packages of all environments
    c.Spawner.http_timeout = 60
    c.Spawner.default_url = "/lab"
    # -P: a file in the home, which is the working folder, must not stand in for a module of the server's.
    c.LocalSpawner.cmd = [sys.executable, "-P", "-m", "kajiya_hub.singleuser"]
    # Language servers of the system are looked for at each start, and none is wanted.
    c.Spawner.args = ["--LanguageServerManager.autodetect=False"]
    if os.geteuid() == 0 and not settings.accounts:
        c.Spawner.args += ["--allow-root"]  # the one account that everything runs as is root
    c.LocalSpawner.homes_dir = str(settings.data.homes)
    c.LocalSpawner.accounts = settings.accounts
    c.LocalSpawner.machine_dir = str(settings.data.machine)
    c.LocalSpawner.servers_dir = str(settings.data.servers)
    c.LocalSpawner.profiles_file = str(settings.data.profiles)
    c.LocalSpawner.service_url = settings.service_url
    c.LocalSpawner.mlflow_url = settings.tracking_uri
    c.LocalSpawner.variables = settings.site.variables()
    c.LocalSpawner.prepare = environment_maker(settings)
    # Ctrl-C stops the servers; a Hub that was killed finds them again.
    c.JupyterHub.cleanup_servers = True


def environment_maker(settings: Settings) -> Callable[[str, Progress], Awaitable[None]]:
    """What the spawner awaits before a server starts: the user's environment, made if it is not there."""

    async def prepare(user: str, progress: Progress) -> None:
        await asyncio.to_thread(ensure, settings.homes.of(user), settings.environment_base, progress)

    return prepare
