"""A whole LADS training from pictures: data, shared-out networks, probe, table, and what a run leaves behind."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..cache import digest_of, write_atomically
from ..data.files import load
from ..data.labelled import LabelledImages, columns_of, read_labelled
from ..data.published import colored_mnist, waterbirds
from ..data.splits import check_learnable, on_one_side
from ..embeddings.backbones import Backbone, features
from ..engine.provenance import Source, Sources, digest_of_files, digest_of_model, digest_of_values
from ..engine.run_folder import METRICS, save_sample
from ..errors import InputError
from ..figures import labelled_grid
from .bank import AugmentationBank, augment, new_bank
from .baselines import Row, baselines, markdown, measure, of_lads, take_few
from .data import Embedded, Splits, split_by_domain, split_by_rule
from .domains import Domains, DomainText
from .fit import Checkpoint, Watch
from .measures import diagnostics, nearest
from .objective import Probe
from .options import LADSOptions, LADSTraining
from .training import augmented_set, predicted_domains, text_by_images, train_bank, train_probe

FITS = "checkpoint-fits"  # folder of the state of each fit
FIXED = {  # what a resumed run may not change
    *LADSOptions.__dataclass_fields__,
    *("seed", "runs", "few_images", "source_domain", "dataset_format", "mnist_cut", "true_domains"),
}


def read_table(options: LADSTraining) -> LabelledImages:
    """Read the pictures that options name."""
    assert options.train_data_dir is not None
    if options.dataset_format == "waterbirds":
        return waterbirds(options.train_data_dir)
    if options.dataset_format == "colored_mnist":
        cut = options.mnist_cut
        if not cut:
            return colored_mnist(options.train_data_dir)
        if len(cut) != 3:
            raise InputError(f"--mnist_cut takes three numbers, of train, validation and test, got {len(cut)}")
        train, val, test = cut
        return colored_mnist(options.train_data_dir, (train, val, test))
    columns = columns_of(options)
    table = read_labelled(options.train_data_dir, **columns)
    check_learnable(table)
    return on_one_side(table)


def check_domains(table: LabelledImages, domains: Domains, options: LADSTraining) -> None:
    """Raise InputError where data and declaration do not fit, before anything is embedded."""
    others = {name: sum(sample.domain == name for sample in table.samples) for name in table.domains}
    others = {name: count for name, count in others.items() if name != options.source_domain}
    if domains.swap:
        if options.true_domains and set(others) != set(domains.targets):
            raise InputError(
                f"--true_domains: the data have {', '.join(others)}, --domains {', '.join(domains.targets)}; name the same"
            )
    elif options.source_domain not in table.domains:
        raise InputError(
            f"--source_domain {options.source_domain}: the data have {', '.join(table.domains)}; name the one to train on"
        )
    elif options.few_images >= min(others.values(), default=options.few_images + 1):
        least = min(others, key=lambda name: others[name])
        raise InputError(
            f"--few_images {options.few_images}: domain {least!r} has {others[least]} images, and some must be left to test on"
        )
    elif options.image_directions:
        missing = [name for name in domains.targets if name not in table.domains]
        if missing or not options.few_images:
            raise InputError(
                f"--image_directions: needs some images of each target; the data have none of {missing[0]!r}"
                if missing
                else "--image_directions: say how many images of each target may be used, such as --few_images 5"
            )


def sources_of(options: LADSTraining, table: LabelledImages, domains: Domains) -> Sources:
    """What a classifier comes from: the pictures by content, class, domain and split, the words, and the backbone."""
    rows = [[sample.label, sample.domain, sample.split] for sample in table.samples]
    digest = digest_of_values(digest_of_files(table.files), rows)
    columns = ("label_column", "domain_column", "split_column")
    return {
        "data": Source(("train_data_dir", *columns), digest, f"{len(rows)} pictures"),
        "words": Source(("domains",), digest_of_values(vars(domains))),
        "backbone": Source(("backbone",), digest_of_model(options.backbone)),
    }


def embed_splits(
    table: LabelledImages, domains: Domains, text: DomainText, backbone: Backbone, options: LADSTraining, show: bool
) -> Splits:
    """Embed and split the pictures; ranks that call this together share the work through the cache."""
    folder = options.encoder_cache_dir or Path(options.output_dir) / "cache"

    def embed(part: LabelledImages) -> torch.Tensor:
        return torch.from_numpy(features(backbone, part.files, folder, show=show)).to(backbone.device)

    if not domains.swap:
        assert options.source_domain is not None
        others = [name for name in table.domains if name != options.source_domain]
        splits = split_by_domain(table, options.source_domain, others, embed)
    else:
        splits = split_by_rule(table, embed)
    splits = splits.to(backbone.device)
    if not domains.swap:
        return splits
    if options.true_domains:
        train, val = (declared_domains(part, domains) for part in (splits.train, splits.val))
    else:
        train, val = (predicted_domains(part, text) for part in (splits.train, splits.val))
    return replace(splits, train=train, val=val)


def declared_domains(data: Embedded, domains: Domains) -> Embedded:
    """Return the data with domains as positions in the declaration."""
    names = tuple(domains.targets)
    place = torch.tensor([names.index(name) for name in data.domain_names], device=data.x.device)
    return replace(data, domains=place[data.domains], domain_names=names)


@dataclass
class Fits:
    """The trained parts, and what was seen on the way: rows of metrics.jsonl."""

    bank: AugmentationBank
    probe: Probe
    rows: list[dict[str, Any]]


def train(
    splits: Splits, text: DomainText, options: LADSTraining, seeds: Sequence[int], accelerator: Accelerator
) -> Fits:
    """Train networks and probe. Ranks share out the domains, whose networks are independent; each trains the probe."""
    made_of = fingerprint(splits, text, options)

    def checkpoint(name: str) -> Checkpoint:
        path = Path(options.output_dir) / FITS / f"{name}.safetensors"
        return Checkpoint(path, made_of, options.checkpointing_epochs, options.resume_from_checkpoint is not None)

    networks, rows = _train_share(splits, text, options, seeds, accelerator, checkpoint)
    bank = joined(gather_object(networks), splits.train.x.shape[1], options, splits.train.x.device)
    training = augmented_set(splits.train, bank, text, options, seeds)
    start = text.adaptive if options.zero_shot_init else None
    watch = Watch(checkpoint("probe"), "probe") if accelerator.is_main_process else Watch()
    probe, fitted = train_probe(training, splits.val, options, seeds, start, watch)
    return Fits(bank, probe, gather_object(rows) + [{"stage": "probe", **row} for row in fitted.history])


class Network(NamedTuple):
    """One trained network: its run and domain, by number, and its parameters."""

    run: int
    domain: int
    parameters: list[torch.Tensor]


def _train_share(
    splits: Splits,
    text: DomainText,
    options: LADSTraining,
    seeds: Sequence[int],
    accelerator: Accelerator,
    checkpoint: Callable[[str], Checkpoint],
) -> tuple[list[Network], list[dict[str, Any]]]:
    """Train the networks of this rank's domains; return them, and their rows of metrics.jsonl."""
    count = 1 if text.swap else len(text.targets)
    rank, ranks = accelerator.process_index, accelerator.num_processes
    mine = list(range(count))[rank::ranks]
    if not mine:
        return [], []
    watch = Watch(checkpoint(f"networks-{rank}-of-{ranks}"), "networks" if accelerator.is_main_process else None)
    bank, fitted = train_bank(splits.train, splits.val, text, options, seeds, mine, watch)
    parameters = [[values[place].cpu() for values in bank.parameters()] for place in range(len(bank.weight1))]
    networks = [
        Network(run, domain, parameters[run * len(mine) + place])
        for run in range(len(seeds))
        for place, domain in enumerate(mine)
    ]
    return networks, [{"stage": "networks", "rank": rank, **row} for row in fitted.history]


def joined(networks: list[Network], dim: int, options: LADSTraining, device: torch.device) -> AugmentationBank:
    """Put the networks of all ranks into one bank, by run and domain."""
    networks = sorted(networks, key=lambda network: (network.run, network.domain))
    bank = new_bank([(0, 0)] * len(networks), dim, options.hidden_dim, options.residual)
    with torch.no_grad():
        for place, network in enumerate(networks):
            for parameter, value in zip(bank.parameters(), network.parameters):
                parameter[place] = value
    return bank.to(device).requires_grad_(False)


def fingerprint(splits: Splits, text: DomainText, options: LADSTraining) -> str:
    """Return a digest of what a fit depends on: the options of training, the words, the embeddings, their classes and domains."""
    names = [*LADSOptions.__dataclass_fields__, "seed", "runs", "few_images"]
    found: list[Any] = [{name: getattr(options, name) for name in names}]
    for value in (splits.train.x, splits.val.x, text.source, text.targets, text.classes, text.adaptive):
        found.append(f"{value.double().sum():.12g}")
    for part in (splits.train, splits.val):
        found.append([part.labels.tolist(), part.domains.tolist()])
    return digest_of(json.dumps(found, sort_keys=True))[:16]


def set_aside(splits: Splits, text: DomainText, targets: Sequence[str], options: LADSTraining) -> tuple:
    """Return --few_images of each domain by name, the splits without them, and text, by images where that is wanted."""
    few: dict[str, Embedded] = {}
    if options.few_images and not text.swap:
        few, splits = take_few(splits, options.few_images, options.seed)
    if options.image_directions:
        text = text_by_images(splits.train, text, [] if text.swap else [few[name] for name in targets])
    return few, splits, text


def table_of(
    splits: Splits, fits: Fits, text: DomainText, options: LADSTraining, seeds: Sequence[int], few: dict[str, Embedded]
) -> list[Row]:
    """Train the baselines, where they are wanted, and measure all."""
    others = baselines(splits, text, options, seeds, few) if options.baselines else {}
    return measure({**others, **of_lads(fits.probe, text, splits.val)}, splits, seeds)


def describe(splits: Splits, fits: Fits, text: DomainText, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the target-free diagnostics of the first run's networks, by domain."""
    count = 1 if text.swap else len(text.targets)
    moved, first = augment(fits.bank, splits.train.x)[:count], 0 if text.swap else 1
    if text.swap:
        return {"the other": diagnostics(splits.train, moved[0], text, 1 - splits.train.domains)}
    whole = torch.full_like(splits.train.labels, first)
    return {name: diagnostics(splits.train, moved[k], text, whole + k) for k, name in enumerate(names)}


def diagnostics_table(found: dict[str, dict[str, float]]) -> str:
    """The diagnostics as a markdown table, a column per domain."""
    lines = [["of the moved training images", *found], ["---"] * (len(found) + 1)]
    for name in next(iter(found.values())):
        lines.append([name.replace("_", " "), *(f"{values[name]:.3g}" for values in found.values())])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def neighbour_grid(splits: Splits, bank: AugmentationBank, names: Sequence[str], count: int = 8):
    """Draw training pictures and, under each, the real test pictures nearest to where each network moves it."""
    order = torch.linspace(0, len(splits.train) - 1, min(count, len(splits.train))).long()
    shown, tests = splits.train.where(order.to(splits.train.x.device)), list(splits.tests.values())
    among, files = torch.cat([test.x for test in tests]), [file for test in tests for file in test.files]
    rows, labels = [[load(file) for file in shown.files]], ["training images"]
    for name, moved in zip(names, augment(bank, shown.x)):
        _, found = nearest(moved, among)
        rows.append([load(files[at]) for at in found.tolist()])
        labels.append(f"nearest test images after the move to: {name}")
    columns = [shown.classes[label] for label in shown.labels.tolist()]
    return labelled_grid(rows, columns, labels, title="Neighbours of augmented embeddings")


def leave_behind(
    folder: Path, fits: Fits, rows: list[Row], found: dict[str, dict[str, float]], splits: Splits, names: Sequence[str]
) -> str:
    """Write metrics.jsonl, results.json and the picture of neighbours; return the tables."""
    lines = [json.dumps({"step": row["epoch"] + 1, **row}) for row in fits.rows]
    results = {"accuracy": {row.method: row.values for row in rows}, "diagnostics": found}
    write_atomically(folder / METRICS, ("\n".join(lines) + "\n").encode())
    write_atomically(folder / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    save_sample(folder, len(fits.rows), neighbour_grid(splits, fits.bank, names))
    return f"{markdown(rows)}\n\n{diagnostics_table(found)}"
