"""Snapshots in the store: whose they are, what they are called, what needs them, and who may read which blob."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, func, insert, or_, select

from kajiya.errors import SnapshotNameTaken, SnapshotNeeded, SnapshotNotFound
from kajiya.types import FINAL, Page, Snapshot, SnapshotCreate, SnapshotLayer
from kajiya_hub.store import cursor as cursors
from kajiya_hub.store.ids import new_id
from kajiya_hub.store.paths import printable
from kajiya_hub.store.schema import jobs, snapshot_blobs, snapshot_names, snapshots, uploads
from kajiya_hub.store.shared import Shared

OURS = ""
"""The owner of what everybody's environments begin with; no user has this name."""

_TOLD = 10


class Snapshots(Shared):
    """The part of `Store` that keeps snapshots; their bytes lie in an image layout."""

    def snapshot(self, ref: str, owner: str) -> Snapshot:
        """A snapshot of an owner by name or digest, or one of everybody's by digest. Raises `SnapshotNotFound`."""
        with self._database.read() as c:
            return self._snapshots(c, [self._found(c, ref, owner)])[0]

    def snapshot_of_content(self, content: str, owner: str) -> Snapshot | None:
        """The owner's snapshot of this very environment, if there is one."""
        query = select(snapshots).where(snapshots.c.owner == owner, snapshots.c.content == content)
        with self._database.read() as c:
            row = c.execute(query).mappings().first()
            return None if row is None else self._snapshots(c, [row])[0]

    def snapshots(
        self, owner: str, text: str = "", limit: int = 50, cursor: str | None = None, content: str | None = None
    ) -> Page[Snapshot]:
        """An owner's snapshots, the newest first, without their packages. Raises `InvalidRequest`."""
        text = text.strip()[:200].replace("\0", "")
        where = [snapshots.c.owner == owner]
        if text:
            named = select(snapshot_names.c.snapshot).where(snapshot_names.c.name.contains(text, autoescape=True))
            in_row = [
                column.contains(text, autoescape=True) for column in (snapshots.c.digest, snapshots.c.environment)
            ]
            where.append(or_(snapshots.c.id.in_(named), *in_row))
        if content is not None:
            where.append(snapshots.c.content == content)
        filters = {"snapshots": owner, "t": text, "c": content}
        start = [] if cursor is None else [snapshots.c.id < cursors.read(cursor, filters)]
        query = select(snapshots).where(*where, *start).order_by(snapshots.c.id.desc()).limit(limit + 1)
        with self._database.read() as c:
            rows = list(c.execute(query).mappings())
            more, rows = len(rows) > limit, rows[:limit]
            total = int(c.scalar(select(func.count()).select_from(snapshots).where(*where)) or 0)
            items = [s.model_copy(update={"packages": []}) for s in self._snapshots(c, rows)]
        return Page(items=items, next=cursors.make(rows[-1]["id"], filters) if more else None, total=total)

    def add_snapshot(
        self, owner: str, wanted: SnapshotCreate, digest: str, layers: list[SnapshotLayer], added: int
    ) -> tuple[Snapshot, bool]:
        """Keeps a snapshot whose image is stored; the flag says whether it is new. Raises `SnapshotNameTaken`."""
        with self._write() as c:
            same = or_(snapshots.c.digest == digest, snapshots.c.content == wanted.content)
            row = c.execute(select(snapshots).where(snapshots.c.owner == owner, same)).mappings().first()
            created = row is None
            if row is None:
                now = self.clock()
                values: dict[str, Any] = {
                    "id": new_id(now),
                    "owner": owner,
                    "digest": digest,
                    "layers": [layer.model_dump() for layer in layers],
                    "packages": [[p.name, p.version] for p in wanted.packages],
                    "size": sum(layer.size for layer in layers),
                    "added": added,
                    "created_at": now,
                } | wanted.model_dump(
                    include={"environment", "base", "content", "state", "interpreter", "python", "note"}
                )
                c.execute(insert(snapshots).values(**values))
                blobs = {wanted.state, *(layer.digest for layer in layers)}
                rows = [{"snapshot": values["id"], "digest": blob, "owner": owner} for blob in sorted(blobs)]
                c.execute(insert(snapshot_blobs), rows)
                row = c.execute(select(snapshots).where(snapshots.c.id == values["id"])).mappings().one()
            if wanted.name is not None:
                self._name(c, owner, wanted.name, row["id"])
            return self._snapshots(c, [row])[0], created

    def delete_snapshot(self, ref: str, owner: str) -> str | None:
        """Forgets a snapshot, or one of its several names; gives the digest whose image nobody has any more.

        Raises `SnapshotNotFound`, and `SnapshotNeeded` with what needs it.
        """
        with self._write() as c:
            row = self._found(c, ref, owner, ours=False)
            names = self._names(c, [row["id"]]).get(row["id"], [])
            if ref in names and len(names) > 1:
                c.execute(delete(snapshot_names).where(snapshot_names.c.owner == owner, snapshot_names.c.name == ref))
                return None
            needed = self._needed_by(c, row)
            if needed:
                raise SnapshotNeeded(snapshot=ref, needed_by=needed)
            c.execute(delete(snapshots).where(snapshots.c.id == row["id"]))
            left = c.scalar(select(func.count()).select_from(snapshots).where(snapshots.c.digest == row["digest"]))
            return None if left else str(row["digest"])

    def names_free(self, name: str, owner: str, digest: str | None = None) -> None:
        """Raises `SnapshotNameTaken` where the name is that of another snapshot than `digest`."""
        query = (
            select(snapshots.c.digest)
            .join(snapshot_names, snapshot_names.c.snapshot == snapshots.c.id)
            .where(snapshot_names.c.owner == owner, snapshot_names.c.name == name)
        )
        with self._database.read() as c:
            found = c.scalar(query)
        if found is not None and found != digest:
            raise SnapshotNameTaken(name=name)

    # --- blobs
    def note_upload(self, owner: str, digest: str, size: int) -> None:
        """Notes that an owner has sent a blob, and so may use it."""
        with self._write() as c:
            c.execute(delete(uploads).where(uploads.c.owner == owner, uploads.c.digest == digest))
            c.execute(insert(uploads).values(owner=owner, digest=digest, size=size, sent_at=self.clock()))

    def may_read_blob(self, owner: str, digest: str) -> bool:
        """Whether a snapshot of the owner, or one of everybody's, is made of this blob."""
        query = select(snapshot_blobs.c.digest).where(
            snapshot_blobs.c.owner.in_([owner, OURS]), snapshot_blobs.c.digest == digest
        )
        with self._database.read() as c:
            return c.execute(query.limit(1)).first() is not None

    def may_use_blob(self, owner: str, digest: str) -> bool:
        """Whether the owner may make a snapshot of this blob: by having sent it, or by having it in a snapshot."""
        query = select(uploads.c.digest).where(uploads.c.owner == owner, uploads.c.digest == digest)
        with self._database.read() as c:
            if c.execute(query).first() is not None:
                return True
        return self.may_read_blob(owner, digest)

    # --- inside
    def _found(self, c: Connection, ref: str, owner: str, ours: bool = True) -> RowMapping:
        if ref.startswith("sha256:"):
            owners = [owner, OURS] if ours else [owner]
            query = select(snapshots).where(snapshots.c.owner.in_(owners), snapshots.c.digest == ref)
            query = query.order_by(snapshots.c.owner.desc())
        else:
            query = (
                select(snapshots)
                .join(snapshot_names, snapshot_names.c.snapshot == snapshots.c.id)
                .where(snapshot_names.c.owner == owner, snapshot_names.c.name == ref)
            )
        row = c.execute(query.limit(1)).mappings().first()
        if row is None:
            raise SnapshotNotFound(snapshot=printable(ref))
        return row

    @staticmethod
    def _name(c: Connection, owner: str, name: str, id: str) -> None:
        where = snapshot_names.c.owner == owner, snapshot_names.c.name == name
        found = c.scalar(select(snapshot_names.c.snapshot).where(*where))
        if found is None:
            c.execute(insert(snapshot_names).values(owner=owner, name=name, snapshot=id))
        elif found != id:
            raise SnapshotNameTaken(name=name)

    @staticmethod
    def _needed_by(c: Connection, row: RowMapping) -> list[str]:
        owner, digest = row["owner"], row["digest"]
        waiting = select(jobs.c.id, jobs.c.environment).where(
            jobs.c.owner == owner, jobs.c.status.not_in(sorted(FINAL))
        )
        out = [f"job {id}" for id, environment in c.execute(waiting) if environment.get("digest") == digest]
        later = select(snapshots.c.id, snapshots.c.digest).where(snapshots.c.owner == owner, snapshots.c.base == digest)
        found = list(c.execute(later))
        names = Snapshots._names(c, [id for id, _ in found])
        out += [f"snapshot {(names.get(id) or [later[:19]])[0]}" for id, later in found]
        return out[:_TOLD] + (["…"] if len(out) > _TOLD else [])

    @staticmethod
    def _names(c: Connection, ids: list[str]) -> dict[str, list[str]]:
        query = select(snapshot_names.c.snapshot, snapshot_names.c.name).where(snapshot_names.c.snapshot.in_(ids))
        out: dict[str, list[str]] = {}
        for id, name in c.execute(query.order_by(snapshot_names.c.name)):
            out.setdefault(id, []).append(name)
        return out

    @staticmethod
    def _snapshots(c: Connection, rows: list[RowMapping]) -> list[Snapshot]:
        names = Snapshots._names(c, [r["id"] for r in rows])
        out: list[Snapshot] = []
        for row in rows:
            values = {k: v for k, v in row.items() if k not in ("id", "packages", "created_at")}
            values["packages"] = [{"name": name, "version": version} for name, version in row["packages"]]
            values["created_at"] = datetime.fromtimestamp(row["created_at"], UTC)
            out.append(Snapshot.model_validate(values | {"names": names.get(row["id"], [])}))
        return out
