"""Every program of this package that takes options, by the words that start it."""

import functools
import importlib
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = ("diffusers_ext.toy.circles", "diffusers_ext.preferences.simulated", "diffusers_ext.conditions.catalogue")


@functools.cache
def programs() -> dict[str, type]:
    """Return the options dataclass of each script, command and module."""
    scripts = sorted((ROOT / "training").glob("train_*.py"))
    found = {f"training/{path.name}": runpy.run_path(str(path))["Options"] for path in scripts}
    for path in sorted((ROOT / "diffusers_ext" / "commands").glob("*.py")):
        module = importlib.import_module(f"diffusers_ext.commands.{path.stem}")
        if hasattr(module, "Options"):
            found[f"diffusers-ext {path.stem.replace('_', '-')}"] = module.Options
    return found | {f"-m {name}": importlib.import_module(name).Options for name in MODULES}
