"""The settings of one embedded Kajiya: kajiya.yaml, the command line over it, and what was found out at the start.

`kajiya-hub up` writes the effective settings to `run/settings.json`; hub, service and MLflow read that file, which the
environment variable KAJIYA_SETTINGS names.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kajiya import yamlfile
from kajiya.environment.base import Base
from kajiya.errors import NotConfigured
from kajiya.machine.homes import Homes
from kajiya.types import Ending, MiB
from kajiya_hub.datadir import DataDir, default_path

ENVIRONMENT_VARIABLE = "KAJIYA_SETTINGS"
Port = Annotated[int, Field(ge=1, le=65535)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Uploads(_Strict):
    """How large what a user sends may be, in bytes."""

    notebook: int = Field(default=50 * MiB, ge=1024)
    files: int = Field(default=512 * MiB, ge=0)


class Retention(_Strict):
    """How long ended jobs are kept; null keeps them for ever."""

    days: int | None = Field(default=90, ge=1)
    per_owner: int | None = Field(default=5000, ge=1)


class Site(_Strict):
    """What this site has instead of the internet's: package index, certificate authorities, proxy."""

    index_url: str | None = Field(default=None, description="A Python package index (PEP 503) to use.")
    ca_bundle: str | None = Field(default=None, description="A file of PEM certificates to trust.")
    proxy: str | None = Field(default=None, description="An HTTP proxy for what lies outside.")

    def variables(self) -> dict[str, str]:
        """The environment variables by which uv, pip and others follow the site's settings."""
        env: dict[str, str] = {}
        if self.index_url:
            env |= {"UV_DEFAULT_INDEX": self.index_url, "PIP_INDEX_URL": self.index_url}
        if self.ca_bundle:
            env |= dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT"), self.ca_bundle)
        if self.proxy:
            names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
            env |= dict.fromkeys(names, self.proxy)
            env |= dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,127.0.0.1,::1")
        return env


class Ports(_Strict):
    """Ports on the loopback interface that only the parts of this Kajiya use."""

    hub: Port
    proxy_api: Port
    service: Port
    mlflow: Port


class SiteSettings(_Strict):
    """What kajiya.yaml may hold."""

    ip: str = Field(default="127.0.0.1", description="The address to listen on; loopback unless told otherwise.")
    port: Port = Field(default=8000, description="The port of the address that people open.")
    base_url: str = Field(default="/", description="The path below which everything is served.")
    accounts: bool = Field(default=False, description="A Unix account for each user; needs root.")
    ssl_key: str | None = Field(default=None, description="A PEM file: the key for TLS.")
    ssl_cert: str | None = Field(default=None, description="A PEM file: the certificate for TLS.")
    public_address: str | None = Field(
        default=None,
        description="The address that people open, where a reverse proxy stands in front: scheme, host, base_url.",
    )
    proxy: Literal["kajiya", "configurable-http-proxy"] = Field(
        default="kajiya",
        description="The proxy in front: Kajiya's own, or npm's configurable-http-proxy, which must be on PATH.",
    )
    retention: Retention = Field(default_factory=Retention)
    retries: dict[Ending, Annotated[int, Field(ge=0, le=100)]] = Field(
        default_factory=lambda: {Ending.preempted: 3, Ending.could_not_start: 2},
        description="How often an attempt that ended so is tried again, where the job does not say.",
    )
    uploads: Uploads = Field(default_factory=Uploads)
    site: Site = Field(default_factory=Site)
    scrape_token: str | None = Field(
        default=None, min_length=32, description="A token with which Prometheus may read /metrics."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "SiteSettings":
        if not (self.base_url.startswith("/") and self.base_url.endswith("/")) or "//" in self.base_url:
            raise ValueError("base_url must begin and end with one slash, such as /team/")
        if (self.ssl_key is None) != (self.ssl_cert is None):
            raise ValueError("ssl_key and ssl_cert must be given together")
        if self.public_address is not None:
            parts = urlsplit(self.public_address)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.path != self.base_url:
                raise ValueError("public_address must be such as https://kajiya.example.org/ and end with base_url")
            if parts.query or parts.fragment or parts.username:
                raise ValueError("public_address must hold scheme, host and base_url only")
        return self


class Settings(SiteSettings):
    """The effective settings, as every part of the running Kajiya sees them."""

    data_dir: Path
    ports: Ports

    @property
    def data(self) -> DataDir:
        """The paths in the data directory."""
        return DataDir(self.data_dir)

    @property
    def homes(self) -> Homes:
        """The homes of the users."""
        return Homes(self.data.homes, self.accounts)

    @property
    def environment_base(self) -> Base:
        """What homes' environments are made from."""
        data = self.data
        return Base(data.base, data.cache / "uv", accounts=self.accounts, variables=self.site.variables())

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.ip in ("127.0.0.1", "::1", "localhost") or self.ip.startswith("127.")

    @property
    def everywhere(self) -> bool:
        """Whether it listens on all addresses, so that none is the one that people open."""
        return self.ip in ("", "0.0.0.0", "::")  # noqa: S104

    @property
    def encrypted(self) -> bool:
        """Whether people reach it by TLS only: its own, or that of the reverse proxy in front."""
        return self.public_url.startswith("https:")

    @property
    def public_url(self) -> str:
        """What people open, ending with a slash."""
        if self.public_address is not None:
            return self.public_address
        scheme = "https" if self.ssl_cert else "http"
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.ip, self.ip)  # noqa: S104
        if ":" in host and not host.startswith("["):
            host = f"[{host}]"
        default = 443 if self.ssl_cert else 80
        return f"{scheme}://{host}{'' if self.port == default else f':{self.port}'}{self.base_url}"

    @property
    def service_prefix(self) -> str:
        """The path of the service, without a closing slash."""
        return f"{self.base_url}services/kajiya"

    @property
    def mlflow_prefix(self) -> str:
        """The path of MLflow, without a closing slash."""
        return f"{self.base_url}services/mlflow"

    @property
    def service_url(self) -> str:
        """The service from inside this machine, without the proxy; goes into KAJIYA_API_URL."""
        return f"http://127.0.0.1:{self.ports.service}{self.service_prefix}"

    @property
    def mlflow_url(self) -> str:
        """MLflow from inside this machine, without the proxy."""
        return f"http://127.0.0.1:{self.ports.mlflow}{self.mlflow_prefix}"

    @property
    def tracking_uri(self) -> str:
        """What goes into MLFLOW_TRACKING_URI of servers and jobs.

        The public address, since MLflow's client prints links below it that people open. The inner one where the client
        might not get through: a certificate of the site's own, a reverse proxy, a proxy to the outside.
        """
        around = self.ssl_cert or self.public_address or self.site.proxy
        return self.mlflow_url if around else f"{self.public_url}services/mlflow"

    @property
    def hub_url(self) -> str:
        """The Hub from inside this machine, without a closing slash."""
        return f"http://127.0.0.1:{self.ports.hub}{self.base_url}hub"

    @property
    def hub_api_url(self) -> str:
        """The Hub's REST API from inside this machine, without a closing slash."""
        return f"{self.hub_url}/api"

    def secret(self, name: str) -> str:
        """The text of a secret of the data directory, such as `service.token`. Raises `OSError`."""
        return self.data.secret(name)

    @classmethod
    def load(cls, path: Path | None = None) -> "Settings":
        """The settings of the running Kajiya: from `path`, else from the file that KAJIYA_SETTINGS names.

        Raises `NotConfigured` where there is none.
        """
        named = os.environ.get(ENVIRONMENT_VARIABLE)
        path = path or (Path(named) if named else DataDir(default_path()).settings)
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as e:
            raise NotConfigured() from e

    def save(self) -> Path:
        """Writes `run/settings.json`, 0600, whole or not at all; returns its path."""
        path = self.data.settings
        new = path.with_suffix(".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(self.model_dump_json(indent=2))
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
        return path


def read_site_settings(path: Path) -> dict[str, Any]:
    """What kajiya.yaml says, checked; nothing where there is none. Raises `ConfigInvalid`."""
    if not path.exists():
        return {}
    return yamlfile.load(path, SiteSettings).model_dump(exclude_unset=True)


def earlier_ports(path: Path) -> Ports | None:
    """The internal ports of the last start, so that servers and jobs still running find their way back."""
    try:
        return Ports.model_validate(json.loads(path.read_bytes())["ports"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
