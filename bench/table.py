"""One measurement beside its alternative, and how it is shown."""

import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Sample:
    """Repeated measurements of one side, in the row's unit."""

    what: str
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        if len(self.values) < 2:
            return f"{self.median:.3g}"
        return f"{self.median:.3g} ({min(self.values):.3g}–{max(self.values):.3g})"


@dataclass
class Row:
    """`goal` is what the ratio (theirs / ours where less is better, ours / theirs where more is) must reach."""

    name: str
    unit: str
    goal: float
    more_is_better: bool = False
    ours: Sample | None = None
    theirs: Sample | None = None
    problem: str | None = None

    @property
    def ratio(self) -> float | None:
        if self.problem or not (self.ours and self.theirs):
            return None
        a, b = self.ours.median, self.theirs.median
        return a / b if self.more_is_better else b / a

    def as_dict(self) -> dict[str, Any]:
        ratio = self.ratio
        return {
            "row": self.name,
            "ours": self.ours.median if self.ours and self.ours.values else None,
            "theirs": self.theirs.median if self.theirs and self.theirs.values else None,
            "unit": self.unit,
            "ratio": ratio,
            "goal": self.goal,
            "met": None if ratio is None else ratio >= self.goal,
            "problem": self.problem,
        }

    def as_markdown(self) -> str:
        if self.ratio is None:
            return f"| {self.name} | not measured | {self.problem} | | ≥ {self.goal:g} | |"
        met = "yes" if self.ratio >= self.goal else "no"
        ours, theirs = f"{self.ours} {self.unit}", f"{self.theirs} {self.unit}, {self.theirs and self.theirs.what}"
        return f"| {self.name} | {ours} | {theirs} | {self.ratio:.2f} | ≥ {self.goal:g} | {met} |"


HEAD = "| what | Kajiya | instead | ratio | goal | met |\n|---|---|---|---|---|---|"

Measure = Callable[[Any], Iterator[Row]]
REGISTRY: dict[str, Measure] = {}


def row(name: str) -> Callable[[Measure], Measure]:
    """Registers a function that yields rows; it is given the bench's `Workshop`."""

    def register(function: Measure) -> Measure:
        REGISTRY[name] = function
        return function

    return register


def save(rows: list[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([r.as_dict() for r in rows], indent=2, ensure_ascii=False) + "\n", "utf-8")
