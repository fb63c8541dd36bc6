"""JupyterHub's configuration file for Kajiya; all of it comes from `kajiya_hub.config`, by the running settings."""

from kajiya_hub.config import configure

configure(get_config())  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
