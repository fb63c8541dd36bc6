"""How much output a notebook may show: a limit for a cell and one for the whole attempt."""

from dataclasses import dataclass, field

MiB = 1024**2


@dataclass
class Budget:
    """Counts bytes of the log; what `clear_output` takes away counts for the attempt, but no more for its cell."""

    per_cell: int = 10 * MiB
    per_job: int = 200 * MiB
    used: int = 0
    _shown: dict[int, int] = field(default_factory=dict[int, int])
    _dropped: dict[int, int] = field(default_factory=dict[int, int])
    _told: set[int] = field(default_factory=set[int])

    def left(self, cell: int) -> int:
        """Bytes that the cell may still show."""
        return max(0, min(self.per_cell - self._shown.get(cell, 0), self.per_job - self.used))

    def take(self, cell: int, size: int, *, visible: bool = True) -> None:
        """Counts what was written; `visible` output adds to what the cell shows, an update replaces."""
        self.used += size
        if visible:
            self._shown[cell] = self._shown.get(cell, 0) + size

    def drop(self, cell: int, size: int) -> bool:
        """Counts what was not written; true where the reader of this cell has not been told yet."""
        self._dropped[cell] = self._dropped.get(cell, 0) + size
        if cell in self._told:
            return False
        self._told.add(cell)
        return True

    def cleared(self, cell: int) -> None:
        self._shown.pop(cell, None)
        if not self.job_full:
            self._told.discard(cell)

    def dropped(self, cell: int) -> int:
        """Bytes dropped from a cell since last asked."""
        return self._dropped.pop(cell, 0)

    @property
    def job_full(self) -> bool:
        return self.used >= self.per_job
