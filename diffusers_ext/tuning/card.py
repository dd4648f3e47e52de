"""The card of a reward tuning: curves, held-out scores, and what speaks for the reward having been fooled."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from ..engine.run_folder import read_metrics
from ..figures import plot_curves
from ..publish.cards.markdown import code, escape, fenced, literal, table
from ..publish.cards.parts import (
    NOT_TO_DRAW,
    heading,
    import_for,
    load_argument,
    of_base,
    picture,
    record,
    save,
    title,
    training,
)

MEASURES = {
    "reward": "optimised reward",
    "held_out_reward": "held-out reward, never optimised",
    "diversity": "distance between pictures of one prompt",
    "distance_from_base": "distance to the base's picture from the same noise",
}
STRENGTH = """`pipe.set_adapters(pipe.get_active_adapters(), 0.5)` halves its strength; `diffusers_ext.LateLora` applies it in the last steps only."""
EQUATIONS = {
    "refl": "ReFL (Xu et al. 2023): the reward of one random late step's estimate of the clean picture",
    "draft": "DRaFT-K (Clark et al. 2023): the reward differentiated through the last steps of sampling",
    "draft_lv": "DRaFT-LV (Clark et al. 2023): the last step, averaged over fresh noise",
    "alignprop": "AlignProp (Prabhudesai et al. 2023): a random number of last steps",
    "dpo": "Diffusion-DPO (Wallace et al. 2023): rankings, no reward model",
}
HEADING = "## Training\n\n"


def write_tuning_card(run: Path, base: str, samples: int, measured_on: str = "held-out prompts") -> Path:
    """Write README.md of a run folder of train_reward_tuning.py; samples: prompts, or preferred pairs; measured_on: in words."""
    options = record(run)["options"]
    lora = not options["full_unet"]
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=[
            "reward-finetuning",
            options["method"],
            "diffusers-training",
            "diffusers_ext",
            *(["lora"] if lora else []),
        ],
        **of_base(base, "adapter" if lora else "finetune"),
    )
    teacher = "from rankings" if options["method"] == "dpo" else f"with {escape(title(options['reward']))}"
    what = f"{samples:,} {'preferred pairs' if options['method'] == 'dpo' else 'prompts'}"
    text = f"""{heading(run, f"{escape(title(base))}, tuned {teacher}")}

{picture(run)}

The base, and what it became, from the same noise.

## Use

{_use(run, base, lora, options)}

## Training

{EQUATIONS[options["method"]]}. {what}, guidance {options["guidance_scale"]:g}, {options["num_inference_steps"]} steps.

{training(run)}

## Measured

{_measured(run, measured_on)}

{_strengths(run)}## When it fails

{failures(run)}

## Limits and misuse

It does what its reward prefers, and so finds what the reward overlooks. Lower the adapters' strength, or apply them in the
late steps only, where pictures look alike or overdone. {NOT_TO_DRAW}
"""
    return save(run, data, text)


def tell_control_reward(card: Path, options: Any) -> None:
    """Say in a ControlNet's card, under Training, what train_control_reward.py tuned it by; options: that script's."""
    highest = options.reward_timestep_max
    if options.method == "consistency":
        how = (
            f"by how well its pictures keep to their conditions (ControlNet++, Li et al. 2024): {code(options.consistency)} "
            f"of decoded one-step estimates, weight {options.consistency_weight:g}, at timesteps up to {200 if highest is None else highest}"
        )
    else:
        how = (
            "by preferring each picture's own condition to a moved one (CPO, 2025): "
            f"beta {options.cpo_beta:g}, margin {options.cpo_margin:g}, denoising loss times {options.cpo_diffusion_weight:g}, "
            f"at timesteps up to {600 if highest is None else highest}"
        )
    start = code(title(options.controlnet_model_name_or_path))
    text = card.read_text(encoding="utf-8")
    assert text.count(HEADING) == 1
    card.write_text(text.replace(HEADING, f"{HEADING}{start}, tuned {how}.\n\n"), encoding="utf-8")


def _use(run: Path, base: str, lora: bool, options: dict) -> str:
    name = literal(run.name)
    load = [f"pipe = DiffusionPipeline.from_pretrained({name})"]
    if lora:
        load = [f"pipe = DiffusionPipeline.from_pretrained({load_argument(base)})", f"pipe.load_lora_weights({name})"]
    draw = f'image = pipe("a prompt", guidance_scale={options["guidance_scale"]:g}, num_inference_steps={options["num_inference_steps"]}).images[0]'
    imports = f"from diffusers import DiffusionPipeline{import_for(base) if lora else ''}"
    example = fenced("\n".join([imports, "", *load, draw]), "python")
    return f"{example}\n\n{STRENGTH}" if lora else example


def _measured(run: Path, measured_on: str) -> str:
    rows = [row for row in read_metrics(run) if "distance_from_base" in row]
    if not rows:
        return "Nothing was measured."
    last = rows[-1]
    lines = [
        (meaning, f"{last.get(f'{name}_base', float('nan')):.3g}", f"{last[name]:.3g}")
        for name, meaning in MEASURES.items()
        if name in last
    ]
    steps = [row["step"] for row in rows]
    curves = {
        MEASURES[name]: ([0, *steps], [rows[0][f"{name}_base"], *(row[name] for row in rows)])
        for name in ("reward", "held_out_reward")
        if name in last
    }
    if curves:
        plot_curves(run / "rewards.png", curves, "step", "reward")
    found = table((f"{measured_on}, fixed noise", "base", f"step {last['step']:,}"), lines)
    return f"{found}\n\n![rewards along the run](rewards.png)" if curves else found


def _strengths(run: Path) -> str:
    if not (run / "strength.json").exists():
        return ""
    rows = json.loads((run / "strength.json").read_text(encoding="utf-8"))
    names = [name for name in MEASURES if name in rows[0]]
    lines = [[f"{row[name]:.3g}" for name in ("strength", *names)] for row in rows]
    found = table(["strength", *(MEASURES[name] for name in names)], lines)
    pictures = "![rewards against the distance from the base](strength.png)\n\n![strengths](samples/strength.png)"
    return f"{found}\n\n{pictures}\n\n"


def failures(run: Path) -> str:
    """Say what the measures of a run give reason to suspect."""
    rows = [row for row in read_metrics(run) if "distance_from_base" in row]
    return (
        "\n".join(f"- {sign}" for sign in suspicions(rows)) or "- Nothing in the measures speaks for a fooled reward."
    )


def suspicions(rows: list[dict]) -> list[str]:
    """Return the signs of a fooled reward in measurements of a run, in order of steps; none where there are none.

    >>> suspicions([])
    ['Nothing was measured, so nothing can be said.']
    """
    if not rows:
        return ["Nothing was measured, so nothing can be said."]
    last, signs = rows[-1], []
    if "held_out_reward" in last:
        best = max(row["held_out_reward"] for row in rows)
        base = last["held_out_reward_base"]
        if last.get("reward", 0) > last.get("reward_base", 0) and last["held_out_reward"] < base:
            signs.append(
                f"The optimised reward rose from {last['reward_base']:.3g} to {last['reward']:.3g} while the held-out one fell "
                f"from {base:.3g} to {last['held_out_reward']:.3g}: the reward was fooled."
            )
        elif last["held_out_reward"] < base + 0.8 * (best - base):
            signs.append(f"The held-out reward is past its best of {best:.3g}; best/ has those weights.")
    else:
        signs.append("No held-out reward was given, so a fooled reward would look like a success.")
    if "diversity" in last and last["diversity"] < 0.5 * last["diversity_base"]:
        signs.append(
            f"Pictures of one prompt differ by {last['diversity']:.3g}, the base's by {last['diversity_base']:.3g}: "
            "the model draws one thing only."
        )
    return signs
