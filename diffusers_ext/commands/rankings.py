"""Say what rankings hold before training on them: pairs, ties, how far people agree, what they share with a test set.

    diffusers-ext rankings data/rankings.jsonl --against data/test.jsonl
    diffusers-ext rankings HPDv2/train.json --image_root HPDv2/train --output data/hpd.jsonl

Reads what training reads: this project's .jsonl, ImageReward's and HPDv2's .json, Pick-a-Pic's .parquet. With --output
they are written as .jsonl, without the prompts that --against shares; pictures inside a table are copied beside it.
"""

from dataclasses import dataclass

from ..options import option


@dataclass
class Options:
    rankings: str | None = option(None, "a file of rankings, or a folder of .parquet", positional=True, path="read")
    image_root: str | None = option(
        None, "folder that paths of ImageReward's and HPDv2's files start from", path="read"
    )
    split: str | None = option(None, "read only this split")
    against: str | None = option(None, "rankings to measure on later: what is shared with them is named", path="read")
    check_images: bool = option(False, "open every picture, and name those that cannot be read")
    output: str | None = option(None, "write them here, as .jsonl", path="file")


def main(options: Options) -> None:
    from ..errors import InputError
    from ..options.outputs import check_output
    from ..preferences.agreement import agreement
    from ..preferences.checks import check_images, count, leaks, without_leaks
    from ..preferences.formats import read_rankings
    from ..preferences.rankings import write

    if not options.rankings:
        raise InputError("give rankings: diffusers-ext rankings FILE; see --help")
    if options.output:
        check_output("--output", options.output, [options.rankings, options.against])
    prompts = read_rankings(options.rankings, options.image_root, options.split)
    if options.check_images:
        check_images(prompts)
    print(count(prompts))
    _print_agreement(agreement(prompts))
    if options.against:
        other = read_rankings(options.against, options.image_root)
        shared = leaks(prompts, other)
        print(
            f"of {len(other):,} prompts in {options.against}, {len(shared.prompts):,} have the words "
            f"and {len(shared.images):,} a picture of one here"
        )
        for prompt in [*shared.prompts, *shared.images][:5]:
            print(f"  {prompt.origin}: {prompt.prompt[:80]}")
        prompts = without_leaks(prompts, other)
    if options.output and not prompts:
        raise InputError(f"--against {options.against}: every prompt is shared with it; nothing is left to write")
    if options.output:
        print(f"{len(prompts):,} prompts written to {write(options.output, prompts)}")


def _print_agreement(found) -> None:
    pairs = int(found.by_prompt.denominators.sum())
    if not pairs:
        print("agreement: no two people ordered the same pair")
        return
    print(f"agreement on {pairs:,} pairs that two people ordered: {found.by_prompt}, kappa {found.kappa:.3f}")
    for name, share in list(found.of_each().items())[:20]:
        print(f"  {name}: {share:.4f}")
