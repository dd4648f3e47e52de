"""Splits of labelled pictures: what they are called, how they are drawn, and that a picture is on one side only.

    train    train, training                     val     val, valid, validation, dev, development, crossval
    test     test, testing, eval, evaluation, holdout

Case does not matter, nor do additions such as "set", "images" or a year: Train, TEST, val2017, training_set.
"""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from .. import randomness
from ..cache import digest_of_file
from ..errors import InputError
from .files import File
from .samples import LabelledImages, Sample

WORDS = {"train": "train|training", "val": "val|valid|validation|dev|development|crossval"}
WORDS |= {"test": "test|testing|eval|evaluation|holdout|hold[-_ ]?out|held[-_ ]?out"}
ADDITIONS = r"(?:[-_ .]*(?:set|data|dataset|split|images|imgs|pictures|\d+))*"
SPLIT_NAMES = {split: re.compile(f"(?:{words}){ADDITIONS}", re.IGNORECASE) for split, words in WORDS.items()}
RANK = {"test": 2, "val": 1}  # whose side a picture of several splits is on


def split_of(name: str) -> str | None:
    """Return the split that a folder, file or value is named after: train, val or test; None for other names.

    >>> split_of('Training_set'), split_of('val2017'), split_of('photos')
    ('train', 'val', None)
    """
    return next((split for split, names in SPLIT_NAMES.items() if names.fullmatch(name.strip())), None)


def on_one_side(table: LabelledImages) -> LabelledImages:
    """Return the table with equal pictures in one split: that of the test, else of the validation pictures among them.

    Pictures are compared by their bytes, through all domains and classes. A warning tells how many were moved.
    """
    digests = _digests(table.files)
    side: dict[str, str | None] = {}
    for sample, digest in zip(table.samples, digests):
        known = side.setdefault(digest, sample.split)
        if RANK.get(sample.split or "", 0) > RANK.get(known or "", 0):
            side[digest] = sample.split
    moved = [index for index, digest in enumerate(digests) if table.samples[index].split != side[digest]]
    if not moved:
        return table
    samples = tuple(replace(sample, split=side[digest]) for sample, digest in zip(table.samples, digests))
    first = table.samples[moved[0]]
    warnings.warn(
        f"{len(moved)} pictures of split {first.split or 'none'} equal pictures of split {side[digests[moved[0]]]} byte for "
        f"byte, such as {first.file}: they count as {side[digests[moved[0]]]}, so that no test picture is learnt",
        stacklevel=2,
    )
    return replace(table, samples=samples)


def with_splits(table: LabelledImages, fractions: Mapping[str, float], seed: int = 0) -> LabelledImages:
    """Return the table with splits drawn anew, in these fractions of each (label, domain): {"train": 0.8, "test": 0.2}.

    The draw depends on the seed and a picture's bytes, not on its name or place, and equal pictures stay together, those
    of several classes or domains in the split of the first. Of n different pictures a split takes
    round(n·F) - round(n·F'), F and F' the sums of fractions up to it and before it. Raises InputError unless the
    fractions are positive and sum to 1.
    """
    if not fractions or min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise InputError(f"fractions of the splits must be positive and sum to 1, got {dict(fractions)}")
    digests = _digests(table.files)
    strata: dict[tuple[str, str], set[str]] = {}
    for sample, digest in zip(table.samples, digests):
        strata.setdefault((sample.label, sample.domain), set()).add(digest)
    names, ends = list(fractions), np.cumsum(list(fractions.values()))
    split: dict[str, str] = {}
    for _, members in sorted(strata.items()):
        ordered = sorted(members, key=lambda digest: (_draw(seed, digest), digest))
        cuts = np.rint(ends * len(ordered)).astype(int)
        for position, digest in enumerate(ordered):
            split.setdefault(digest, names[int(np.searchsorted(cuts, position, side="right"))])
    samples = (replace(sample, split=split[digest]) for sample, digest in zip(table.samples, digests))
    return replace(table, samples=tuple(samples))


def with_tests(table: LabelledImages, fraction: float, seed: int = 0) -> LabelledImages:
    """Return the table with test pictures in each domain: its own, else its validation pictures, else drawn ones.

    fraction: of each class that is drawn as test where a domain has neither. Equal pictures are on one side. Raises
    InputError for a fraction that is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise InputError(f"--test_fraction must lie between 0 and 1, got {fraction}")
    held = {split: {s.domain for s in table.samples if s.split == split} for split in ("train", "val", "test")}
    drawn = np.array([sample.domain not in held["test"] for sample in table.samples])
    if by_val := sorted(held["val"] - held["test"]) if held["train"] else []:
        warnings.warn(f"{', '.join(by_val)}: no test pictures; its validation pictures are the test", stacklevel=2)
        drawn &= np.array([sample.domain not in by_val for sample in table.samples])
    samples = [replace(s, split="test") if s.domain in by_val and s.split == "val" else s for s in table.samples]
    if drawn.any():
        fractions = {"train": 1 - fraction, "test": fraction}
        anew = iter(with_splits(table.take(drawn.nonzero()[0]), fractions, seed).samples)
        samples = [next(anew) if new else old for old, new in zip(samples, drawn)]
    return on_one_side(replace(table, samples=tuple(samples)))


def check_learnable(table: LabelledImages) -> None:
    """Raise InputError where a classifier has nothing to tell apart, or splits have names of which nobody knows the use."""
    if len(table.labels) < 2:
        raise InputError(
            f"all {len(table)} pictures are of one class, {table.labels[0]!r}, such as {table.samples[0].origin}: a classifier "
            "needs two. Are the folders classes? A table of labels is read if it is named itself, or metadata.csv"
        )
    check_split_names(table)


def check_split_names(table: LabelledImages) -> None:
    """Raise InputError where splits have names of which nobody knows the use."""
    unknown = {sample.split: sample for sample in table.samples if sample.split not in (None, *WORDS)}
    if unknown:
        split, sample = next(iter(unknown.items()))
        raise InputError(
            f"{sample.origin}: split {split!r} is none of train, val and test; rename it, or name another column"
        )


def halve(table: LabelledImages, split: str, chosen: Callable[[Sample], bool]) -> LabelledImages:
    """Make every other chosen sample of a split validation data and the rest test data, as LADS does: val, test, val ...

    halve(table, "test", lambda sample: sample.domain == "sketch") leaves half of the sketches to test on.
    """
    samples, turn = list(table.samples), 0
    for index, sample in enumerate(samples):
        if sample.split == split and chosen(sample):
            samples[index], turn = replace(sample, split=("val", "test")[turn]), 1 - turn
    return replace(table, samples=tuple(samples))


def _draw(seed: int, digest: str) -> float:
    return randomness.uniform(seed, "split", (int(digest[:16], 16), int(digest[16:32], 16)))


def tell_shared(training: Sequence[File], tests: Mapping[str, Sequence[File]]) -> None:
    """Warn of test pictures, by the name of their set, that equal training pictures byte for byte: they flatter the measure."""
    known = dict(zip(_digests(training), training))
    for name, files in tests.items():
        shared = [(file, known[digest]) for file, digest in zip(files, _digests(files)) if digest in known]
        if shared:
            file, twin = shared[0]
            warnings.warn(
                f"{len(shared)} of {len(files)} pictures of {name} are trained on too, such as {file}, which equals {twin}; "
                "remove them from one side",
                stacklevel=2,
            )


def _digests(files: Sequence[File]) -> list[str]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(digest_of_file, files))
