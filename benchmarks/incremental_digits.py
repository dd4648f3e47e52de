"""Does a backbone that learns with its mixture beat one component a class, linear replay, and its own ablations?

    python benchmarks/incremental_digits.py --mnist path/to/mnist --photos path/to/photographs      # hours on a core

mnist: a folder with MNIST's test file (10,000 digits); photos: any folder of photographs. Digits in four domains, after
iDigits, of which SVHN and SynDigits are replaced by what can be made without them: "mnist"; "blended", the absolute
difference of a digit and a patch of a photograph (the recipe of MNIST-M); "printed", DejaVu digits turned, scaled and
coloured; "outline", a digit's edge, dark on light. No digit of MNIST is in two domains or in both halves. A small ConvNeXt
starts from drawn weights, so that all it knows is from the stream.

Columns: average incremental and final accuracy in percent over the seeds, for sessions of new classes (NC), new domains
(ND) or both (NCD); of NCD also forgetting and the worst domain. Finished runs are kept in rows.jsonl of the output folder:
the same command resumes after an interruption.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import BenchmarkOptions, Journal, Report, run, run_script
from incremental import ACCURACIES, accuracies

from diffusers_ext.options import COUNT, option

DOMAINS = ("mnist", "blended", "printed", "outline")
SIDE = 32
VARIANTS = {  # what each changes in the options of training/train_incremental.py
    "vMF mixture, trained": {},
    "one component a class": {"max_components": 1},
    "linear layer with replay": {"head": "linear"},
    "memory balanced over classes alone": {"memory_balance": "classes"},
    "without component term": {"component_weight": 0.0},
    "without distillation": {"distillation": 0.0},
    "without regulariser": {"regulariser": 0.0},
}


@dataclass
class Options(BenchmarkOptions):
    mnist: str = option("mnist", "folder of MNIST's t10k files")
    photos: str = option("photos", "folder of photographs, for the blended domain")
    output_dir: str = option("runs/digits-benchmark", "folder of finished rows")
    train: int = option(40, "digits to learn of each class and domain", COUNT)
    test: int = option(20, "digits to test on, of each class and domain", COUNT)
    memory: int = option(200, "pictures remembered in all", COUNT)
    epochs: int = option(10, "passes over each session and its memory", COUNT)
    seeds: int = option(3, "number of seeds, from 0, of weights, order and draws", COUNT)
    settings: list[str] = option(["NC", "ND", "NCD"], "what sessions bring")
    variants: list[str] | None = option(None, "variants to run; default: all")
    frozen: bool = option(True, "measure the mixture and every baseline on frozen features of the drawn weights too")


def main(options: Options, report: Report) -> None:
    selecting = ("seeds", "settings", "variants", "frozen", "mnist", "photos")
    journal, rows = Journal(Path(options.output_dir) / "rows.jsonl", options, selecting), []
    with tempfile.TemporaryDirectory() as scratch:
        data = make_digits(Path(scratch) / "digits", options)
        for seed in range(options.seeds):
            backbone = drawn_backbone(Path(scratch) / f"backbone-{seed}", seed)
            for setting in options.settings:
                stream = Stream(data, backbone, setting, seed)
                for name in options.variants or VARIANTS:
                    about = {"setting": setting, "seed": seed, "learner": name}
                    rows.append(journal.once(about, lambda: learn(stream, VARIANTS[name], options)))  # noqa: B023
                if options.frozen:
                    about = {"setting": setting, "seed": seed, "learner": "frozen"}
                    row = journal.once(about, lambda: {"rivals": frozen(stream)})  # noqa: B023
                    rows += [{**about, "learner": f"frozen: {name}", **value} for name, value in row["rivals"].items()]
    lines = []
    for name in dict.fromkeys(row["learner"] for row in rows):
        runs: dict[str, list[dict]] = {setting: [] for setting in ("NC", "ND", "NCD")}
        for row in rows:
            if row["learner"] == name:
                runs[row["setting"]].append(row)
        lines.append({"learner": name, **accuracies(runs)})
    report.table("digits", lines, ACCURACIES)


@dataclass(frozen=True)
class Stream:
    """Labelled pictures in sessions, and the backbone that starts on them."""

    data: Path
    backbone: str
    setting: str
    seed: int


def learn(stream: Stream, changed: dict[str, Any], options: Options) -> dict:
    """Run training/train_incremental.py with the trainable regime; return the stream's measures."""
    with tempfile.TemporaryDirectory() as scratch:
        given: dict[str, Any] = {
            "data": stream.data,
            "backbone": stream.backbone,
            "setting": stream.setting,
            "seed": stream.seed,
            "regime": "trainable",
            "memory": options.memory,
            "num_train_epochs": options.epochs,
            "learning_rate": 2e-3,
            "lr_scheduler": "cosine",
            "lr_warmup_steps": 0,
            "train_batch_size": 64,
            "batch_size": 128,
            "output_dir": f"{scratch}/run",
        }
        words = [word for name, value in {**given, **changed}.items() for word in (f"--{name}", value)]
        run_script("train_incremental", *words, "--no-baselines")
        return json.loads(Path(scratch, "run", "results.json").read_text(encoding="utf-8"))


def frozen(stream: Stream) -> dict[str, dict]:
    """Measure the mixture and every baseline on frozen features: {name: measures}."""
    import numpy as np
    import torch

    from diffusers_ext import VMFMixtureClassifier
    from diffusers_ext.data.labelled import read_labelled
    from diffusers_ext.embeddings.backbones import features, load_backbone
    from diffusers_ext.streams.baselines import baselines
    from diffusers_ext.streams.measures import evaluate_stream
    from diffusers_ext.streams.sessions import build_sessions

    table = read_labelled(stream.data)
    with tempfile.TemporaryDirectory() as cache:
        embedded = torch.from_numpy(features(load_backbone(stream.backbone), table.files, cache, 128))
    sessions = build_sessions(table.label_index, table.domain_index, stream.setting, 5, stream.seed)
    test = np.array([sample.split == "test" for sample in table.samples])
    dim = embedded.shape[1]
    rivals = {"vMF mixture": VMFMixtureClassifier(dim, seed=stream.seed), **baselines(dim, stream.seed)}
    return {name: evaluate_stream(learner, embedded, sessions, test) for name, learner in rivals.items()}


def drawn_backbone(folder: Path, seed: int) -> str:
    """Write a ConvNeXt of four blocks with drawn weights as a timm folder; return its reference."""
    import timm
    import torch
    from timm.models import save_for_hf

    torch.manual_seed(seed)
    shape = {
        "depths": (1, 1, 1, 1),
        "dims": (16, 32, 64, 96),
        "kernel_sizes": 3,
        "patch_size": 2,
        "ls_init_value": None,
    }
    model = timm.create_model("convnext_atto", pretrained=False, num_classes=0, **shape)
    inputs = {"input_size": (3, SIDE, SIDE), "mean": (0.5,) * 3, "std": (0.25,) * 3, "crop_pct": 1.0}
    save_for_hf(model, str(folder), safe_serialization=True, data_config=inputs)
    return f"timm:{folder}"


def make_digits(folder: Path, options: Options) -> Path:
    """Write the four domains as folders split/domain/class with pictures of 32 x 32; return the folder."""
    import numpy as np
    from PIL import Image

    from diffusers_ext.data.arrays import read_digits
    from diffusers_ext.randomness import generator

    images, labels = read_digits(options.mnist, "t10k")
    images = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    patches, count = photographs(Path(options.photos)), options.train + options.test
    for digit in range(10):
        rows = generator(0, "digits", digit).permutation((labels == digit).nonzero()[0])
        for number, domain in enumerate(DOMAINS):
            for index in range(count):
                draw = generator(0, f"digit {domain}", digit, index)
                pixels = MAKERS[domain](images[rows[number * count + index]], digit, patches, draw)
                path = folder / ("train" if index < options.train else "test") / domain / str(digit) / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).convert("RGB").save(path)
    return folder


def photographs(folder: Path) -> list:
    """Return up to 200 photographs, (H, W, 3) uint8."""
    import numpy as np
    from PIL import Image

    from diffusers_ext.data.files import is_picture

    files = sorted(path for path in folder.rglob("*") if is_picture(path.name))[:200]
    return [np.asarray(Image.open(path).convert("RGB")) for path in files]


def as_it_is(image, digit: int, patches, draw):
    return image


def blended(image, digit: int, patches, draw):
    import numpy as np

    photo = patches[draw.integers(len(patches))]
    y, x = draw.integers(photo.shape[0] - SIDE), draw.integers(photo.shape[1] - SIDE)
    patch = photo[y : y + SIDE, x : x + SIDE].astype(int)
    return np.abs(patch - image[..., None]).astype(np.uint8)


def printed(image, digit: int, patches, draw):
    import numpy as np
    from matplotlib import font_manager
    from PIL import Image, ImageDraw, ImageFont

    family = str(draw.choice(["DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono"]))
    path = font_manager.findfont(
        font_manager.FontProperties(family=family, weight=str(draw.choice(["normal", "bold"])))
    )
    paper, ink = draw.integers(0, 120, 3), draw.integers(135, 256, 3)
    if draw.random() < 0.5:
        paper, ink = ink, paper
    mask = Image.new("L", (SIDE, SIDE))
    place = (SIDE / 2 + draw.uniform(-3, 3), SIDE / 2 + draw.uniform(-3, 3))
    font = ImageFont.truetype(path, int(draw.integers(18, 29)))
    ImageDraw.Draw(mask).text(place, str(digit), fill=255, font=font, anchor="mm")
    mask = np.asarray(mask.rotate(draw.uniform(-25, 25), Image.Resampling.BILINEAR))[..., None] / 255
    return (paper * (1 - mask) + ink * mask).astype(np.uint8)


def outline(image, digit: int, patches, draw):
    import numpy as np
    from PIL import Image, ImageFilter

    grown = np.asarray(Image.fromarray(image).filter(ImageFilter.MaxFilter(3))).astype(int)
    return (255 - np.clip(grown - image, 0, 255)).astype(np.uint8)


MAKERS = dict(zip(DOMAINS, (as_it_is, blended, printed, outline)))


if __name__ == "__main__":
    run(main, Options)
