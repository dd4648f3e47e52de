"""What to know of rankings before training on them: files that cannot be read, ties, and test data among training data."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from ..cache import digest_of_file
from ..errors import InputError
from ..randomness import generator
from .files import File, load
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
    people = {ranking.annotator.split("/")[0] for prompt in prompts for ranking in prompt.valid}
    with_ties, without = sum(map(bool, tied)), sum(not pairs for pairs in strict)
    return Counts(len(prompts), len(images), len(people), sum(strict), sum(tied), with_ties, without)


def normalised(text: str) -> str:
    """Return a prompt without what does not tell prompts apart: case, punctuation, runs of blanks, Unicode variants."""
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

    Prompts of equal words go to the same side; where all have the same words, sets of pictures are split. Both sides keep
    the order of `prompts`.
    """
    groups = defaultdict(list)
    for at, prompt in enumerate(prompts):
        groups[normalised(prompt.prompt)].append(at)
    if len(groups) == 1:
        groups = defaultdict(list, {str(at): [at] for at in range(len(prompts))})
    aside: set[int] = set()
    wanted, members = min(count, len(prompts) // 10), list(groups.values())
    for group in generator(seed, "held_out").permutation(len(members)):
        if len(aside) + len(members[group]) <= wanted:
            aside |= set(members[group])
    training = [prompt for at, prompt in enumerate(prompts) if at not in aside]
    return training, [prompt for at, prompt in enumerate(prompts) if at in aside]


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

    Raises InputError that names the faulty files with their rows, all of them or the first twenty, or a row that ranks a
    picture against itself; with `skip` they are
    left out of their prompts' rankings instead, and prompts where no two remain are dropped.
    """
    itself = [prompt for prompt in prompts if _against_itself(prompt)]
    if itself and not skip:
        raise InputError(
            f"{itself[0].origin}: a picture is ranked against itself ({len(itself)} such rows); remove them"
        )
    prompts = [prompt for prompt in prompts if prompt not in itself] if itself else prompts
    where = defaultdict(list)
    for prompt in prompts:
        for at, image in enumerate(prompt.images):
            where[image].append(f"{prompt.origin}: images[{at}]")
    with ThreadPoolExecutor(4) as pool:
        looks = tqdm(pool.map(_fault, where), total=len(where), desc="checking", unit="image", delay=3)
        faults = {image: fault for image, fault in zip(where, looks) if fault}
    if faults and not skip:
        shown = [f"{where[image][0]}: {image}: {fault}" for image, fault in list(faults.items())[:SHOWN]]
        more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise InputError("\n".join([*shown, *more, "mend these files, or give --on_bad_sample skip"]))
    kept = [_without(prompt, faults) for prompt in prompts]
    return [prompt for prompt in kept if len(prompt.images) > 1]


def _fault(image: File) -> str | None:
    try:
        load(image)
    except FileNotFoundError:
        return "no such file"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"not a readable picture ({error})"
    return None


def _without(prompt: RankedPrompt, faults: dict[File, str]) -> RankedPrompt:
    kept = [at for at, image in enumerate(prompt.images) if image not in faults]
    if len(kept) == len(prompt.images):
        return prompt

    def chosen(values: tuple) -> tuple:
        return tuple(values[at] for at in kept) if values else ()

    rankings = tuple(
        replace(each, ranking=chosen(each.ranking), ratings=chosen(each.ratings), issues=chosen(each.issues))
        for each in prompt.rankings
    )
    return replace(prompt, images=chosen(prompt.images), rankings=rankings)
