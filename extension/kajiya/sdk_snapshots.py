"""What a notebook calls for snapshots: capture this environment, list, compare and restore."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from kajiya import types
from kajiya.client import Client
from kajiya.environment import Progress
from kajiya.environment import capture as captures
from kajiya.environment import restore as restores
from kajiya.environment.diff import SnapshotDiff
from kajiya.environment.diff import diff as compare
from kajiya.errors import SnapshotNotFound
from kajiya.machine.homes import Home
from kajiya.messages import message
from kajiya.sdk import default_client
from kajiya.sizes import show_size
from kajiya.types import Reason


class Snapshot:
    """A captured environment. `record` is all that the service says of it."""

    def __init__(self, record: types.Snapshot, client: Client) -> None:
        self.record = record
        self._client = client

    @property
    def digest(self) -> str:
        return self.record.digest

    @property
    def name(self) -> str | None:
        """Its first name, if it has one."""
        return self.record.names[0] if self.record.names else None

    def packages(self) -> dict[str, str]:
        """Versions by name."""
        found = self.record.packages or self._client.snapshot(self.digest).packages
        return {p.name: p.version for p in found}

    def delete(self) -> None:
        """Deletes it with all its names. Raises `SnapshotNeeded`."""
        self._client.delete_snapshot(self.digest)

    def __repr__(self) -> str:
        return f"Snapshot({captures.shown(self.record)}, {self.digest[:19]}, {show_size(self.record.size)})"


class SnapshotList(list[Snapshot]):
    """A page of snapshots, shown as lines; `total` counts those on other pages too."""

    def __init__(self, items: list[Snapshot], total: int) -> None:
        super().__init__(items)
        self.total = total

    def __repr__(self) -> str:
        return "\n".join(map(repr, self)) or message("cli.no_snapshots")


def capture(
    name: str | None = None,
    environment: str | None = None,
    progress: Callable[[str], None] | None = None,
    client: Client | None = None,
) -> Snapshot:
    """Captures an environment as a snapshot, this one if none is named; `progress` is told sentences.

    Raises `EnvironmentChanging`, `EnvironmentNotMovable` and other leaves of `SetupError`, `SnapshotNameTaken`.
    """
    client = client or default_client()
    home = home_of_this()
    wanted, root = which(home, environment)
    keep = home.kajiya / "captured"
    done = captures.capture(client, root, keep, name=name, environment=wanted, progress=_teller(progress))
    return Snapshot(done.snapshot, client)


def snapshots(text: str = "", limit: int = 50, client: Client | None = None) -> SnapshotList:
    """Your snapshots, the newest first."""
    client = client or default_client()
    page = client.snapshots(text, limit)
    return SnapshotList([Snapshot(s, client) for s in page.items], page.total)


def diff(before: str | Snapshot, after: str | Snapshot, client: Client | None = None) -> SnapshotDiff:
    """What changed in packages between two snapshots, by name or digest. Raises `SnapshotNotFound`."""
    client = client or default_client()
    return compare(find(before, client), find(after, client))


def restore(
    snapshot: str | Snapshot,
    environment: str | None = None,
    progress: Callable[[str], None] | None = None,
    client: Client | None = None,
) -> restores.Restored:
    """Makes an environment and a kernel from a snapshot, beside those there are. Raises `SnapshotNotFound`,
    `EnvironmentExists`, `InterpreterMissing`."""
    client = client or default_client()
    record = find(snapshot, client)
    return restores.restore(client, record, home_of_this(), environment, _teller(progress))


def find(snapshot: str | Snapshot, client: Client) -> types.Snapshot:
    """A snapshot's whole record. Raises `SnapshotNotFound`, also for a digest that is cut short."""
    ref = snapshot.digest if isinstance(snapshot, Snapshot) else snapshot
    try:
        return client.snapshot(ref)
    except SnapshotNotFound:
        # Lists show the beginning of a digest; it may be given where only one begins so.
        begun = ref if ref.startswith("sha256:") else f"sha256:{ref}"
        if len(begun) < len("sha256:") + 6:
            raise
        items = client.snapshots(begun).items
        if len(items) != 1 or not items[0].digest.startswith(begun):
            raise
        return client.snapshot(items[0].digest)


def home_of_this() -> Home:
    """The home that environments are kept in: the folder that this process's own lies in, else the account's."""
    root = Path(sys.prefix)
    if root.parent.name == "envs" and root.parent.parent.name == ".kajiya":
        return Home("", root.parents[2])
    return Home("", Path(os.environ.get("HOME") or "~").expanduser())


def which(home: Home, environment: str | None) -> tuple[str, Path]:
    """The name and the folder of an environment, the one that runs this if none is named. Raises `InvalidName`."""
    root = Path(sys.prefix)
    if environment is None and home.environment(root.name if _fits(root.name) else "default") == root:
        return root.name, root
    name = environment or "default"
    return name, home.environment(name)


def _fits(name: str) -> bool:
    from kajiya.names import safe_environment_name

    return safe_environment_name(name)


def _teller(progress: Callable[[str], None] | None) -> Progress:
    def tell(reason: Reason) -> None:
        if progress is not None:
            progress(message(reason.code, reason.params))

    return tell
