"""Real pairs from the emoji of the shared assets: OpenMoji's line drawings as conditions, its coloured drawings as targets.

    python examples/emoji_lineart.py --archive ../shared/assets/data/emoji7x1562_64.zip --output_dir data/emoji

writes an image folder as a user would bring one: two sub-folders of pictures and metadata.jsonl.
"""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.errors import InputError
from diffusers_ext.options import option, run

TARGETS, CONDITIONS = "openmoji-color", "openmoji-lineart"


@dataclass
class Options:
    archive: str = option("../shared/assets/data/emoji7x1562_64.zip", "zip of pictures and metadata.jsonl")
    output_dir: str = option("data/emoji", "the folder to write")


def main(options: Options) -> None:
    folder = Path(options.output_dir)
    if not Path(options.archive).is_file():
        raise InputError(
            f"--archive {options.archive}: no such file; the emoji lie in the shared assets, not in this repository"
        )
    with zipfile.ZipFile(options.archive) as archive:
        rows = [json.loads(line) for line in archive.read("metadata.jsonl").splitlines()]
        drawn = {(row["domain"], row["codepoint"]): row for row in rows}
        pairs = [row for row in rows if row["domain"] == TARGETS and (CONDITIONS, row["codepoint"]) in drawn]
        lines = []
        for row in pairs:
            condition = drawn[CONDITIONS, row["codepoint"]]["file_name"]
            for name in (row["file_name"], condition):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(archive.read(name))
            line = {"file_name": row["file_name"], "conditioning_image_file_name": condition, "text": row["name"]}
            lines.append(json.dumps(line) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} pairs in {folder}")


if __name__ == "__main__":
    run(main, Options)
