"""Does a ControlNet that is tuned for consistency follow its conditions better than with as many plain steps?

    python benchmarks/control_reward.py --seeds 0       # four CPU minutes; all three seeds: a quarter of an hour

On the embedded model: a ControlNet after few plain steps, which follows its outlines roughly; then as many more from the
same weights with the same samples in the same order, at the same rate:

    plain          the denoising loss alone
    consistency    and how well decoded one-step estimates show the disc that the outline asks for (`discs`), at all timesteps
    cpo            and preference of the own condition to a moved one, without decoding

Measured on pictures of colour pairs that occur in no training caption, the same for all: IoU of the drawn with the wanted
disc, and the CIEDE2000 of both regions to the colours of the caption. The first table has means over pictures and
seeds; the second how much each arm differs from plain steps, picture by picture, with a 95 % interval over the pictures,
and each seed's mean.

Finished rows are kept in rows.jsonl of the output folder and are not run again.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

from harness import BenchmarkOptions, Journal, Report, run, run_script
from spreads import Spread, interval

from diffusers_ext.options import COUNT, NATURAL, POSITIVE, SEED, option

MEASURES = {"iou": "IoU", "circle_error": "colour error of the circle", "background_error": "of the background"}
STEPS, GUIDANCE = 10, 2.0  # of the sampler that draws what is measured


@dataclass
class Options(BenchmarkOptions):
    output_dir: str = option("runs/control-reward-benchmark", "folder of runs and finished rows")
    seeds: list[int] = option([0, 1, 2], "seeds", SEED)
    arms: list[str] = option(["plain", "consistency", "cpo"], "losses of the steps after the first ones")
    start_steps: int = option(60, "plain steps that all arms start from", COUNT)
    steps: int = option(60, "further steps of each arm", COUNT)
    learning_rate: float = option(1e-3, "learning rate of all steps", POSITIVE)
    consistency: str = option("control_reward:discs", "consistency: the agreement; edges is another")
    consistency_weight: float = option(0.3, "consistency: its weight", POSITIVE)
    reward_timestep_max: int = option(1000, "consistency: highest timestep that is rewarded; 200 is published", COUNT)
    cpo_timestep_max: int = option(600, "cpo: highest timestep where preferred", COUNT)
    cpo_beta: float = option(5.0, "cpo: how soon a sample that is ahead of the start counts less", POSITIVE)
    cpo_margin: float = option(0.1, "cpo: by how much the wrong condition's error should be larger", POSITIVE)
    cpo_diffusion_weight: float = option(1.0, "cpo: weight of the denoising loss", POSITIVE)
    pictures: int = option(48, "pictures to measure on", COUNT)
    first_picture: int = option(
        0, "index of the first picture; take others than those that settings were chosen on", NATURAL
    )


def main(options: Options, report: Report) -> None:
    folder = Path(options.output_dir)
    journal = Journal(folder / "rows.jsonl", options, ("seeds", "arms"))
    rows = []
    for seed in options.seeds:
        for arm in ("start", *options.arms):
            measures = lambda arm=arm, seed=seed: measure(train(options, folder, arm, seed), options)  # noqa: E731
            rows.append(journal.once({"arm": arm, "seed": seed}, measures))
    tables(rows, report)


def train(options: Options, folder: Path, arm: str, seed: int) -> Path:
    """Train an arm, or what all start from; return the ControlNet's folder."""
    from diffusers_ext.toy import circles as fill50k

    output, start = folder / f"{arm}-{seed}", folder / f"start-{seed}"
    common = ["--train_data_dir", fill50k.write(folder / "circles", 1200, 64), "--resolution", 64, "--seed", seed]
    common += ["--train_batch_size", 8, "--learning_rate", options.learning_rate, "--output_dir", output]
    common += ["--encoder_cache_dir", folder / "cache", "--checkpointing_steps", 10000, "--validation_steps", 10000]
    common += ["--num_validation_images", 1, "--resume_from_checkpoint", "latest"]
    if arm == "start":
        run_script("train_controlnet", *common, "--max_train_steps", options.start_steps)
        return output
    common += ["--controlnet_model_name_or_path", start, "--max_train_steps", options.steps]
    if arm == "plain":
        run_script("train_controlnet", *common)
        return output
    if arm == "consistency":
        common += ["--consistency", options.consistency, "--consistency_weight", options.consistency_weight]
        common += ["--reward_timestep_max", options.reward_timestep_max, "--decode_batch_size", 4]
    else:
        common += ["--cpo_beta", options.cpo_beta, "--cpo_margin", options.cpo_margin]
        common += ["--reward_timestep_max", options.cpo_timestep_max]
        common += ["--cpo_diffusion_weight", options.cpo_diffusion_weight]
    run_script("train_control_reward", *common, "--method", arm)
    return output


def measure(model: Path, options: Options) -> dict[str, list[float]]:
    """Draw and measure a ControlNet's pictures: {measure: a number for each picture}."""
    import torch
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    from diffusers_ext import embedded_model
    from diffusers_ext.diffusion.draw import draw
    from diffusers_ext.toy.circles import Fill50k
    from diffusers_ext.toy.measures import condition_following

    pipe = StableDiffusionControlNetPipeline.from_pretrained(
        embedded_model(), controlnet=ControlNetModel.from_pretrained(model), safety_checker=None
    )
    end = options.first_picture + options.pictures
    samples = [Fill50k(end, 64, split="test")[0, index] for index in range(options.first_picture, end)]
    prompts = [sample["text"] for sample in samples]
    conditions = [sample["conditioning_pixel_values"] for sample in samples]
    drawing = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "height": 64, "width": 64}
    pictures = draw(pipe, prompts, options.first_picture, image=conditions, **drawing)
    following = condition_following(pictures, torch.stack(conditions), prompts)
    return {name: getattr(following, name).tolist() for name in MEASURES}


def tables(rows: list[dict], report: Report) -> None:
    """Report means, and differences to plain steps."""
    arms = {arm: [row for row in rows if row["arm"] == arm] for arm in dict.fromkeys(row["arm"] for row in rows)}
    means = []
    for arm, group in arms.items():
        values = {
            label: statistics.fmean(value for row in group for value in row[name]) for name, label in MEASURES.items()
        }
        means.append({"arm": arm, "seeds": len(group), **values})
    report.table("means over pictures and seeds", means)
    differences = []
    for arm in [arm for arm in arms if arm not in ("start", "plain") and "plain" in arms]:
        pairs = [(row, plain) for row in arms[arm] for plain in arms["plain"] if row["seed"] == plain["seed"]]
        for name, label in MEASURES.items():
            seeds = [[value - other for value, other in zip(row[name], plain[name])] for row, plain in pairs]
            row = {"arm": arm, "measure": label, "less plain": over_pictures(seeds)}
            differences.append({**row, "by seed": ", ".join(f"{statistics.fmean(values):+.3f}" for values in seeds)})
    report.table("less plain steps", differences, "+.3f")


def over_pictures(seeds: list[list[float]]) -> Spread:
    """Return the mean over pictures, with its interval, of each picture's mean over seeds."""
    return interval([statistics.fmean(values) for values in zip(*seeds)])


def discs(pictures, conditions):
    """Cosine of how much each pixel differs from the border's mean colour with the disc within the outline, (B,) of 0 to 1.

    Place and shape count; which colours they are, and how much they differ, does not. pictures, conditions (B, 3, H, W).
    """
    import torch

    border = torch.cat([pictures[:, :, 0], pictures[:, :, -1], pictures[..., 0], pictures[..., -1]], dim=-1).mean(-1)
    contrast = ((pictures - border[..., None, None]).square().sum(1) + 1e-6).sqrt()
    return torch.nn.functional.cosine_similarity(contrast.flatten(1), filled(conditions).flatten(1), dim=1)


def filled(outlines):
    """Fill convex outlines, (B, 3, H, W) to (B, H, W): what has a line on all four sides."""
    import torch

    lines = outlines.amax(1)
    sides = [lines.cummax(-1)[0], lines.cummax(-2)[0]]
    sides += [lines.flip(-1).cummax(-1)[0].flip(-1), lines.flip(-2).cummax(-2)[0].flip(-2)]
    return torch.stack(sides).amin(0)


if __name__ == "__main__":
    run(main, Options)
