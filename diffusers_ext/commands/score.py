"""Score pictures for their prompts with any reward, to a .jsonl; run again, it resumes where it stopped.

    diffusers-ext score path/to/pictures --prompt "a red circle" --reward models/image-reward --output scores.jsonl
    diffusers-ext score a.png b.png --prompt "a red circle" --reward pickscore
    diffusers-ext score "runs/*/samples/*.png" --prompt "a red circle" --reward pickscore
    diffusers-ext score pairs.jsonl --reward clip:ViT-B-32/openai --output scores.jsonl

Pictures are files, globs of them, or a folder, with .txt files of the same names or one --prompt; or data as for training:
a folder with metadata.jsonl, a .jsonl, .csv or .parquet, tar shards or a Hub data set. All are decoded before the reward
is loaded. Each line of the output is {"image", "prompt", "reward", "score", "digest", "weights"}; a picture that cannot be
read has "error" instead of "score", and the command then ends with exit code 2 when all others are scored.
"""

from dataclasses import dataclass

from ..options import COUNT, NATURAL, option


@dataclass
class Options:
    data: list[str] | None = option(
        None, "pictures, globs, a folder, a table, shards or a Hub data set", positional=True, path="read"
    )
    reward: str | None = option(None, "a name that load_reward takes, or a folder of ImageRewardModel", path="read")
    prompt: str | None = option(None, "one prompt for all pictures, instead of theirs", blank=True)
    output: str = option("scores.jsonl", "where to write; an unfinished file is resumed", path="file")
    image_column: str = option("image", "column of the pictures")
    caption_column: str = option("text", "column of the prompts", requires={"prompt": False})
    batch_size: int = option(16, "pictures at a time", COUNT)
    device: str | None = option(None, "cpu, cuda, mps ...; default: the accelerator, where there is one")
    dtype: str = option("float32", "precision of the weights", ("float32", "bfloat16", "float16"))
    trust_remote_code: bool = option(False, "let an ensemble's file name modules of your own (SECURITY.md)")
    top: int = option(10, "lines of the table at the end; 0: none", NATURAL)


def main(options: Options) -> None:
    from ..errors import InputError

    if not options.data or not options.reward:
        raise InputError("give pictures and --reward: diffusers-ext score DATA --reward NAME; see --help")
    if options.batch_size < 1 or options.top < 0:
        raise InputError("--batch_size: 1 at least; --top: 0 at least")
    from pathlib import Path

    from ..data.pictures import examine_all
    from ..embeddings.backbones import check_device
    from ..options.outputs import check_output
    from ..rewards.records import read_records, weights_of

    if options.device:
        check_device(options.device)
    pairs = _pairs(options)
    check_output("--output", options.output, [*options.data, *_paths(pairs.values())])
    looks = examine_all(pairs.values())
    faults = {pair: f"{file}: {looks[file].fault}" for pair, file in pairs.items() if looks[file].fault}
    digests = {pair: looks[file].digest for pair, file in pairs.items()}
    records = read_records(Path(options.output), options.reward, weights_of(options.reward), digests)
    for note in records.notes:
        _say(f"note: {note}")
    _say_faults(faults, len(pairs))
    for pair, fault in faults.items():
        records.rows[pair] = records.row(pair, {"error": fault})
    left = [pair for pair in pairs if pair not in records.rows]
    if left:
        _score(left, pairs, records, options)
    records.write()
    rows = [records.rows[pair] for pair in pairs]
    _print_table(rows, options.top)
    bad = [row["error"] for row in rows if "error" in row]
    if bad:
        raise InputError(f"{len(bad)} of {len(pairs)} pictures could not be scored, the first: {bad[0]}")


def _say(text: str) -> None:
    import sys

    print(text, file=sys.stderr)


def _say_faults(faults: dict, total: int) -> None:
    """Name all pictures that cannot be read before the others are scored."""
    if faults:
        _say("\n".join([f"{len(faults)} of {total} pictures cannot be read, and get no score:", *faults.values()]))


def _paths(files) -> list:
    from pathlib import Path

    return [file for file in files if isinstance(file, Path)]


# ------------------------------------------------------------------ which pictures, and their prompts


def _pairs(options: Options) -> dict:
    """Return {Pair: file}, in the order of the data; InputError naming what is missing."""
    pairs: dict = {}
    for source in options.data or ():
        pairs |= _pairs_of(source, options)
    return pairs


def _pairs_of(source: str, options: Options) -> dict:
    from ..data.rows import read_rows
    from ..rewards.records import Pair

    pictures = _pictures(source)
    if not pictures:
        rows = read_rows(source, options.image_column, options.caption_column, None).whole()
        return {Pair(str(row.image), options.prompt or row.text): row.image for row in rows}
    prompts = {path: _text(path) if options.prompt is None else options.prompt for path in pictures}
    _check_prompts(prompts)
    return {Pair(str(path), prompt): path for path, prompt in prompts.items() if prompt is not None}


def _pictures(source: str) -> list:
    """Return the pictures that a file, a glob or a folder without a table stands for; none where it is other data."""
    from glob import glob, has_magic
    from pathlib import Path

    from ..data.files import is_picture
    from ..data.rows import TABLES

    path = Path(source)
    if path.is_dir():
        bare = not any((path / name).is_file() for name in (*TABLES, "dataset_info.json"))
        return [file for file in sorted(path.rglob("*")) if is_picture(file.name)] if bare else []
    if path.is_file():
        return [path] if _is_file_of_picture(path) else []
    found = sorted(glob(source, recursive=True)) if has_magic(source) else []
    files = [Path(name) for name in found if Path(name).is_file()]
    return files if files and all(map(_is_file_of_picture, files)) else []


def _is_file_of_picture(path) -> bool:
    """Say whether a file that was named is meant as a picture: a damaged or unknown one is, too, as long as it is no table."""
    return path.suffix.lower() not in (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".tar", ".txt", ".arrow", ".zip")


def _check_prompts(prompts: dict) -> None:
    from ..errors import InputError

    silent = [path for path, prompt in prompts.items() if prompt is None]
    if silent:
        more = f", nor beside {len(silent) - 1} others" if len(silent) > 1 else ""
        raise InputError(f"{silent[0]}: no {silent[0].stem}.txt beside it{more}; write one, or give --prompt")


def _text(picture) -> str | None:
    from ..errors import InputError

    path = picture.with_suffix(".txt")
    try:
        return path.read_text(encoding="utf-8-sig").strip() if path.is_file() else None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8; save it in that encoding") from None


# ------------------------------------------------------------------ scoring


def _score(left: list, pairs: dict, records, options: Options) -> None:
    """Load the reward and score batch by batch, appending each to the output before the next begins."""
    import json

    import torch
    from tqdm import tqdm

    from ..rewards.loading import load_reward

    assert options.reward, "main asks for it"
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    reward = load_reward(options.reward, trust_remote_code=options.trust_remote_code).to(
        options.device or accelerator, getattr(torch, options.dtype)
    )
    with (
        open(options.output, "a", encoding="utf-8") as file,
        tqdm(total=len(left), desc="scoring", unit="picture", dynamic_ncols=True) as bar,
    ):
        for start in range(0, len(left), options.batch_size):
            batch = left[start : start + options.batch_size]
            images = {pair: _load(pairs[pair]) for pair in batch}
            good = [pair for pair in batch if not isinstance(images[pair], str)]
            results = _results(reward, good, images) if good else {}
            for pair in batch:
                records.rows[pair] = records.row(pair, results.get(pair) or {"error": images[pair]})
                file.write(json.dumps(records.rows[pair], ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(batch))


def _results(reward, pairs: list, images: dict) -> dict:
    """Return {pair: {"score" or "error"}}; where some rewards are not finite, the other pictures keep theirs."""
    from ..rewards.reward_values import NotFiniteError

    try:
        scores = reward.score([prompt for _, prompt in pairs], [images[pair] for pair in pairs])
        return {pair: {"score": float(score)} for pair, score in zip(pairs, scores, strict=True)}
    except NotFiniteError as error:
        if len(pairs) == 1:
            return {pairs[0]: {"error": f"{pairs[0][0]}: {error}"}}
    return {pair: _results(reward, [pair], images)[pair] for pair in pairs}


def _load(file):
    """Return the picture, or a sentence saying why there is none."""
    from ..data.files import load
    from ..errors import InputError
    from ..rewards.reward_inputs import check_images

    try:
        return check_images(load(file))[0]
    except InputError as error:
        return f"{file}: {error}"
    except Exception as error:  # decoders raise whatever they like at damaged bytes
        return f"{file}: cannot be read ({error or type(error).__name__})"


def _print_table(rows: list[dict], top: int) -> None:
    scored = sorted((row for row in rows if "score" in row), key=lambda row: -row["score"])
    if scored:
        scores = [row["score"] for row in scored]
        mean = sum(scores) / len(scores)
        print(f"{len(scores)} pictures, mean {mean:.4f}, from {scores[-1]:.4f} to {scores[0]:.4f}")
    for row in scored[:top]:
        print(f"{row['score']:10.4f}  {row['image']}  {row['prompt'][:60]}")
