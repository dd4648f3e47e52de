"""Reward tuning on the embedded model: what each method gains, what it pays, what a fooled reward looks like, what a step costs.

    python benchmarks/reward_tuning.py --parts tunes --seeds 0          # some ten CPU minutes; --seeds 0 1 2 for all
    python benchmarks/reward_tuning.py --parts hackable control cost

tunes: training/train_reward_tuning.py by every method with the soft colour reward (dpo: with rankings of the base's own
pictures by the exact one). Measured on colour pairs that occur in no training prompt: the exact reward, which is never
optimised; how much of a circle the pictures show; the distance from the base; all of it at several strengths of the
adapters, plotted as trade_off.png.

hackable: the reward is brightness. It rises, and the exact colours, held out, fall; early stopping ends the run.

control: a ControlNet after some steps of plain training; then as many more, plain, and with the consistency reward.

cost: CPU seconds and peak memory of a step, each side in a process of its own, in turns; see `official_step`.

Rows go to results.jsonl in the output folder; what is there already is not run again.
"""

import json
import resource
import runpy
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.options import option, parse, run

ROOT = Path(__file__).parents[1]
METHODS = ("refl", "draft", "draft_lv", "alignprop", "dpo")
EACH = {
    "draft": ["--grad_steps", "2", "--gradient_checkpointing"],
    "alignprop": ["--grad_steps", "5", "--gradient_checkpointing"],
    "dpo": ["--learning_rate", "3e-4"],
}
COMMON = [
    *("--resolution", "64", "--num_inference_steps", "10", "--train_batch_size", "4", "--num_validation_images", "2"),
    *("--held_out_reward", "fill50k", "--checkpointing_steps", "1000"),
]


@dataclass
class Options:
    parts: list[str] = option(["tunes", "hackable", "control", "cost"], "what to measure")
    output_dir: str = option("runs/reward-tuning-benchmark", "runs, rows and plots")
    methods: list[str] = option(list(METHODS), "tunes: which methods")
    seeds: list[int] = option([0, 1, 2], "tunes, control: seeds")
    steps: int = option(40, "tunes: optimiser steps of four prompts")
    learning_rate: float = option(1e-3, "tunes: of all methods but dpo, which takes 3e-4")
    prompts: int = option(16, "prompts to measure on, with two pictures each")
    hackable_steps: int = option(40, "hackable: optimiser steps at most")
    control_steps: int = option(100, "control: steps after the first plain ones")
    control_start_steps: int = option(300, "control: plain steps before")
    rounds: int = option(3, "cost: turns of each side; the medians count")
    side: str | None = option(
        None, "cost: run one side in this process; what the turns call", ("ours", "same_steps", "official")
    )


def main(options: Options) -> None:
    folder = Path(options.output_dir)
    if options.side:
        print(json.dumps(cost_of(options.side)))
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_prompts(folder, options.prompts)
    if "tunes" in options.parts:
        for seed in options.seeds:
            for method in options.methods:
                once(folder, {"part": "tunes", "method": method, "seed": seed}, lambda row: tunes(options, folder, row))
        plot(folder)
    if "hackable" in options.parts:
        once(folder, {"part": "hackable"}, lambda row: hackable(options, folder))
    if "control" in options.parts:
        for seed in options.seeds:
            once(folder, {"part": "control", "seed": seed}, lambda row: control(options, folder, row["seed"]))
    if "cost" in options.parts:
        once(folder, {"part": "cost"}, lambda row: cost(options))


def once(folder: Path, about: dict, measure) -> None:
    """Measure a row that is not in results.jsonl yet, and append it."""
    rows = read_rows(folder)
    if any(about.items() <= row.items() for row in rows):
        return
    began = time.process_time()
    row = {**about, **measure(about), "cpu_seconds": round(time.process_time() - began)}
    print(json.dumps(row), flush=True)
    with open(folder / "results.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(folder: Path) -> list[dict]:
    path = folder / "results.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def write_prompts(folder: Path, count: int) -> None:
    """Prompts to learn from, and prompts of colour pairs that occur in none of them."""
    from diffusers_ext.data.fill50k import scene

    for name, split, number in (("train", "train", 400), ("held-out", "test", count)):
        texts = [scene(index, split=split).prompt for index in range(number)]
        (folder / f"{name}.txt").write_text("\n".join(dict.fromkeys(texts)) + "\n", encoding="utf-8")


def script(name: str, *arguments) -> None:
    """Run a training script's main in this process."""
    made = runpy.run_path(str(ROOT / "training" / f"{name}.py"))
    made["main"](parse(made["Options"], list(map(str, arguments))))


# What each method gains, and what it pays.


def tunes(options: Options, folder: Path, row: dict) -> dict:
    """Tune, and read what the run measured at its adapters' strengths."""
    method, seed = row["method"], row["seed"]
    output = folder / f"{method}-{seed}"
    data = ["--rankings", ranked_by_colour(folder)] if method == "dpo" else ["--prompts", folder / "train.txt"]
    script(
        "train_reward_tuning",
        *COMMON,
        *data,
        *("--method", method, "--seed", seed, "--reward", "fill50k:soft", "--output_dir", output),
        *("--validation_prompts", folder / "held-out.txt", "--learning_rate", options.learning_rate),
        *("--max_train_steps", options.steps, "--validation_steps", options.steps),
        *("--resume_from_checkpoint", "latest"),
        *EACH.get(method, []),
    )
    strengths = json.loads((output / "strength.json").read_text(encoding="utf-8"))
    base, tuned = (next(each for each in strengths if each["strength"] == at) for at in (0.0, 1.0))
    return {
        "exact_base": base["held_out_reward"],
        "exact": tuned["held_out_reward"],
        "soft_base": base["reward"],
        "soft": tuned["reward"],
        "distance": tuned["distance_from_base"],
        "diversity_base": base["diversity"],
        "diversity": tuned["diversity"],
        **circles(folder, output, options.prompts),
        "strengths": strengths,
    }


def circles(folder: Path, output: Path, count: int) -> dict:
    """How much of a circle the base's and the tuned model's pictures show, drawn by the pipeline from the saved LoRA."""
    from diffusers import DiffusionPipeline

    from diffusers_ext import embedded_model
    from diffusers_ext.metrics.fill50k import circle_likeness
    from diffusers_ext.sampling import draw

    prompts = (folder / "held-out.txt").read_text(encoding="utf-8").splitlines()[:count]
    pipe = DiffusionPipeline.from_pretrained(embedded_model())
    drawn = {}
    for name in ("circle_base", "circle"):
        if name == "circle":
            pipe.load_lora_weights(output)
        pictures = draw(pipe, prompts, num_inference_steps=10, guidance_scale=1.0)
        drawn[name] = float(circle_likeness(pictures).mean())
    return drawn


def ranked_by_colour(folder: Path, count: int = 60, each: int = 4) -> Path:
    """Pictures of the base, ranked by the exact colour reward as one careful annotator would: for dpo."""
    from diffusers import DiffusionPipeline

    from diffusers_ext import embedded_model, load_reward
    from diffusers_ext.data.rankings import RankedPrompt, Ranking, write
    from diffusers_ext.sampling import draw

    path = folder / "ranked" / "rankings.jsonl"
    if path.exists():
        return path
    prompts = (folder / "train.txt").read_text(encoding="utf-8").splitlines()[:count]
    pipe, reward, ranked = DiffusionPipeline.from_pretrained(embedded_model()), load_reward("fill50k"), []
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, prompt in enumerate(prompts):
        seeds = [1000 + number * each + at for at in range(each)]
        pictures = draw(pipe, [prompt] * each, seeds, num_inference_steps=10, guidance_scale=1.0)
        files = [path.parent / f"{number}-{at}.png" for at in range(each)]
        for picture, file in zip(pictures, files):
            picture.save(file)
        order = (-reward.score(prompt, pictures)).argsort().argsort() + 1
        ranked.append(RankedPrompt(str(number), prompt, tuple(files), (Ranking("exact", tuple(order.tolist())),)))
    return write(path, ranked)


def plot(folder: Path) -> None:
    """Plot the exact reward's gain over the base against the distance from it: a curve for each method, mean over seeds."""
    from diffusers_ext.grids import plot_curves

    curves = {}
    for method in METHODS:
        runs = [row["strengths"] for row in read_rows(folder) if row["part"] == "tunes" and row["method"] == method]
        if runs:
            means = [
                [
                    statistics.mean(run[at][name] - run[0][name] for run in runs)
                    for name in ("distance_from_base", "held_out_reward")
                ]
                for at in range(len(runs[0]))
            ]
            curves[method] = tuple(zip(*means))
    if curves:
        plot_curves(folder / "trade_off.png", curves, "distance from the base", "gain of the exact reward")


# A reward that can be fooled.


def brightness(prompts: list[str], images: list):
    """Ten times the mean brightness: says nothing about the prompt, and can be had by forgetting it."""
    import torch

    return torch.stack([10 * image.mean() for image in images])


def hackable(options: Options, folder: Path) -> dict:
    """Tune for brightness with the exact colours held out; see what the guard rails say."""
    from diffusers_ext.cards.tuning import suspicions
    from diffusers_ext.run_folder import read_metrics

    output = folder / "hackable"
    script(
        "train_reward_tuning",
        *COMMON,
        *("--prompts", folder / "train.txt", "--validation_prompts", folder / "held-out.txt", "--output_dir", output),
        *("--reward", "reward_tuning:brightness", "--no-use_margin", "--method", "draft", "--no-strength_sweep"),
        *(
            "--learning_rate",
            options.learning_rate,
            "--max_train_steps",
            options.hackable_steps,
            "--validation_steps",
            5,
        ),
        *("--early_stopping_patience", 2, "--resume_from_checkpoint", "latest"),
    )
    rows = [row for row in read_metrics(output) if "held_out_reward" in row]
    return {
        "stopped_at": rows[-1]["step"],
        "of_steps": options.hackable_steps,
        "reward": [rows[0]["reward_base"], *(row["reward"] for row in rows)],
        "exact": [rows[0]["held_out_reward_base"], *(row["held_out_reward"] for row in rows)],
        "said": suspicions(rows),
    }


# A ControlNet with the consistency reward.


def control(options: Options, folder: Path, seed: int) -> dict:
    """Plain steps; then as many more, plain and with the reward, from the same weights with the same samples."""
    from diffusers_ext.data import fill50k
    from diffusers_ext.run_folder import read_metrics

    data = folder / "circles"
    if not data.exists():
        fill50k.write(data, 1200, 64)
    common = ["--train_data_dir", data, "--resolution", 64, "--train_batch_size", 8, "--seed", seed]
    common += ["--held_out_samples", 32, "--encoder_cache_dir", folder / "cache", "--checkpointing_steps", 1000]
    common += ["--resume_from_checkpoint", "latest", "--num_validation_images", 4, "--validation_steps", 1000]
    start = folder / f"control-{seed}"
    script(
        "train_controlnet",
        *common,
        *("--output_dir", start, "--learning_rate", 1e-3, "--max_train_steps", options.control_start_steps),
    )
    result = {}
    for kind in ("plain", "consistency"):
        output = folder / f"control-{seed}-{kind}"
        more = ["--controlnet_model_name_or_path", start, "--output_dir", output, "--learning_rate", 3e-4]
        more += ["--max_train_steps", options.control_steps]
        if kind == "plain":
            script("train_controlnet", *common, *more)
        else:
            script("train_control_reward", *common, *more, "--method", "consistency", "--consistency_weight", 0.3)
        last = [row for row in read_metrics(output) if "iou" in row][-1]
        result |= {f"{kind}_{name}": last[name] for name in ("iou", "circle_error", "background_error")}
    first = [row for row in read_metrics(start) if "iou" in row][-1]
    return {"start_iou": first["iou"], **result}


# What a step costs.


def cost(options: Options) -> dict:
    """Both sides in turns, each in a process of its own; medians and ratios."""
    found = {"ours": [], "same_steps": [], "official": []}
    for _ in range(options.rounds):
        for side in found:
            command = [sys.executable, __file__, "--side", side]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
    medians = {
        side: {name: statistics.median(row[name] for row in rows) for name in rows[0]} for side, rows in found.items()
    }
    official = medians["official"]
    ratios = {
        f"{side}_{name}_ratio": round(medians[side][name] / official[name], 3)
        for side in ("ours", "same_steps")
        for name in official
    }
    return {**medians, **ratios}


def cost_of(side: str, batch_size: int = 8, steps: int = 2) -> dict:
    """CPU seconds a step, and peak resident memory above that of the imports, in MiB, of one side."""
    import torch

    from diffusers_ext import embedded_model, load_reward, tuning_start  # noqa: F401 - what both sides import counts for neither
    from diffusers_ext.encoders import load_stable_diffusion

    torch.set_num_threads(1)
    torch.manual_seed(0)
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe, reward = load_stable_diffusion(embedded_model()), load_reward("fill50k:soft")
    sides = {"ours": our_step, "same_steps": our_step_of_40, "official": official_step}
    step = sides[side](pipe, reward, batch_size)
    step(0)
    began = time.process_time()
    for number in range(1, 1 + steps):
        step(number)
    spent = (time.process_time() - began) / steps
    return {
        "cpu_seconds": round(spent, 3),
        "mib": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - imported) / 1024, 1),
    }


def samples(count: int) -> tuple[list[str], "object"]:
    """Prompts, which are the captions of the pre-training pictures too, and those pictures."""
    import torch

    from diffusers_ext.data.fill50k import Fill50k

    data = Fill50k(count, 64, 0, "train")
    return [data.caption((0, at)) for at in range(count)], torch.stack([data.picture(at) for at in range(count)])


def our_step_of_40(pipe, reward, batch_size: int):
    """Our step with the official number of ancestral steps and window: what is left is not the sampler's doing."""
    return our_step(pipe, reward, batch_size, 40, 1.0, (30, 39))


def our_step(pipe, reward, batch_size: int, steps: int = 20, eta: float = 0.0, window: tuple[int, int] = (15, 18)):
    """ReFL with the pre-training term as train_reward_tuning.py runs it by default, with adapters and 20 steps of DDIM;
    captions and pictures were encoded once."""
    import torch
    from diffusers import DDPMScheduler

    from diffusers_ext.encoders import encoders_of
    from diffusers_ext.objectives.diffusion import Diffusion
    from diffusers_ext.objectives.policy import Policy
    from diffusers_ext.objectives.reward_path import RewardPath
    from diffusers_ext.objectives.reward_tuning import ReFL, Weights
    from diffusers_ext.objectives.sampler import Sampler
    from diffusers_ext.unet_lora import add_lora

    prompts, pictures = samples(batch_size)
    encoders = encoders_of(pipe)
    with torch.no_grad():
        texts, moments = torch.cat([encoders.embed([prompt]) for prompt in prompts]), encoders.moments(pictures)
        empty = encoders.embed([""])[0]
    add_lora(pipe.unet, 16)
    policy = Policy(pipe.unet, encoders, empty)
    common = (policy, Sampler.of(pipe.scheduler, steps, 0, eta), RewardPath(reward, encoders, pipe.vae))
    diffusion = Diffusion(DDPMScheduler.from_config(pipe.scheduler.config), 0)
    objective = ReFL(*common, diffusion, (4, 16, 16), Weights(pretraining=1.0), window=window)
    optimizer = torch.optim.AdamW([each for each in pipe.unet.parameters() if each.requires_grad], 1e-4, fused=True)

    def step(number: int) -> None:
        batch = {"key": [(number, at) for at in range(batch_size)], "prompt": prompts, "text_embeddings": texts}
        objective({**batch, "pretrain_moments": moments, "pretrain_text_embeddings": texts})["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def official_step(pipe, reward, batch_size: int):
    """What spec and paper say of the official loop, written down plainly: 40 ancestral steps of the whole batch to one random
    late step, everything recomputed in each: captions, the pictures' latents; decoder and reward on the whole batch at once;
    the pre-training loss added; the whole U-Net learns."""
    import torch
    from diffusers import DDPMScheduler

    prompts, pictures = samples(batch_size)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    noising = DDPMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.unet.requires_grad_(True)
    optimizer = torch.optim.AdamW(pipe.unet.parameters(), 1e-5)

    def text() -> "torch.Tensor":
        tokens = pipe.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            return pipe.text_encoder(tokens)[0]

    def step(number: int) -> None:
        states, scale = text(), pipe.vae.config.scaling_factor
        with torch.no_grad():
            clean = pipe.vae.encode(pictures).latent_dist.sample() * scale
        noise, t = torch.randn_like(clean), torch.randint(0, 1000, (batch_size,))
        prediction = pipe.unet(noising.add_noise(clean, noise, t), t, states).sample
        pretraining = (prediction - noising.get_velocity(clean, noise, t)).square().mean()
        scheduler.set_timesteps(40)
        stop = 30 + (number * 7) % 10
        latents = torch.randn(batch_size, 4, 16, 16)
        with torch.no_grad():
            for t in scheduler.timesteps[:stop]:
                latents = scheduler.step(pipe.unet(latents, t, states).sample, t, latents).prev_sample
        t = scheduler.timesteps[stop]
        estimate = scheduler.step(pipe.unet(latents, t, states).sample, t, latents).pred_original_sample
        pixels = (pipe.vae.decode(estimate / scale).sample / 2 + 0.5).clamp(0, 1)
        loss = (2 - reward.score(prompts, pixels)).relu().mean() * 1e-3
        (loss + pretraining).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    run(main, Options)
