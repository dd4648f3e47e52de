"""The command `diffusers-ext`: one subcommand per module of `commands/` whose name has no underscore before it.

Such a module has a docstring that opens with the sentence the overview shows and ends with commands to paste, a
dataclass `Options`, and `main(options)`; or `launch(words)`, which takes the words as they are. It imports nothing heavy
before that, so that `--help` answers at once.
"""

import ast
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from .errors import InputError
from .options import run

COMMANDS = Path(__file__).parent / "commands"


def main(argv: list[str] | None = None) -> None:
    """Run `diffusers-ext COMMAND [options]`; without a known command, print what there is."""
    words = sys.argv[1:] if argv is None else argv
    names = {
        path.stem.replace("_", "-"): path for path in sorted(COMMANDS.glob("*.py")) if not path.stem.startswith("_")
    }
    if not words or words[0] not in names:
        asked = not words or words[0] in ("-h", "--help")
        print("" if asked else f"error: no command {words[0]!r}\n", end="", file=sys.stderr)
        print(overview(names), file=sys.stdout if asked else sys.stderr)
        raise SystemExit(0 if asked else 2)
    module = importlib.import_module(f".commands.{names[words[0]].stem}", __package__)
    if hasattr(module, "launch"):
        launch(module.launch, words[1:])
    else:
        run(module.main, module.Options, words[1:], module.__doc__, f"diffusers-ext {words[0]}")


def launch(start: Callable[[list[str]], None], words: list[str]) -> None:
    """Hand the words over, and print an InputError as `options.run` does."""
    try:
        start(words)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def overview(names: dict[str, Path]) -> str:
    """Return the list of commands, each with the first sentence of its docstring, without importing any."""
    lines = ["usage: diffusers-ext COMMAND [options]", "", "commands (each answers --help):"]
    for name, path in names.items():
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        lines.append(f"  {name:<16}{text.splitlines()[0]}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
