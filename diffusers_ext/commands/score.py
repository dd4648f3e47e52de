"""Score pictures for their prompts with any reward, to a .jsonl; run again, it goes on where it stopped.

    diffusers-ext score path/to/pictures --prompt "a red circle" --reward models/image-reward --output scores.jsonl
    diffusers-ext score pairs.jsonl --reward clip:ViT-B-32/openai --output scores.jsonl

Pictures are a folder, with metadata.jsonl or .txt files of the same names, or a .jsonl, .csv or .parquet, tar shards or
a Hub data set, as for training. Each line of the output is {"image", "prompt", "reward", "score"}; a picture that cannot
be read has "error" instead of "score", and the command then ends with exit code 2 when all others are scored.
"""

from dataclasses import dataclass

from ..options import option


@dataclass
class Options:
    data: str | None = option(None, "folder, table, shards or Hub data set of pictures and prompts", positional=True)
    reward: str | None = option(None, "a name that load_reward takes, or a folder of ImageRewardModel")
    prompt: str | None = option(None, "one prompt for all pictures, instead of theirs")
    output: str = option("scores.jsonl", "where to write; an unfinished file is gone on with")
    image_column: str = option("image", "column of the pictures")
    caption_column: str = option("text", "column of the prompts")
    batch_size: int = option(16, "pictures at a time")
    device: str | None = option(None, "cpu, cuda, mps ...; default: the accelerator, where there is one")
    dtype: str = option("float32", "precision of the weights", ("float32", "bfloat16", "float16"))
    top: int = option(10, "lines of the table at the end")


def main(options: Options) -> None:
    from ..errors import InputError

    if not options.data or not options.reward:
        raise InputError("give pictures and --reward: diffusers-ext score DATA --reward NAME; see --help")
    from pathlib import Path

    import torch

    from ..rewards.loading import load_reward

    if options.batch_size < 1:
        raise InputError("--batch_size: 1 at least")
    pairs = _pairs(options)
    done = _read_scores(Path(options.output), options.reward, pairs)
    left = [pair for pair in pairs if pair not in done]
    if left:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        reward = load_reward(options.reward).to(options.device or accelerator, getattr(torch, options.dtype))
        _score(reward, left, pairs, done, options)
    _write_scores(Path(options.output), [done[pair] for pair in pairs])
    _print_table([done[pair] for pair in pairs], options.top)
    bad = [done[pair] for pair in pairs if "error" in done[pair]]
    if bad:
        raise InputError(f"{len(bad)} of {len(pairs)} pictures could not be scored, the first: {bad[0]['error']}")


def _pairs(options: Options) -> dict:
    """Return {(image, prompt): file}, in the order of the data; InputError naming what is missing."""
    from pathlib import Path

    from ..data.files import is_picture
    from ..data.rows import TABLES, read_rows
    from ..errors import InputError

    folder = Path(options.data)
    bare = folder.is_dir() and not any((folder / name).is_file() for name in (*TABLES, "dataset_info.json"))
    pictures = [path for path in sorted(folder.rglob("*")) if is_picture(path.name)] if bare else []
    if not pictures:
        rows = read_rows(options.data, options.image_column, options.caption_column, None).whole()
        return {(str(row.image), options.prompt or row.text): row.image for row in rows}
    prompts = {path: _text(path) if options.prompt is None else options.prompt for path in pictures}
    silent = [path for path, prompt in prompts.items() if prompt is None]
    if silent:
        raise InputError(f"{silent[0]}: no {silent[0].stem}.txt beside it; write one, or give --prompt")
    return {(str(path), prompt): path for path, prompt in prompts.items()}


def _text(picture) -> str | None:
    path = picture.with_suffix(".txt")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _score(reward, left: list, pairs: dict, done: dict, options: Options) -> None:
    """Score batch by batch, appending each to the output before the next begins."""
    import json

    from tqdm import tqdm

    with (
        open(options.output, "a", encoding="utf-8") as file,
        tqdm(total=len(left), desc="scoring", unit="picture", dynamic_ncols=True) as bar,
    ):
        for start in range(0, len(left), options.batch_size):
            batch = left[start : start + options.batch_size]
            images = {pair: _load(pairs[pair]) for pair in batch}
            good = [pair for pair in batch if not isinstance(images[pair], str)]
            scores = reward.score([prompt for _, prompt in good], [images[pair] for pair in good]) if good else []
            values = dict(zip(good, [float(score) for score in scores]))
            for pair in batch:
                result = {"score": values[pair]} if pair in values else {"error": images[pair]}
                done[pair] = {"image": pair[0], "prompt": pair[1], "reward": options.reward, **result}
                file.write(json.dumps(done[pair], ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(batch))


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


def _read_scores(path, reward: str, pairs: dict) -> dict:
    """Return the finished rows of an earlier run, {(image, prompt): row}; a line cut by a kill and errors are left out."""
    import json

    from ..errors import InputError
    from ..lines import journal_lines

    done: dict = {}
    lines = journal_lines(path)
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            pair, earlier = (row["image"], row["prompt"]), row["reward"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and isinstance(error, json.JSONDecodeError):
                continue
            raise InputError(f"{path}:{number}: no row of scores; name another --output") from None
        if earlier != reward:
            raise InputError(f"{path}:{number}: scores of {earlier}, not of {reward}; name another --output")
        if pair not in pairs:
            raise InputError(f"{path}:{number}: the score of another picture or prompt; name another --output")
        if "score" in row:
            done[pair] = row
    _write_scores(path, list(done.values()))
    return done


def _write_scores(path, rows: list[dict]) -> None:
    import json

    from ..cache import write_atomically
    from ..errors import InputError

    try:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(path, text.encode())
    except OSError as error:
        raise InputError(f"--output {path}: cannot be written ({error})") from None


def _print_table(rows: list[dict], top: int) -> None:
    scored = sorted((row for row in rows if "score" in row), key=lambda row: -row["score"])
    if scored:
        scores = [row["score"] for row in scored]
        mean = sum(scores) / len(scores)
        print(f"{len(scores)} pictures, mean {mean:.4f}, from {scores[-1]:.4f} to {scores[0]:.4f}")
    for row in scored[:top]:
        print(f"{row['score']:10.4f}  {row['image']}  {row['prompt'][:60]}")
