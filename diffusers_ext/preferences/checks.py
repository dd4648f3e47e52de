"""What to know of rankings before training on them: files that cannot be read, ties, and test data among training data."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..cache import digest_of_file
from ..data.files import File
from ..data.held_out import drawn_order
from ..data.pictures import Examined, examine_all
from ..errors import InputError
from .rankings import RankedPrompt

SHOWN = 20  # faults listed before the rest is only counted


@dataclass(frozen=True)
class Counts:
    """What a set of rankings holds; pairs are counted once per person who gave them."""

    prompts: int
    images: int
    annotators: int
    strict_pairs: int
    tied_pairs: int
    prompts_with_ties: int
    prompts_without_pairs: int

    def __str__(self) -> str:
        return (
            f"{self.prompts:,} prompts, {self.images:,} images, {self.annotators:,} annotators; {self.strict_pairs:,} strict "
            f"and {self.tied_pairs:,} tied pairs, ties in {self.prompts_with_ties:,} prompts; "
            f"{self.prompts_without_pairs:,} prompts without a strict pair"
        )


def count(prompts: Sequence[RankedPrompt]) -> Counts:
    """Count prompts, images, pairs and ties of the valid rankings."""
    strict, tied = [len(prompt.pairs()) for prompt in prompts], [prompt.tied() for prompt in prompts]
    images = {image for prompt in prompts for image in prompt.images}
    people = {person for prompt in prompts for person in prompt.people}
    with_ties, without = sum(map(bool, tied)), sum(not pairs for pairs in strict)
    return Counts(len(prompts), len(images), len(people), sum(strict), sum(tied), with_ties, without)


def normalised(text: str) -> str:
    """Return a prompt without what does not tell prompts apart: case, punctuation, runs of blanks, Unicode variants.

    >>> normalised('A  red Circle ')
    'a red circle'
    """
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


@dataclass(frozen=True)
class Leaks:
    """Entries of `other` whose prompt, or one of whose pictures, also occurs in the training data."""

    prompts: list[RankedPrompt]
    images: list[RankedPrompt]


def leaks(training: Sequence[RankedPrompt], other: Sequence[RankedPrompt]) -> Leaks:
    """Find what a test set shares with the training data: prompts by `normalised`, pictures by their bytes."""
    known = {normalised(prompt.prompt) for prompt in training}
    for prompt in (*training, *other):
        gone = next((image for image in prompt.images if isinstance(image, Path) and not image.is_file()), None)
        if gone:
            raise InputError(f"{prompt.origin}: images: {gone}: no such file; give the folder as image root")
    digests = digests_of([image for prompt in (*training, *other) for image in prompt.images])
    seen = {digests[image] for prompt in training for image in prompt.images}
    return Leaks(
        [prompt for prompt in other if normalised(prompt.prompt) in known],
        [prompt for prompt in other if any(digests[image] in seen for image in prompt.images)],
    )


def without_leaks(training: Sequence[RankedPrompt], other: Sequence[RankedPrompt]) -> list[RankedPrompt]:
    """Return the training prompts that share neither text nor pictures with `other`."""
    shared = leaks(other, training)
    out = {prompt.id for prompt in (*shared.prompts, *shared.images)}
    return [prompt for prompt in training if prompt.id not in out]


def hold_out(prompts: Sequence[RankedPrompt], count: int, seed: int) -> tuple[list[RankedPrompt], list[RankedPrompt]]:
    """Split off prompts to measure on, drawn by the seed: `count`, or a tenth where that is less.

    Prompts of equal words go to the same side. Where that leaves nothing to measure on, as with rankings of one prompt, those
    that share pictures do, or else those of the same pictures; this is said. Both sides keep the order of `prompts`.
    """
    wanted = min(count, len(prompts) // 10)
    held_out: set[int] = set()
    for name, groups in (("words", _by_words), ("pictures", _by_shared_pictures), ("set of pictures", _by_pictures)):
        held_out = _draw(groups(prompts), wanted, seed, at_least_one=groups is _by_pictures)
        if held_out and groups is not _by_words:
            print(f"note: few prompts differ: {len(held_out)} rankings to measure on were split off by their {name}")
        if held_out or not wanted:
            break
    training = [prompt for index, prompt in enumerate(prompts) if index not in held_out]
    return training, [prompt for position, prompt in enumerate(prompts) if position in held_out]


def _draw(groups: list[list[int]], wanted: int, seed: int, at_least_one: bool) -> set[int]:
    """Draw whole groups up to `wanted` members; the smallest, where none fits and one must be had of several."""
    drawn: set[int] = set()
    order = drawn_order(len(groups), seed)
    for group in order:
        if len(drawn) + len(groups[group]) <= wanted:
            drawn |= set(groups[group])
    if not drawn and wanted and at_least_one and len(groups) > 1:
        drawn = set(groups[min(order, key=lambda group: len(groups[group]))])
    return drawn


def _by_words(prompts: Sequence[RankedPrompt]) -> list[list[int]]:
    return _grouped([normalised(prompt.prompt) for prompt in prompts])


def _by_pictures(prompts: Sequence[RankedPrompt]) -> list[list[int]]:
    return _grouped([frozenset(prompt.images) for prompt in prompts])


def _by_shared_pictures(prompts: Sequence[RankedPrompt]) -> list[list[int]]:
    """Return the connected parts of the graph in which prompts that share a picture are joined."""
    first: dict[File, int] = {}
    joined = [
        (index, first.setdefault(image, index)) for index, prompt in enumerate(prompts) for image in prompt.images
    ]
    rows, columns = np.array(joined).T
    graph = coo_array((np.ones(len(joined)), (rows, columns)), shape=(len(prompts), len(prompts)))
    return _grouped(connected_components(graph, directed=False)[1].tolist())


def _grouped(keys: Sequence[Hashable]) -> list[list[int]]:
    """Return the positions of equal keys together, in order of the first."""
    groups = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    return list(groups.values())


def digests_of(files: Iterable[File]) -> dict[File, str]:
    """Return the SHA-256 of each different file."""
    files = list(dict.fromkeys(files))
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(files, pool.map(digest_of_file, files)))


def _against_itself(prompt: RankedPrompt) -> bool:
    """Say whether one and the same file is preferred to itself, which teaches nothing."""
    if len(set(prompt.images)) == len(prompt.images):
        return False
    return any(prompt.images[winner] == prompt.images[loser] for winner, loser in prompt.pairs())


def check_images(prompts: Sequence[RankedPrompt], skip: bool = False) -> list[RankedPrompt]:
    """Decode every picture once; return the prompts whose pictures are all good.

    Raises InputError that names the faulty files with their rows, all of them or the first twenty, and rows that rank a
    picture against itself; with `skip` they are left out of their prompts' rankings instead, and prompts where no two
    remain are dropped.
    """
    where: dict[File, str] = {}
    for prompt in prompts:
        for at, image in enumerate(prompt.images):
            where.setdefault(image, f"{prompt.origin}: images[{at}]")
    looks = examine_all(where)
    faults = [f"{place}: {image}: {looks[image].fault}" for image, place in where.items() if looks[image].fault]
    out = [_unusable(prompt, looks) for prompt in prompts]
    if not skip:
        faults += [f"{prompt.origin}: {fault}" for prompt, (_, found) in zip(prompts, out) for fault in found]
    if faults and not skip:
        more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise InputError("\n".join([*faults[:SHOWN], *more, "fix these, or give --on_bad_sample skip"]))
    kept = [_without(prompt, places) for prompt, (places, _) in zip(prompts, out)]
    return [prompt for prompt in kept if len(prompt.images) > 1]


def _unusable(prompt: RankedPrompt, looks: dict[File, Examined]) -> tuple[set[int], list[str]]:
    """Return the places of a prompt's images that cannot be used, and what is wrong with those that are good pictures.

    That is a picture that somebody ranked against itself: no reward could tell the two apart.
    """
    images, places, faults = [looks[image] for image in prompt.images], set(), []
    for pair in dict.fromkeys(tuple(sorted(pair)) for pair in prompt.pairs().tolist()):
        one, other = pair
        if images[one].digest and images[one].digest == images[other].digest and not images[one].fault:
            places.add(other)
            faults.append(f"images[{one}] and images[{other}] are the same picture, which is ranked against itself")
    return places | {index for index, look in enumerate(images) if look.fault}, faults


def _without(prompt: RankedPrompt, places: set[int]) -> RankedPrompt:
    """Return a prompt without the images at some places."""
    kept = [index for index in range(len(prompt.images)) if index not in places]
    if not places:
        return prompt

    def chosen(values: tuple) -> tuple:
        return tuple(values[index] for index in kept) if values else ()

    rankings = tuple(
        replace(
            ranking, ranking=chosen(ranking.ranking), ratings=chosen(ranking.ratings), issues=chosen(ranking.issues)
        )
        for ranking in prompt.rankings
    )
    return replace(prompt, images=chosen(prompt.images), rankings=rankings)
