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
by and half to measure on. Columns: accuracy in percent, mean and standard deviation over the seeds, in the source domain,
in each target, out of domain (OOD) and over both (extended); the difference to the linear probe out of domain with p of a
paired t-test. A second table has what the networks made of the training images. Finished cases are kept in rows.jsonl of
the output folder: the same command resumes after an interruption.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from harness import ROOT, BenchmarkOptions, Journal, Report, plain, run
from spreads import deviation

from diffusers_ext.lads.options import LADSDataOptions, LADSOptions, LADSRunOptions
from diffusers_ext.options import COUNT, NATURAL, option

if TYPE_CHECKING:
    from diffusers_ext.data.labelled import LabelledImages
    from diffusers_ext.lads.baselines import Row
    from diffusers_ext.lads.data import Embedded, Splits
    from diffusers_ext.lads.domains import Domains, DomainText
    from diffusers_ext.lads.run import Fits

PACS = {"photo": "a photo of a {}", "art_painting": "a painting of a {}", "cartoon": "a cartoon of a {}"}
PACS |= {"sketch": "a sketch of a {}"}
EMOJI = {"noto": "Noto", "twemoji": "Twemoji", "openmoji-color": "OpenMoji", "openmoji-lineart": "OpenMoji line art"}
EMOJI |= {"fluent-3d": "Fluent 3D", "fluent-flat": "Fluent flat", "fluent-contrast": "Fluent high contrast"}
EMOJI = {name: f"a {spoken} style emoji of {{}}" for name, spoken in EMOJI.items()}
MNIST_CUT = 3000, 500, 1500  # digits of the test file to train, choose and measure on
COLOURS = {"red": ['a photo of the red number: "{}".'], "blue": ['a photo of the blue number: "{}".']}
PROBE = {"probe_learning_rate": 0.01, "probe_epochs": 40}
BALANCED = json.loads((ROOT / "training" / "presets" / "lads_balanced.json").read_text())
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
class Options(BenchmarkOptions):
    backbone: str | None = option(
        None, "an open_clip model with a text tower; see diffusers_ext/embeddings/backbones.py"
    )
    pacs: str | None = option(None, "PACS, a zip or a folder")
    emoji: str | None = option(None, "emoji in several styles with group and domain, a zip or a folder")
    mnist: str | None = option(None, "folder of MNIST's idx files")
    parts: list[str] | None = option(None, "parts to run; default: all", PARTS)
    sources: list[str] | None = option(
        None, "source domains of pacs, emoji or ablation; default: all four, three styles, photo"
    )
    variants: list[str] | None = option(None, "ablation: rows; default: all", tuple(ALONE))
    output_dir: str = option("runs/domain-extension", "folder of finished rows")
    seeds: int = option(5, "runs of everything that is drawn", COUNT)
    cache_dir: str = option("runs/feature-cache", "folder of embeddings")
    few_images: int = option(
        0, "images of each target domain for the few-image baseline; they leave all test sets", NATURAL
    )
    grid: str | None = option(None, "folder for pictures of neighbours; default: none are drawn")


def main(options: Options, report: Report) -> None:
    selecting = ("parts", "sources", "variants", "cache_dir", "grid", "pacs", "emoji", "mnist", "backbone")
    journal = Journal(Path(options.output_dir) / "rows.jsonl", options, selecting)
    parts = options.parts or PARTS
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))

        def show(title: str, make, variants: dict[str, dict]) -> None:
            row = journal.once({"case": title}, lambda: {"tables": bench.tables(title, make(), variants)})
            for name, lines in row["tables"].items():
                report.table(name, lines, ".3g" if "moved" in name else ".2f")

        if "pacs" in parts:
            for source in options.sources or PACS:
                show(f"PACS from {source}", lambda: bench.extension(options.pacs, PACS, source), EXTENSION)  # noqa: B023
        if "emoji" in parts:
            for source in options.sources or ("noto", "openmoji-lineart", "fluent-3d"):
                make = lambda: bench.extension(options.emoji, EMOJI, source, "group")  # noqa: B023, E731
                show(f"Emoji from {source}", make, EXTENSION)
        if "mnist" in parts:
            show("ColoredMNIST, colours as text predicts them", lambda: bench.colours(False), COLOURED)
        if "mnist-true" in parts:
            show("ColoredMNIST, true colours", lambda: bench.colours(True), COLOURED)
        if "ablation" in parts:
            for source in options.sources or ("photo",):
                bench.ablation(f"PACS from {source}", bench.extension(options.pacs, PACS, source), journal, report)


@dataclass
class Case:
    """Embedded pictures, embedded words, and the names of the targets."""

    splits: Splits
    text: DomainText
    names: list[str]


class Bench:
    """The backbone, and the data as embeddings."""

    def __init__(self, options: Options, scratch: Path):
        self.options, self.scratch, self.seeds = options, scratch, range(options.seeds)
        from diffusers_ext.embeddings.backbones import load_backbone

        self.backbone = load_backbone(options.backbone)
        self.settings = Settings(encoder_cache_dir=options.cache_dir, **PROBE)

    def extension(self, data: str, templates: dict[str, str], source: str, label: str = "label") -> Case:
        """One domain to train on, the others by words."""
        from diffusers_ext.data.labelled import read_labelled
        from diffusers_ext.lads.domains import Domains

        table = read_labelled(self.unpacked(data), label_column=label)
        targets = {name: [text] for name, text in templates.items() if name != source}
        domains = Domains.read({"source": [templates[source]], "targets": targets})
        return self.case(table, domains, replace(self.settings, source_domain=source))

    def colours(self, true: bool) -> Case:
        """Digits whose colours text predicts, or the data tell."""
        from diffusers_ext.lads.domains import Domains
        from diffusers_ext.lads.run import read_table

        settings = replace(
            self.settings,
            train_data_dir=self.options.mnist,
            dataset_format="colored_mnist",
            mnist_cut=list(MNIST_CUT),
            true_domains=true,
        )
        text = {"swap": COLOURS, "class_text": 'a photo of the number "{}"'}
        return self.case(read_table(settings), Domains.read(text), settings)

    def case(self, table: LabelledImages, domains: Domains, settings: Settings) -> Case:
        from diffusers_ext.lads.domains import embed_domains
        from diffusers_ext.lads.run import embed_splits

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
        from diffusers_ext.lads.run import Fits
        from diffusers_ext.lads.training import augmented_set, text_by_images, train_bank, train_probe

        settings, (splits, text) = replace(self.settings, **changes), (case.splits, case.text)
        if settings.image_directions:
            text = text_by_images(splits.train, text, [few[name] for name in case.names] if few else [])
        bank = train_bank(splits.train, splits.val, text, settings, self.seeds).bank
        rows = augmented_set(splits.train, bank, text, settings, self.seeds)
        start = text.adaptive if settings.zero_shot_init else None
        return Fits(bank, train_probe(rows, splits.val, settings, self.seeds, start).probe, [])

    def tables(self, title: str, case: Case, variants: dict[str, dict]) -> dict[str, list[dict]]:
        """Return all tables of a case: every baseline, LADS with each of some options, and what each made of the images."""
        from diffusers_ext.lads.baselines import baselines, measure, of_lads, take_few
        from diffusers_ext.lads.run import describe

        few: dict[str, Embedded] = {}
        if self.options.few_images and not case.text.swap:
            few, splits = take_few(case.splits, self.options.few_images)
            case = replace(case, splits=splits)
            variants = {**variants, f"LADS, directions of {self.options.few_images} images": {"image_directions": True}}
        methods = baselines(case.splits, case.text, self.settings, self.seeds, few)
        fits = {name: self.fit(case, changes, few) for name, changes in variants.items()}
        for name, fit in fits.items():
            methods |= of_lads(fit.probe, case.text, case.splits.val, name)
        tables = {f"{title}: {sizes(case.splits)}": accuracies(measure(methods, case.splits, self.seeds))}
        for name, fit in fits.items():
            diagnostics = describe(case.splits, fit, case.text, case.names)
            tables[f"{title}, {name}: of the moved training images"] = by_measure(diagnostics)
            if self.options.grid:
                self.draw(f"{title}, {name}", case, fit)
        return tables

    def draw(self, title: str, case: Case, fit: Fits) -> None:
        """Save a picture of real pictures beside those that networks move training pictures to."""
        from diffusers_ext.lads.run import neighbour_grid

        Path(self.options.grid).mkdir(parents=True, exist_ok=True)
        neighbour_grid(case.splits, fit.bank, case.names).save(Path(self.options.grid) / f"{title}.png")

    def ablation(self, title: str, case: Case, journal: Journal, report: Report) -> None:
        """Report each option alone: accuracy, and how far the classes collapse."""
        from diffusers_ext.lads.baselines import linear, measure
        from diffusers_ext.lads.run import describe

        measures = ("within_class", "drift", "own_neighbour", "class_consistency", "domain_consistency")

        def line(changes: dict) -> dict:
            fit = self.fit(case, changes)
            (row,) = accuracies(measure({"LADS": linear(fit.probe)}, case.splits, self.seeds))
            domains = describe(case.splits, fit, case.text, case.names).values()
            return {
                "line": row | {name.replace("_", " "): fmean(domain[name] for domain in domains) for name in measures}
            }

        rows = []
        for name in self.options.variants or ALONE:
            row = journal.once({"case": f"{title}, ablation", "variant": name}, lambda: line(ALONE[name]))  # noqa: B023
            rows.append({**row["line"], "method": name})
        report.table(f"{title}, each option alone", rows)


def sizes(splits: Splits) -> str:
    counts = {"train": len(splits.train), "val": len(splits.val)}
    counts |= {name: len(test) for name, test in splits.tests.items()}
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) + " images"


def accuracies(rows: list[Row]) -> list[dict]:
    """Return the rows of a table of accuracies in percent, over seeds."""
    names = {"out_of_domain": "OOD", "extended_micro": "extended, micro", "worst_group": "worst group"}
    lines = []
    for row in rows:
        cells = {
            names.get(measure, measure.replace("_", " ")): deviation(values) for measure, values in row.values.items()
        }
        change = row.difference
        cells["OOD − linear probe"] = f"{change.mean:+.2f} (p {change.p:.2g})" if change else None
        lines.append(plain({"method": row.method, **cells}))
    return lines


def by_measure(columns: dict[str, dict[str, float]]) -> list[dict]:
    """Turn {column: {measure: value}} into rows of a table."""
    names = next(iter(columns.values()))
    return [{"measure": name.replace("_", " "), **{c: column[name] for c, column in columns.items()}} for name in names]


if __name__ == "__main__":
    run(main, Options)
