"""Draw several candidates of each prompt and keep the best by a reward; run again, it resumes where it stopped.

    diffusers-ext rerank --prompt "gold circle with midnight blue background" --guidance_scale 2 --output_dir runs/best
    diffusers-ext rerank --model path/to/sd15 --reward models/image-reward --prompt "a lighthouse in a storm" \\
        --candidates 16 --keep 4 --held_out pickscore --output_dir runs/lighthouse
    diffusers-ext rerank --model path/to/sdxl --reward pickscore --prompts_file prompts.txt --prune --dtype float16
    diffusers-ext rerank --model path/to/sd15 --lora runs/tuned:0.8 style.safetensors --reward pickscore --prompt "a cat"

The folder gets images/ (the kept ones, best first), candidates/ (all that were finished), scores.json (every seed and score,
the command, the versions) and a labelled grid for each prompt.
"""

from dataclasses import asdict, dataclass

from ..options import COUNT, SEED, WEIGHT, group, option


@group("what to draw")
@dataclass
class Drawing:
    model: str = option(
        "embedded", "folder or Hub name of any text-to-image pipeline; embedded: the package's own", path="read"
    )
    lora: list[str] | None = option(
        None, "LoRAs to put on it, PATH or PATH:WEIGHT each; the weight is 1 where not given"
    )
    prompt: str | None = option(None, "the prompt", blank=True)
    prompts_file: str | None = option(None, "instead: a .txt, .json, .jsonl or .csv of prompts", path="read")
    prompt_field: str = option("prompt", "the field that holds the prompt", requires={"prompts_file": True})
    negative_prompt: str | None = option(None, "what to guide away from", blank=True)
    num_inference_steps: int | None = option(None, "steps of the sampler; default: the pipeline's", COUNT)
    guidance_scale: float | None = option(None, "classifier-free guidance; default: the pipeline's", WEIGHT)
    height: int | None = option(None, "of the pictures, in pixels; default: the pipeline's", COUNT)
    width: int | None = option(None, "of the pictures, in pixels; default: the pipeline's", COUNT)
    seed: int = option(
        0,
        "candidate n of prompt p starts from seed + p x candidates + n",
        SEED,
        instead="for a random one draw it yourself",
    )
    device: str | None = option(None, "cpu, cuda, mps ...; default: the accelerator, where there is one")
    dtype: str = option("float32", "precision of the pipeline", ("float32", "bfloat16", "float16"))


@group("what to keep")
@dataclass
class Options(Drawing):
    reward: str | None = option(
        None, "a name that load_reward takes; default, of the embedded model: fill50k", path="read"
    )
    held_out: str | None = option(None, "another reward, reported but not used to choose", path="read")
    candidates: int = option(16, "pictures drawn of each prompt", COUNT)
    keep: int = option(4, "pictures kept of each prompt", COUNT)
    chunk_size: int = option(4, "pictures drawn at a time", COUNT)
    prune: bool = option(False, "draw in a quarter of the steps, and only the better ones in all: about half the work")
    output_dir: str = option("runs/rerank", "the folder to write; an unfinished one is continued", path="folder")


def main(options: Options) -> None:
    from pathlib import Path

    prompts, folder = _prompts(options), Path(options.output_dir)
    _check_inputs(options, folder)
    journal = _open(folder, options, prompts)
    try:
        _draw(options, prompts, folder, journal)
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command continues from the {len(journal)} candidates in {folder}")
        raise SystemExit(130) from None
    _finish(options, prompts, folder, journal)


def _prompts(options: Options) -> list[str]:
    from ..data.texts import read_prompts
    from ..errors import InputError

    if bool(options.prompt) == bool(options.prompts_file):
        raise InputError("give --prompt or --prompts_file")
    if options.reward is None and options.model != "embedded":
        raise InputError("--reward: name what to choose by; docs/rewards.md says which one when")
    if options.prompts_file:
        return [prompt.text for prompt in read_prompts(options.prompts_file, options.prompt_field)]
    assert options.prompt
    return [options.prompt]


def _check_inputs(options: Options, folder) -> None:
    from ..embeddings.backbones import check_device
    from ..options.outputs import check_output

    if options.device:
        check_device(options.device)
    for name in ("options.json", "journal.jsonl", "scores.json"):
        check_output("--output_dir", folder / name, [options.prompts_file])
    if options.lora:
        from ..rerank.loras import read_lora

        for lora in options.lora:
            read_lora(lora)


# ------------------------------------------------------------------ the journal: a line per candidate, in chunks


def _open(folder, options: Options, prompts: list[str]) -> dict:
    """Return the candidates of an earlier run, {(prompt, number): row}; InputError if it was another one."""
    import json

    from ..cache import write_atomically
    from ..engine.run_folder import versions
    from ..errors import InputError

    try:
        (folder / "candidates").mkdir(parents=True, exist_ok=True)
        (folder / "images").mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"--output_dir {folder}: cannot be written ({error})") from None
    rows = _read_journal(folder / "journal.jsonl")
    if (folder / "options.json").exists():
        _check_same(folder, options, prompts, bool(rows))
    record = {"command": _command(), "options": asdict(options), "versions": versions(), "prompts": prompts}
    write_atomically(folder / "options.json", (json.dumps(record, indent=1) + "\n").encode())
    write_atomically(folder / "journal.jsonl", "".join(json.dumps(row) + "\n" for row in rows.values()).encode())
    return rows


def _read_journal(path) -> dict:
    import json

    from ..lines import journal_lines

    rows: dict = {}
    for line in journal_lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break  # cut by a kill
        rows[row["prompt"], row["number"]] = row
    return rows


def _check_same(folder, options: Options, prompts: list[str], holds_candidates: bool) -> None:
    """Raise InputError for a folder of another run; one that has drawn nothing yet may become any other."""
    from ..errors import InputError

    free = {"held_out", "device", "output_dir"} | (set() if options.prune else {"keep"})  # do not change what is drawn
    earlier, before = _earlier(folder / "options.json")
    if not holds_candidates:
        return
    if before != prompts:
        raise InputError(f"{folder} holds candidates of other prompts; name another --output_dir")
    changed = [name for name, value in asdict(options).items() if name not in free and earlier.get(name) != value]
    if changed:
        raise InputError(f"{folder} holds candidates of another --{changed[0]}; name another --output_dir")


def _earlier(path) -> tuple[dict, list]:
    """Return the options and prompts of an earlier run."""
    import json

    from ..errors import InputError

    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return dict(record["options"]), list(record["prompts"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path}: not the options of a rerank run; name another --output_dir") from None


def _command() -> str:
    import shlex
    import sys

    return shlex.join(["diffusers-ext", *sys.argv[1:]])


def _draw(options: Options, prompts: list[str], folder, journal: dict) -> None:
    """Draw what the journal lacks; a chunk is in it whole or not at all."""
    import json

    from tqdm import tqdm

    unit = options.candidates if options.prune else options.chunk_size
    left = [
        (prompt, range(first, min(first + unit, options.candidates)))
        for prompt in range(len(prompts))
        for first in range(0, options.candidates, unit)
    ]
    left = [(prompt, numbers) for prompt, numbers in left if any((prompt, number) not in journal for number in numbers)]
    if not left:
        return
    reranker = _reranker(options)
    with (
        open(folder / "journal.jsonl", "a", encoding="utf-8") as file,
        tqdm(total=len(prompts) * options.candidates, initial=len(journal), unit="picture", dynamic_ncols=True) as bar,
    ):
        for prompt, numbers in left:
            rows = _chunk(options, reranker, prompts[prompt], prompt, numbers, folder)
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
            journal.update({(prompt, row["number"]): row for row in rows})
            bar.update(len(numbers))


def _reranker(options: Options):
    """Load pipeline and reward, after everything that can be checked without them was."""
    import torch

    from ..errors import InputError
    from ..publish.loading import check_pipeline_files, load_pipeline, plain_call
    from ..rerank.loras import add_loras, read_lora
    from ..rerank.reranker import RerankMixin, RewardReranker
    from ..rewards.loading import load_reward
    from ..toy.embedded import embedded_model

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    device = options.device or accelerator
    reward = load_reward(options.reward or "fill50k").to(device)
    model = embedded_model() if options.model == "embedded" else options.model
    try:
        check_pipeline_files(model)
        pipe = load_pipeline(model, dtype=getattr(torch, options.dtype))
    except InputError as error:
        raise InputError(f"--model {error}") from None
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"--model {model}: no pipeline could be loaded: {str(error).splitlines()[0]}") from None
    if hasattr(pipe, "controlnet"):
        raise InputError(f"--model {model}: draws from a condition picture, which this command does not take")
    add_loras(pipe, [read_lora(lora) for lora in options.lora or ()])
    pipe.to(device).set_progress_bar_config(disable=True)
    # Of a pipeline that reranks itself, what its class draws with: one search, not one in another.
    return RewardReranker(pipe, reward, plain_call(pipe) if isinstance(pipe, RerankMixin) else None)


def _chunk(options: Options, reranker, text: str, prompt: int, numbers: range, folder) -> list[dict]:
    """Draw and score some candidates of a prompt, write their pictures, return their rows."""
    given = {
        "negative_prompt": options.negative_prompt,
        "num_inference_steps": options.num_inference_steps,
        "guidance_scale": options.guidance_scale,
        "height": options.height,
        "width": options.width,
    }
    first = options.seed + prompt * options.candidates
    output = reranker(
        text,
        num_candidates=len(numbers),
        keep=options.keep if options.prune else len(numbers),
        chunk_size=options.chunk_size,
        seed=[first + number for number in numbers],
        prune=options.prune,
        **{name: value for name, value in given.items() if value is not None},
    )
    rows = []
    for candidate in output.candidates[0]:
        row = {name: value for name, value in vars(candidate).items() if name != "image"}
        row |= {"prompt": prompt, "number": numbers[candidate.number], "score": _json(candidate.score), "image": None}
        if candidate.image is not None:
            row["image"] = f"candidates/{prompt:04d}-{row['number']:04d}.png"
            candidate.image.save(folder / row["image"])
        rows.append(row | {"evaluations": output.evaluations / len(numbers)})
    return rows


def _json(value: float) -> float | None:
    """NaN is no JSON."""
    return value if value == value else None


# ------------------------------------------------------------------ what is told at the end


def _finish(options: Options, prompts: list[str], folder, journal: dict) -> None:
    """Order the candidates, write images/, the grids and scores.json, and print the best."""
    import json
    import shutil

    from ..cache import write_atomically

    chosen = [_ranked([row for (at, _), row in journal.items() if at == prompt]) for prompt in range(len(prompts))]
    if options.held_out:
        _hold_out(options.held_out, prompts, folder, chosen)
    for old in (folder / "images").glob("*.png"):
        old.unlink()
    for prompt, rows in enumerate(chosen):
        finished = [row for row in rows if row["image"]]
        for rank, row in enumerate(finished[: options.keep], 1):
            shutil.copyfile(folder / row["image"], folder / "images" / f"{prompt:04d}-{rank}.png")
        _grid(prompts[prompt], finished, folder / f"grid-{prompt:04d}.png")
    record = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    record["prompts"] = [{"prompt": text, "candidates": rows} for text, rows in zip(prompts, chosen)]
    record["evaluations"] = round(sum(row["evaluations"] for row in journal.values()))
    write_atomically(folder / "scores.json", (json.dumps(record, indent=1) + "\n").encode())
    _tell(chosen, folder)


def _ranked(rows: list[dict]) -> list[dict]:
    from ..rerank.candidates import Candidate, ranked

    fields = Candidate.__dataclass_fields__
    by_number = {row["number"]: row for row in rows}
    candidates = [
        Candidate(**{name: row[name] for name in fields if name in row} | {"score": _number(row["score"])})
        for row in rows
    ]
    return [by_number[candidate.number] for candidate in ranked(candidates, len(rows))]


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _hold_out(held_out: str, prompts: list[str], folder, chosen: list[list[dict]]) -> None:
    """Score every finished picture by the other reward."""
    from ..rerank.candidates import score_pictures
    from ..rewards.loading import load_reward

    reward = load_reward(held_out)
    for text, rows in zip(prompts, chosen):
        finished = [row for row in rows if row["image"] and not row["nsfw"]]
        scores = score_pictures(reward, text, [str(folder / row["image"]) for row in finished])["score"]
        for row, score in zip(finished, scores):
            row["held_out"] = _json(float(score))


def _grid(text: str, rows: list[dict], path) -> None:
    from PIL import Image

    from ..figures import captioned_grid

    images = [Image.open(path.parent / row["image"]) for row in rows]
    captions = [f"{rank}. {_number(row['score']):.3f} seed {row['seed']}" for rank, row in enumerate(rows, 1)]
    captioned_grid(images, captions, columns=min(8, len(rows)), title=text).save(path)


def _tell(chosen: list[list[dict]], folder) -> None:
    """Print the mean over finished candidates and the mean of the best, by reward and by the held-out one."""
    for name, title in (("score", "reward"), ("held_out", "held-out reward")):
        every = [row[name] for rows in chosen for row in rows if row["image"] and row.get(name) is not None]
        best = [rows[0][name] for rows in chosen if rows[0].get(name) is not None]
        if every and best:
            print(f"{title}: {sum(every) / len(every):.4f} on average, {sum(best) / len(best):.4f} of the best")
    print(f"{folder}: images/, scores.json, grid-0000.png")
