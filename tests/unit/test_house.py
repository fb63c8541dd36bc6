"""The arrows between rooms, and the length of files, are as the architecture page says."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {
    "kajiya": ROOT / "extension/kajiya",
    "kajiya_lab": ROOT / "extension/kajiya_lab",
    "kajiya_spawner": ROOT / "spawner/kajiya_spawner",
    "kajiya_hub": ROOT / "hub_config/kajiya_hub",
}
# room -> rooms it may import
ARROWS = {
    "kajiya": set(),
    "kajiya_lab": {"kajiya"},
    "kajiya_spawner": {"kajiya"},
    "kajiya_hub": {"kajiya", "kajiya_spawner"},
}
# Inside the service: (module prefix, modules it must never import).
INSIDE = [
    ("kajiya_hub.api", {"kajiya_hub.backends", "kajiya_hub.reconcile", "kajiya_hub.app", "kajiya_hub.embedded"}),
    ("kajiya_hub.store", {"kajiya_hub.api", "kajiya_hub.reconcile", "kajiya_hub.backends", "kajiya_hub.app"}),
    ("kajiya_hub.queue", {"kajiya_hub.api", "kajiya_hub.store", "kajiya_hub.reconcile", "kajiya_hub.backends"}),
    ("kajiya_hub.backends", {"kajiya_hub.api", "kajiya_hub.store", "kajiya_hub.reconcile", "kajiya_hub.app"}),
    ("kajiya_hub.reconcile", {"kajiya_hub.api", "kajiya_hub.app", "kajiya_hub.embedded"}),
    ("kajiya_hub.proxy", {"kajiya_hub.api", "kajiya_hub.store", "kajiya_hub.app"}),
]
# Only the configuration of the Hub, which runs inside the Hub's process, may name the spawner.
MAY_NAME_SPAWNER = {"kajiya_hub.config"}
MAX_LINES = 450


def modules() -> list[tuple[str, Path]]:
    found = []
    for room, folder in ROOMS.items():
        for path in sorted(folder.rglob("*.py")):
            dotted = ".".join([room, *path.relative_to(folder).with_suffix("").parts])
            found.append((dotted.removesuffix(".__init__"), path))
    return found


def imports(path: Path, module: str) -> set[str]:
    """Every module that a file imports anywhere, functions and type-checking blocks included."""
    out: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            out |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            out |= {base} | {f"{base}.{a.name}" for a in node.names}
    return out


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_where_an_arrow_leads(room: str) -> None:
    wrong = [
        f"{module} imports {target}"
        for module, path in modules()
        if module.split(".")[0] == room
        for target in imports(path, module)
        if target.split(".")[0] in ROOMS.keys() - ARROWS[room] - {room}
    ]
    assert wrong == []


def test_only_the_hub_configuration_names_the_spawner() -> None:
    naming = {
        module
        for module, path in modules()
        if module.startswith("kajiya_hub")
        for target in imports(path, module)
        if target.split(".")[0] == "kajiya_spawner"
    }
    assert naming <= MAY_NAME_SPAWNER


@pytest.mark.parametrize(("prefix", "forbidden"), INSIDE, ids=[p for p, _ in INSIDE])
def test_inside_the_service_arrows_lead_one_way(prefix: str, forbidden: set[str]) -> None:
    wrong = [
        f"{module} imports {target}"
        for module, path in modules()
        if module == prefix or module.startswith(prefix + ".")
        for target in imports(path, module)
        if any(target == f or target.startswith(f + ".") for f in forbidden)
    ]
    assert wrong == []


def test_the_walk_sees_the_rooms() -> None:
    assert {m.split(".")[0] for m, _ in modules()} == set(ROOMS)
    assert "kajiya.errors" in imports(ROOMS["kajiya"] / "profiles/choose.py", "kajiya.profiles.choose")


def test_files_stay_short() -> None:
    sources = [p for _, p in modules()] + sorted((ROOT / "tests").rglob("*.py"))
    long = {str(p.relative_to(ROOT)): n for p in sources if (n := len(p.read_text("utf-8").splitlines())) > MAX_LINES}
    assert long == {}
