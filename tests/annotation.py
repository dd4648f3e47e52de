"""What the tests of the annotation app share: a folder to judge, a judgement of it, a server as a user starts it."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

PROMPTS = ("a red circle", "a blue circle", "a green circle")
COLOURS = ("red", "blue", "green")


def candidates(folder: Path, images: int = 3, prompts: tuple[str, ...] = PROMPTS) -> Path:
    """Write prompts "p0", "p1" ... with pictures to judge."""
    lines = []
    for place, prompt in enumerate(prompts):
        names = [f"images/{place}-{number}.png" for number in range(images)]
        for number, name in enumerate(names):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), COLOURS[(place + number) % 3]).save(folder / name)
        lines.append(json.dumps({"id": f"p{place}", "prompt": prompt, "images": names}) + "\n")
    (folder / "candidates.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def judgement(item: dict, ranking: list[int], nonce: str = "0123456789", **changes) -> dict:
    """Return a whole judgement of an item, as `Session.item` gave it and as the page sends it."""
    count = len(ranking)
    return {
        "id": item["id"],
        "images": item["images"],
        "display": item["display"],
        "ranking": ranking,
        "ratings": [{"overall": 4, "alignment": 5, "fidelity": 6}] * count,
        "issues": [["limbs"]] + [[]] * (count - 1),
        "prompt_flags": [],
        "time_s": 12.5,
        "nonce": nonce,
        "replaces": item["revision"],
        **changes,
    }


def lines_of(folder: Path, annotator: str) -> list[dict]:
    """Return the lines of a person's file; every one must be whole."""
    text = (folder / "annotations" / f"{annotator}.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


@contextmanager
def served(folder: Path, *options: str):
    """Start `diffusers-ext annotate` and give (process, address with token, all it said); kill it at the end."""
    code = "from diffusers_ext.cli import main; main()"
    command = [sys.executable, "-c", code, "annotate", str(folder), *options]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        said = ""
        while not (found := re.search(r"http://\S+", said)):
            line = process.stdout.readline()
            assert line, f"the server did not start: {said}"
            said += line
        yield process, found.group(), said
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Client:
    """A browser without a screen: keeps the cookie, says where its writing comes from."""

    def __init__(self, address: str):
        self.root = address.split("/?")[0]
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        self.opener.open(address, timeout=60).read()

    def get(self, path: str) -> dict:
        return json.loads(self.opener.open(self.root + path, timeout=60).read())

    def post(self, path: str, body: dict) -> dict:
        headers = {"content-type": "application/json", "origin": self.root}
        request = urllib.request.Request(self.root + path, json.dumps(body).encode(), headers)
        return json.loads(self.opener.open(request, timeout=60).read())
