"""What changed in packages from one snapshot to another. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from kajiya.messages import message
from kajiya.sizes import show_size
from kajiya.types import Package, Snapshot

Kind = Literal["added", "removed", "changed"]


@dataclass(frozen=True)
class PackageChange:
    """A package that is not the same in both; the version is empty where it is not there."""

    kind: Kind
    name: str
    before: str
    after: str


@dataclass(frozen=True)
class SnapshotDiff:
    """The changes by name, and both sizes in compressed bytes."""

    changes: tuple[PackageChange, ...]
    size_before: int
    size_after: int
    same: bool
    """Whether both are the very same environment, all files included."""

    def __repr__(self) -> str:
        return self.text()

    def of(self, kind: Kind) -> list[PackageChange]:
        """The changes of one kind."""
        return [change for change in self.changes if change.kind == kind]

    def rows(self, language: str | None = None) -> list[list[str]]:
        """The changes as rows: what, package, before, after."""
        return [[message(f"diff.{c.kind}", None, language), c.name, c.before, c.after] for c in self.changes]

    def text(self, language: str | None = None) -> str:
        """The changes as lines, and the sizes."""
        lines = ["  ".join(filter(None, row)) for row in self.rows(language)]
        lines = lines or [message("cli.diff_same", None, language)]
        return "\n".join([*lines, self.sizes(language)])

    def sizes(self, language: str | None = None) -> str:
        """Both sizes in one sentence."""
        sizes = {"before": show_size(self.size_before), "after": show_size(self.size_after)}
        return message("diff.sizes", sizes, language)


def diff(before: Snapshot, after: Snapshot) -> SnapshotDiff:
    """What is to be done to get from one snapshot's packages to the other's."""
    changes = packages(before.packages, after.packages)
    return SnapshotDiff(changes, before.size, after.size, before.content == after.content)


def packages(before: Iterable[Package], after: Iterable[Package]) -> tuple[PackageChange, ...]:
    """The changes between two lists of packages: those added, removed, changed, each by name."""
    old, new = {p.name: p.version for p in before}, {p.name: p.version for p in after}
    out = [PackageChange("added", name, "", new[name]) for name in sorted(new.keys() - old.keys())]
    out += [PackageChange("removed", name, old[name], "") for name in sorted(old.keys() - new.keys())]
    both = sorted(old.keys() & new.keys())
    out += [PackageChange("changed", name, old[name], new[name]) for name in both if old[name] != new[name]]
    return tuple(out)
