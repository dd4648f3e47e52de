"""Who judges what, where the work is divided: each prompt goes to N of the people, each person gets an equal share."""

from collections.abc import Sequence
from hashlib import blake2b

from ...errors import InputError


def assign(ids: Sequence[str], annotators: Sequence[str], overlap: int, seed: int) -> dict[str, set[str]]:
    """Return the ids of the prompts that each annotator judges.

    Each prompt, in the order of `ids`, goes to the `overlap` people who have the fewest so far; a hash of seed, id and
    name breaks ties. So no two people differ by more than one prompt, who meets whom is mixed, and prompts that are
    added at the end change nothing about the others. Raises InputError for an overlap that cannot be had.
    """
    if not 1 <= overlap <= len(annotators):
        raise InputError(
            f"--overlap {overlap}: each prompt goes to 1 to {len(annotators)} of the {len(annotators)} annotators"
        )
    shares: dict[str, set[str]] = {name: set() for name in annotators}
    for id in ids:
        chosen = sorted(annotators, key=lambda name: (len(shares[name]), _draw(seed, id, name)))[:overlap]
        for name in chosen:
            shares[name].add(id)
    return shares


def _draw(seed: int, id: str, name: str) -> bytes:
    return blake2b(f"{seed}\0{id}\0{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
