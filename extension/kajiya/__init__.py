"""What a notebook, a terminal and a job import: types, profiles, client, environment, runner, CLI."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kajiya.client import Client as Client
    from kajiya.errors import JobFailed as JobFailed
    from kajiya.errors import KajiyaError as KajiyaError
    from kajiya.handle import Job as Job
    from kajiya.sdk import capacity as capacity
    from kajiya.sdk import job as job
    from kajiya.sdk import jobs as jobs
    from kajiya.sdk import submit as submit
    from kajiya.sdk_snapshots import capture as capture
    from kajiya.sdk_snapshots import diff as diff
    from kajiya.sdk_snapshots import restore as restore
    from kajiya.sdk_snapshots import snapshots as snapshots

# Loaded on first use: a job's process imports `kajiya` and must not pay for an HTTP client it never calls.
_LAZY = {
    "Client": "kajiya.client",
    "Job": "kajiya.handle",
    "JobFailed": "kajiya.errors",
    "KajiyaError": "kajiya.errors",
    "submit": "kajiya.sdk",
    "job": "kajiya.sdk",
    "jobs": "kajiya.sdk",
    "capacity": "kajiya.sdk",
    "capture": "kajiya.sdk_snapshots",
    "diff": "kajiya.sdk_snapshots",
    "restore": "kajiya.sdk_snapshots",
    "snapshots": "kajiya.sdk_snapshots",
}

__all__ = [
    "Client",
    "Job",
    "JobFailed",
    "KajiyaError",
    "__version__",
    "capacity",
    "capture",
    "diff",
    "job",
    "jobs",
    "restore",
    "snapshots",
    "submit",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'kajiya' has no attribute {name!r}")
