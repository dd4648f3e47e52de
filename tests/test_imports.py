"""Packages import downwards, in no circle, and exactly as the table in docs/reading-the-code.md says."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "diffusers_ext"
# Modules that lie in no package: what everyone uses, and the doors.
LEAVES = {"errors", "lines", "disk", "randomness", "cache", "figures"}
DOORS = {"__init__", "cli", "imagereward"}
# Saved reward models carry these files beside their weights, so they need nothing but the exception type.
CARRIED = "rewards/carried"


def node(module: str) -> str:
    """The package of a module "rewards.clip"; the module itself where it lies in none."""
    if module in carried():
        return CARRIED
    return module.split(".")[0]


def carried() -> set[str]:
    """Modules that say they are copied beside saved weights, and the model that they are copied with."""
    says = "Copied beside the weights of saved reward models"
    files = [path for path in (PACKAGE / "rewards").glob("*.py") if says in path.read_text(encoding="utf-8")]
    return {f"rewards.{path.stem}" for path in files} | {"rewards.modeling_image_reward"}


def modules() -> dict[str, Path]:
    paths = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in paths.items()}


def imported(path: Path, name: str, known: dict[str, Path]) -> Iterator[str]:
    """The modules of this package that a module imports, anywhere in it but for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.unparse(outer.test)
        for inner in ast.walk(outer)
    }
    for statement in ast.walk(tree):
        if not isinstance(statement, ast.ImportFrom) or id(statement) in for_types:
            continue
        base = (statement.module or "").split(".") if statement.module else []
        if statement.level:
            home = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
            base = home[: len(home) - statement.level + 1] + base
        elif base[:1] == ["diffusers_ext"]:
            base = base[1:]
        else:
            continue
        for alias in statement.names:
            whole = ".".join([*base, alias.name])
            yield whole if whole in known else ".".join(base)


def graph() -> dict[str, set[str]]:
    known = modules()
    edges: dict[str, set[str]] = {node(name): set() for name in known if name != "__init__"}
    for name, path in known.items():
        if name != "__init__":
            edges[node(name)] |= {node(other) for other in imported(path, name, known) if other} - {node(name)}
    return edges


def drawn() -> dict[str, set[str]]:
    text = (ROOT / "docs" / "reading-the-code.md").read_text(encoding="utf-8")
    table = text.split("## Which package imports which")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| `")]
    return {re.findall(r"`([\w/]+)`", row[0])[0]: set(re.findall(r"`([\w/]+)`", row[2])) for row in rows}


def test_packages_import_in_no_circle():
    order = list(TopologicalSorter(graph()).static_order())  # raises CycleError
    assert order.index("errors") < order.index("data") < order.index("diffusion") < order.index("commands")


def test_packages_import_what_the_table_in_the_docs_says():
    packages = {name: imports - LEAVES for name, imports in graph().items() if name not in LEAVES | DOORS}
    assert packages == drawn()


def test_leaves_import_leaves_only():
    assert all(graph()[name] <= LEAVES for name in LEAVES)


def test_every_module_is_in_a_package_or_is_a_leaf_or_a_door():
    assert {path.stem for path in PACKAGE.glob("*.py")} == LEAVES | DOORS


def test_what_saved_models_carry_needs_nothing_else():
    assert graph()[CARRIED] == {"errors"}
