"""Published data sets of classes and domains, from local copies: what of them is not told by their folders.

    waterbirds("waterbird_1.0_forest2water2")     LADS' bias setting (group_DRO's metadata.csv)
    cub_paintings("CUB_200_2011", "CUB-200-Painting")
    domainnet_mini("domainnet", "domainnet_sentry_split")
    colored_mnist("mnist")
    digits({"mnist": "mnist", "svhn": "svhn", "mnist-m": ..., "syndigits": ...})   iDigits
    cifar20("cifar-100-binary")                                                    iCIFAR-20

PACS, Office-Home and DomainNet in full (iDomainNet) need no more than `read_labelled`. The splits of the first four are
those of LADS (Dunlap et al. 2023): "train", "val" to choose by, "test" of the training's domain and of others.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from .. import randomness
from ..errors import InputError
from ..lines import read_lines, read_text
from .arrays import array_files, read_cifar100, read_digits, read_svhn
from .files import is_picture
from .labelled import LabelledImages, Sample, checked, halve, read_labelled, read_lists
from .rows import records

COLOURS = ("red", "blue")  # of ColoredMNIST's even and odd digits
CHANNELS = {"red": 0, "blue": 2}
MNIST_VALIDATION = 10_000  # the last of the training file


def waterbirds(folder: str | Path) -> LabelledImages:
    """Read Waterbirds: landbird or waterbird before forest or water, as the file's `place` says.

    Of the validation pictures whose place fits the bird, every second is test, as in LADS; the others of them stay out.
    """
    path = Path(folder) / "metadata.csv"
    if not path.is_file():
        raise InputError(f"{path}: missing; name the folder of Waterbirds that group_DRO's generator wrote")
    table = LabelledImages.of(checked(_waterbirds(path), path))
    fits = lambda sample: (sample.label == "waterbird") == (sample.domain == "water")  # noqa: E731
    table = table.take([index for index, sample in enumerate(table.samples) if sample.split != "val" or fits(sample)])
    return halve(table, "val", fits)


def _waterbirds(path: Path) -> Iterable[Sample]:
    for origin, values in records(path):
        try:
            label, place, split = (int(values[name]) for name in ("y", "place", "split"))
            names = ("landbird", "waterbird")[label], ("forest", "water")[place], ("train", "val", "test")[split]
            file = path.parent / values["img_filename"]
        except (KeyError, TypeError, ValueError, IndexError):
            raise InputError(
                f"{origin}: expected img_filename, y and place 0 or 1, and split 0, 1 or 2; got {values}"
            ) from None
        yield Sample(file, *names, origin)


def cub_paintings(photos: str | Path, paintings: str | Path) -> LabelledImages:
    """Read CUB-200-2011 as domain "photo" and CUB-200-Paintings as "painting", all of it test.

    Of CUB's test photos, in its order, the first, third ... are val. Paintings lie in folders named as CUB's classes.
    """
    photos, paintings = Path(photos), Path(paintings)
    names = _numbered(photos / "classes.txt")
    labels, training = (_numbered(photos / f"{name}.txt") for name in ("image_class_labels", "train_test_split"))
    samples = [
        Sample(
            photos / "images" / file,
            _bird(names[labels[number]]),
            "photo",
            "train" if training[number] == "1" else "test",
            f"{photos / 'images.txt'}: {number}",
        )
        for number, file in _numbered(photos / "images.txt").items()
    ]
    for name in names.values():
        for file in sorted((paintings / name).glob("*")):
            if is_picture(file.name):
                samples.append(Sample(file, _bird(name), "painting", "test", str(file)))
    table = LabelledImages.of(checked(samples, photos))
    if table.domains == ("photo",):
        raise InputError(f"{paintings}: holds no folder such as {next(iter(names.values()))}; name CUB-200-Paintings'")
    return halve(table, "test", lambda sample: sample.domain == "photo")


def _numbered(path: Path) -> dict[str, str]:
    """CUB's tables: a number, a space and a value a line."""
    if not path.is_file():
        raise InputError(f"{path}: missing; name the folder CUB_200_2011 that has it")
    return dict(line.split(maxsplit=1) for line in read_lines(path) if line.strip())


def _bird(name: str) -> str:
    return name.partition(".")[2].replace("_", " ")


def domainnet_mini(folder: str | Path, lists: str | Path, source: str = "sketch") -> LabelledImages:
    """Read DomainNet by a folder of lists such as SENTRY's 40 classes: the source's training pictures, all domains' tests.

    Of the source's test pictures, in the lists' order, the first, third ... are val.
    """
    table = read_lists(lists, folder)
    if source not in table.domains:
        raise InputError(f"{lists}: no list of {source}; there are {', '.join(table.domains)}")
    ours = [index for index, each in enumerate(table.samples) if each.split == "test" or each.domain == source]
    return halve(table.take(ours), "test", lambda sample: sample.domain == source)


def colored_mnist(
    folder: str | Path, cut: tuple[int, int, int] | None = None, shrink: float = 1.0, seed: int = 0
) -> LabelledImages:
    """Make ColoredMNIST of a folder of MNIST's idx files: labels "0" to "9", domains "red" and "blue".

    Train and val are biased, even digits red and odd ones blue; each test digit's colour is drawn, by numpy's
    default_rng(0). Grey values stand in channel 0 or 2. This is our recipe: the generator of LADS was never published.
    The training file's first 50,000 are train, its last 10,000 val. cut: (train, val, test) digits of the test file
    instead, drawn by the seed, where there is no training file. shrink: keep this share of the training digits, drawn
    by the seed without replacement.
    """
    if not 0 < shrink <= 1:
        raise InputError(f"shrink must lie in 0 to 1, got {shrink}")
    parts = _mnist_cut(folder, cut, seed) if cut else _mnist_parts(folder)
    images, digits = parts["train"]
    kept = np.sort(randomness.generator(seed, "shrink").permutation(len(digits))[: round(shrink * len(digits))])
    parts["train"] = images[kept], digits[kept]
    samples = []
    for split, (images, digits) in parts.items():
        drawn = np.random.default_rng(0).integers(0, 2, len(digits))
        colours = [COLOURS[colour] for colour in (drawn if split == "test" else digits % 2)]
        files = array_files(_coloured(images, colours), f"{folder} {split}")
        samples += [
            Sample(file, str(digit), colour, split, str(file)) for file, digit, colour in zip(files, digits, colours)
        ]
    return LabelledImages.of(samples)


def follows_rule(sample: Sample) -> bool:
    """Say whether a digit of ColoredMNIST has the colour that the training data gave its parity."""
    return sample.domain == COLOURS[int(sample.label) % 2]


def _mnist_parts(folder: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    images, digits = read_digits(folder, "train")
    first = len(digits) - MNIST_VALIDATION
    if first <= 0:
        raise InputError(f"{folder}: {len(digits)} training digits; MNIST has 60,000. Give cut for fewer")
    return {
        "train": (images[:first], digits[:first]),
        "val": (images[first:], digits[first:]),
        "test": read_digits(folder, "t10k"),
    }


def _mnist_cut(folder: str | Path, cut: tuple[int, int, int], seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    images, digits = read_digits(folder, "t10k")
    if min(cut) < 1 or sum(cut) > len(digits):
        raise InputError(f"{folder}: cannot cut {cut} out of {len(digits)} digits")
    parts = np.split(randomness.generator(seed, "cut").permutation(len(digits))[: sum(cut)], np.cumsum(cut)[:-1])
    return {split: (images[part], digits[part]) for split, part in zip(("train", "val", "test"), parts)}


def _coloured(images: np.ndarray, colours: list[str]) -> np.ndarray:
    """(n, H, W) grey -> (n, H, W, 3), the grey values in the colour's channel."""
    pixels = np.zeros((*images.shape, 3), np.uint8)
    pixels[np.arange(len(images)), :, :, [CHANNELS[colour] for colour in colours]] = images
    return pixels


def digits(sources: Mapping[str, str | Path]) -> LabelledImages:
    """Read iDigits: digits "0" to "9" by domain, each domain a folder, in the order given.

    A folder holds MNIST's idx files, padded here to 32 x 32, SVHN's train_32x32.mat and test_32x32.mat, or any of the
    forms of `read_labelled` with labels 0 to 9. Splits are the sources' own.
    """
    samples = [sample for domain, folder in sources.items() for sample in _digits(domain, Path(folder))]
    table = LabelledImages.of(samples)
    if odd := sorted(set(table.labels) - set("0123456789")):
        raise InputError(f"label {odd[0]!r} is no digit; labels must be 0 to 9")
    return table


def _digits(domain: str, folder: Path) -> list[Sample]:
    if any(folder.glob("*-images*idx*")):
        parts = [part for part in ("train", "t10k") if any(folder.glob(f"{part}-images*"))]
        arrays = {("test" if part == "t10k" else part): read_digits(folder, part) for part in parts}
        arrays = {split: (np.pad(images, ((0, 0), (2, 2), (2, 2))), own) for split, (images, own) in arrays.items()}
    elif any(folder.glob("*_32x32.mat")):
        arrays = {path.stem.partition("_")[0]: read_svhn(path) for path in sorted(folder.glob("*_32x32.mat"))}
    else:
        table = read_labelled(folder, domain=domain)
        return [Sample(sample.file, sample.label, domain, sample.split, sample.origin) for sample in table.samples]
    return [
        Sample(file, str(label), domain, split, str(file))
        for split, (images, labels) in arrays.items()
        for file, label in zip(array_files(images, f"{folder} {split}"), labels)
    ]


def cifar20(folder: str | Path) -> LabelledImages:
    """Read iCIFAR-20 of CIFAR-100's binary version: the 20 superclasses as labels, their i-th fine classes as domain i.

    Domains are "0" to "4", in the order of the fine classes' numbers.
    """
    folder = Path(folder)
    samples = []
    coarse_names = _lines(folder / "coarse_label_names.txt")
    parts = {split: read_cifar100(folder / f"{split}.bin") for split in ("train", "test")}
    _, coarse, fine = parts["train"]
    members = {label: sorted(set(fine[coarse == label].tolist())) for label in set(coarse.tolist())}
    for split, (images, coarse, fine) in parts.items():
        files = array_files(images, folder / f"{split}.bin")
        samples += [
            Sample(file, coarse_names[label], str(members[label].index(own)), split, str(file))
            for file, label, own in zip(files, coarse.tolist(), fine.tolist())
        ]
    return LabelledImages.of(samples)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise InputError(f"{path}: missing; name the folder of CIFAR-100's binary version")
    return [line.replace("_", " ") for line in read_text(path).split()]
