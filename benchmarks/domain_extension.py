"""Does LADS reach unseen domains better than a linear probe? Real pictures, five seeds, every baseline.

    python benchmarks/domain_extension.py --backbone path/to/open_clip_folder --pacs pacs128.zip --mnist folder/of/idx \\
        --emoji emoji7x1562_64.zip                      # all parts; half an hour on a core, and the embedding
    python benchmarks/domain_extension.py ... --parts pacs --sources photo

pacs: each of the four domains in turn as the source, the other three as targets that are known by words alone.
emoji: nine groups of emoji; from Noto, from line art and from Fluent 3D to the six other styles each.
mnist: ColoredMNIST of 5,000 digits of MNIST's test file, whose training digits are red if even and blue if odd; the groups
are digit and colour. Text predicts the colours; in mnist-true the data tell them.
ablation: PACS, by default from photographs, each option of LADS alone: accuracy, and how far the classes collapse.

Pictures are zips or folders that `data/labelled.py` reads. Of the source domain a part is held out, half to choose epochs
by and half to measure on. Prints markdown tables: mean ± standard deviation over the seeds, and p of a paired t-test.
"""

import json
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch

from diffusers_ext.data.labelled import LabelledImages, read_labelled
from diffusers_ext.embeddings.backbones import load_backbone
from diffusers_ext.lads.baselines import baselines, linear, markdown, measure, of_lads, take_few
from diffusers_ext.lads.data import Embedded, Splits
from diffusers_ext.lads.domains import Domains, DomainText, embed_domains
from diffusers_ext.lads.options import LADSDataOptions, LADSOptions, LADSRunOptions
from diffusers_ext.lads.run import Fits, describe, diagnostics_table, embed_splits, neighbour_grid, read_table
from diffusers_ext.lads.training import augmented_set, text_by_images, train_bank, train_probe
from diffusers_ext.options import COUNT, NATURAL, option, run

PACS = {"photo": "a photo of a {}", "art_painting": "a painting of a {}", "cartoon": "a cartoon of a {}"}
PACS |= {"sketch": "a sketch of a {}"}
EMOJI = {"noto": "Noto", "twemoji": "Twemoji", "openmoji-color": "OpenMoji", "openmoji-lineart": "OpenMoji line art"}
EMOJI |= {"fluent-3d": "Fluent 3D", "fluent-flat": "Fluent flat", "fluent-contrast": "Fluent high contrast"}
EMOJI = {name: f"a {spoken} style emoji of {{}}" for name, spoken in EMOJI.items()}
MNIST_CUT = 3000, 500, 1500  # digits of the test file to train, choose and measure on
COLOURS = {"red": ['a photo of the red number: "{}".'], "blue": ['a photo of the blue number: "{}".']}
PROBE = {"probe_learning_rate": 0.01, "probe_epochs": 40}
BALANCED = json.loads((Path(__file__).parents[1] / "training" / "presets" / "lads_balanced.json").read_text())
EXTENSION = {"LADS": {}, "LADS, balanced": BALANCED}
BIAS = {"alpha": 1.0, "neighbour_weight": 0.1, "hidden_dim": 512, "learning_rate": 0.005}
COLOURED = {"LADS": BIAS, "LADS, image directions": {**BIAS, "image_directions": True}}
ALONE = {  # what LADS becomes with each option by itself
    "as published": {},
    "balanced, the preset": BALANCED,
    "directions without the gap": {"without_gap": True},
    "originals half of the loss": {"original_share": 0.5},
    "α = 1, alignment only": {"alpha": 1.0},
    "α = 0, class only": {"alpha": 0.0},
    "residual": {"residual": True},
    "logit scale 100": {"logit_scale": 100.0},
    "pairwise term 10": {"pairwise_weight": 10.0},
    "class text of the domain": {"domain_class_text": True},
    "random strength": {"random_strength": True},
    "latent filter": {"latent_filter": True},
    "normalised direction": {"normalised_direction": True},
    "neighbour term 1": {"neighbour_weight": 1.0},
    "probe from zero-shot": {"zero_shot_init": True},
}
PARTS = ("pacs", "emoji", "mnist", "mnist-true", "ablation")


@dataclass
class Settings(LADSOptions, LADSDataOptions, LADSRunOptions):
    """What `lads.run` reads."""


@dataclass
class Options:
    backbone: str | None = option(
        None, "an open_clip model with a text tower; see diffusers_ext/embeddings/backbones.py"
    )
    pacs: str | None = option(None, "PACS, a zip or a folder")
    emoji: str | None = option(None, "emoji in several styles with group and domain, a zip or a folder")
    mnist: str | None = option(None, "folder of MNIST's idx files")
    parts: list[str] | None = option(None, "which to run; default: all", PARTS)
    sources: list[str] | None = option(
        None, "source domains of pacs, emoji or ablation; default: all four, three styles, photo"
    )
    variants: list[str] | None = option(None, "rows of the ablation; default: all", tuple(ALONE))
    seeds: int = option(5, "runs of everything that is drawn", COUNT)
    cache_dir: str = option("runs/feature-cache", "where embeddings are kept")
    few_images: int = option(
        0, "images of each target domain for the few-image baseline; they leave all test sets", NATURAL
    )
    grid: str | None = option(None, "folder for pictures of neighbours")


def main(options: Options) -> None:
    torch.set_num_threads(1)
    parts = options.parts or PARTS
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))
        if "pacs" in parts:
            for source in options.sources or PACS:
                bench.show(f"PACS from {source}", bench.extension(options.pacs, PACS, source), EXTENSION)
        if "emoji" in parts:
            for source in options.sources or ("noto", "openmoji-lineart", "fluent-3d"):
                bench.show(f"Emoji from {source}", bench.extension(options.emoji, EMOJI, source, "group"), EXTENSION)
        if "mnist" in parts:
            bench.show("ColoredMNIST, colours as text sees them", bench.colours(False), COLOURED)
        if "mnist-true" in parts:
            bench.show("ColoredMNIST, true colours", bench.colours(True), COLOURED)
        if "ablation" in parts:
            for source in options.sources or ("photo",):
                bench.show_ablation(f"PACS from {source}", bench.extension(options.pacs, PACS, source))


@dataclass
class Case:
    splits: Splits
    text: DomainText
    names: list[str]


class Bench:
    """The backbone, and the data as embeddings."""

    def __init__(self, options: Options, scratch: Path):
        self.options, self.scratch, self.seeds = options, scratch, range(options.seeds)
        self.backbone = load_backbone(options.backbone)
        self.settings = Settings(encoder_cache_dir=options.cache_dir, **PROBE)

    def extension(self, data: str, templates: dict[str, str], source: str, label: str = "label") -> Case:
        """One domain to train on, the others by words."""
        table = read_labelled(self.unpacked(data), label_column=label)
        targets = {name: [text] for name, text in templates.items() if name != source}
        domains = Domains.read({"source": [templates[source]], "targets": targets})
        return self.case(table, domains, replace(self.settings, source_domain=source))

    def colours(self, true: bool) -> Case:
        """Digits whose colours text predicts, or the data tell."""
        made = replace(
            self.settings,
            train_data_dir=self.options.mnist,
            dataset_format="colored_mnist",
            mnist_cut=list(MNIST_CUT),
            true_domains=true,
        )
        text = {"swap": COLOURS, "class_text": 'a photo of the number "{}"'}
        return self.case(read_table(made), Domains.read(text), made)

    def case(self, table: LabelledImages, domains: Domains, settings: Settings) -> Case:
        text = embed_domains(domains, table.labels, self.backbone.embed_texts)
        splits = embed_splits(table, domains, text, self.backbone, settings, True)
        return Case(splits, text, ["the other"] if domains.swap else list(domains.targets))

    def unpacked(self, data: str) -> Path:
        if not data.endswith(".zip"):
            return Path(data)
        folder = self.scratch / Path(data).stem
        if not folder.exists():
            zipfile.ZipFile(data).extractall(folder)
        return folder

    def fit(self, case: Case, changes: dict, few: dict[str, Embedded] | None = None) -> Fits:
        """Train LADS alone, with every seed. few: images of each target, for directions by images."""
        settings, (splits, text) = replace(self.settings, **changes), (case.splits, case.text)
        if settings.image_directions:
            text = text_by_images(splits.train, text, [few[name] for name in case.names] if few else [])
        bank = train_bank(splits.train, splits.val, text, settings, self.seeds).bank
        rows = augmented_set(splits.train, bank, text, settings, self.seeds)
        start = text.adaptive if settings.zero_shot_init else None
        return Fits(bank, train_probe(rows, splits.val, settings, self.seeds, start).probe, [])

    def show(self, title: str, case: Case, variants: dict[str, dict]) -> None:
        """Print the whole table of one case, LADS with each of some options, and what each made of the images."""
        sizes = {"train": len(case.splits.train), "val": len(case.splits.val)}
        sizes |= {name: len(test) for name, test in case.splits.tests.items()}
        print(f"\n{title}: {', '.join(f'{name} {count:,}' for name, count in sizes.items())} images\n")
        few: dict[str, Embedded] = {}
        if self.options.few_images and not case.text.swap:
            few, splits = take_few(case.splits, self.options.few_images)
            case = replace(case, splits=splits)
        methods = baselines(case.splits, case.text, self.settings, self.seeds, few)
        if few:
            variants = {**variants, f"LADS, directions of {self.options.few_images} images": {"image_directions": True}}
        fits = {name: self.fit(case, changes, few) for name, changes in variants.items()}
        for name, each in fits.items():
            methods |= of_lads(each.probe, case.text, case.splits.val, name)
        print(markdown(measure(methods, case.splits, self.seeds)), flush=True)
        for name, each in fits.items():
            print(f"\n{name}:\n\n{diagnostics_table(describe(case.splits, each, case.text, case.names))}", flush=True)
            if self.options.grid:
                Path(self.options.grid).mkdir(parents=True, exist_ok=True)
                picture = neighbour_grid(case.splits, each.bank, case.names)
                picture.save(Path(self.options.grid) / f"{title}, {name}.png")

    def show_ablation(self, title: str, case: Case) -> None:
        shown = ("within_class", "drift", "own_neighbour", "class_consistency", "domain_consistency")
        heads = [
            "in domain",
            *case.splits.out_of_domain,
            "OOD",
            "extended",
            *(name.replace("_", " ") for name in shown),
        ]
        print(
            f"\n{title}, each option alone\n\n| LADS | " + " | ".join(heads) + " |\n" + "|---" * (len(heads) + 1) + "|"
        )
        for name in self.options.variants or ALONE:
            fits = self.fit(case, ALONE[name])
            row = measure({"LADS": linear(fits.probe)}, case.splits, self.seeds)[0]
            found = describe(case.splits, fits, case.text, case.names).values()
            cells = [row.cell(each) for each in [*case.splits.tests, "out_of_domain", "extended"]]
            cells += [f"{fmean(each[what] for each in found):.3g}" for what in shown]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    run(main, Options)
