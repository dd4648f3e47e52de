"""Classify pictures with a LADS classifier, to a .jsonl: class, probability, and the domain that text sees.

    diffusers-ext classify path/to/pictures --model runs/lads --output predictions.jsonl
    diffusers-ext classify a.png --model owner/name --head ensemble --share 0.7

Pictures are a file, a folder with all in it, or labelled pictures as for training, whose accuracy is then printed by
domain. Each line of the output is {"image", "label", "probability", "domain", "top"}.
"""

from dataclasses import dataclass

from ..options import COUNT, SHARE, option


@dataclass
class Options:
    data: str | None = option(None, "a picture or a folder of pictures", positional=True, path="read")
    model: str | None = option(None, "a folder or Hub name of a LADSClassifier", path="read")
    output: str = option("predictions.jsonl", "where to write", path="file")
    head: str = option("probe", "what classifies", ("probe", "zero_shot", "ensemble", "calibrated", "wise"))
    share: float = option(
        0.5,
        "of the probe, in ensemble, calibrated and wise",
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
    import json
    from pathlib import Path

    import torch
    from tqdm import tqdm

    from ..backbones import load_backbone
    from ..cache import write_atomically
    from ..lads import LADSClassifier
    from ..outputs import check_output

    files, truth = _pictures(Path(options.data))
    check_output("--output", options.output, [options.data, *(file for file in files if isinstance(file, Path))])
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    device = options.device or accelerator
    classifier = LADSClassifier.from_pretrained(options.model).to(device)
    if options.backbone:
        classifier.backbone = load_backbone(options.backbone, device)
    lines: list[str] = []
    right: dict[str, list[bool]] = {}
    for start in tqdm(range(0, len(files), options.batch_size), desc="classifying", unit="batch", dynamic_ncols=True):
        batch = files[start : start + options.batch_size]
        found = classifier.predict(batch, options.head, options.share, options.batch_size)
        for at, file in enumerate(batch):
            best = found.probabilities[at].topk(min(options.top, found.probabilities.shape[1]))
            top = {classifier.config.classes[c]: round(p, 6) for p, c in zip(*(each.tolist() for each in best))}
            row = {"image": str(file), "label": found.labels[at], "probability": best.values[0].item()}
            lines.append(json.dumps({**row, "domain": found.domains[at], "top": top}, ensure_ascii=False))
            if truth:
                label, domain = truth[start + at]
                right.setdefault(domain, []).append(label == found.labels[at])
    try:
        write_atomically(Path(options.output), ("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise InputError(f"--output {options.output}: cannot be written ({error})") from None
    print(f"{len(lines)} pictures: {options.output}")
    for domain, each in right.items():
        print(f"{domain}: {100 * sum(each) / len(each):.2f} % of {len(each)} right")


def _pictures(path) -> tuple[list, list]:
    """Return the files, and of labelled ones class and domain; InputError where there is none."""
    from ..data.files import is_picture
    from ..data.labelled import read_labelled
    from ..errors import InputError

    if path.is_file() and is_picture(path.name):
        return [path], []
    flat = [each for each in sorted(path.glob("*")) if is_picture(each.name)] if path.is_dir() else []
    if flat and not any((path / name).is_file() for name in ("metadata.jsonl", "metadata.csv")):
        return flat, []
    if not path.exists():
        raise InputError(f"{path}: no such picture or folder")
    table = read_labelled(path)
    return table.files, [(sample.label, sample.domain) for sample in table.samples]
