"""Classify pictures with a LADS or an incremental classifier, to a .jsonl; run again, it resumes where it stopped.

    diffusers-ext classify path/to/pictures --model runs/lads --output predictions.jsonl
    diffusers-ext classify week12 --model runs/stream
    diffusers-ext classify a.png --model owner/name --head ensemble --share 0.7

Pictures are a file, a folder with all in it, or labelled pictures as for training, whose accuracy is then printed by
domain. Each line of the output is {"image", "key", "model", "label", "probability", "top"}, and "domain" of LADS or
"component" of an incremental classifier; a picture that cannot be read has "error" instead of "label", and the command then
ends with exit code 2 when all others are classified. Rows are looked up by content:
a changed picture is classified again, a renamed one is not, and rows of other pictures stay.
"""

from dataclasses import dataclass

from ..options import COUNT, SHARE, option


@dataclass
class Options:
    data: str | None = option(None, "a picture or a folder of pictures", positional=True, path="read")
    model: str | None = option(
        None, "a run folder or Hub name of a LADSClassifier or a VMFMixtureClassifier", path="read"
    )
    output: str = option("predictions.jsonl", "where to write; rows that are there already are kept", path="file")
    head: str = option("probe", "LADS: what classifies", ("probe", "zero_shot", "ensemble", "calibrated", "wise"))
    share: float = option(
        0.5,
        "LADS: of the probe, in ensemble, calibrated and wise",
        SHARE,
        requires={"head": ("ensemble", "calibrated", "wise")},
    )
    backbone: str | None = option(
        None, "where the backbone lies here, if not where the classifier says; the same weights", path="read"
    )
    top: int = option(3, "classes with their probabilities in each line", COUNT)
    batch_size: int = option(32, "pictures at a time", COUNT)
    device: str | None = option(None, "cpu, cuda, mps ...; default: the accelerator, where there is one")


def main(options: Options) -> None:
    from ..errors import InputError

    if not options.data or not options.model:
        raise InputError("give pictures and --model: diffusers-ext classify PICTURES --model FOLDER; see --help")
    from pathlib import Path

    import torch

    from ..options.outputs import check_output
    from ._classification import classify, find_pictures, identity, load_classifier

    pictures = find_pictures(Path(options.data).expanduser())
    inputs = [file for file in pictures.files if isinstance(file, Path)]
    check_output("--output", options.output, [options.data, *inputs])
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    device = options.device or accelerator
    classifier = load_classifier(options.model, options.head, options.share, options.backbone, device)
    model = identity(classifier, {"head": options.head, "share": options.share, "top": options.top})
    done = classify(classifier, pictures.files, Path(options.output), model, options.top, options.batch_size)
    rows = done.rows
    bad = [row for row in rows if "error" in row]
    print(f"{len(rows) - len(bad)} pictures: {options.output}")
    for note in pictures.notes:
        print(f"note: {note}")
    if done.others:
        print(f"note: {options.output} also keeps {done.others} rows of pictures that are not among these")
    _print_accuracy(rows, pictures.truth, {str(label) for label in classifier.classes})
    if bad:
        raise InputError(f"{len(bad)} of {len(rows)} pictures could not be read, the first: {bad[0]['error']}")


def _print_accuracy(rows: list[dict], truth: dict, classes: set[str]) -> None:
    """Print the share that is right in each domain, and how many pictures are of classes that were never learnt."""
    judged = [row for row in rows if row["image"] in truth and "label" in row]
    known = [row for row in judged if truth[row["image"]][0] in classes]
    if not known:
        return
    right: dict[str, list[bool]] = {}
    for row in known:
        label, domain = truth[row["image"]]
        right.setdefault(domain, []).append(label == str(row["label"]))
    for domain, hits in right.items():
        print(f"{domain}: {100 * sum(hits) / len(hits):.2f} % of {len(hits)} right")
    if len(known) < len(judged):
        print(f"{len(judged) - len(known)} pictures are of classes that this classifier has not learnt")
