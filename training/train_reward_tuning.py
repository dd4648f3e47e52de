"""Tune Stable Diffusion 1.x, 2.x or XL with a reward, or straight from rankings; the result is a LoRA, or a full model.

As ImageReward's ReFL was published, with the pre-training term that its script lacks:
    accelerate launch training/train_reward_tuning.py --config training/presets/refl_official.json \\
        --pretrained_model_name_or_path models/stable-diffusion-v1-4 --reward models/image-reward --held_out_reward hps \\
        --prompts prompts.txt --pretrain_data_dir data/pictures --output_dir runs/refl --mixed_precision fp16

With less memory and time, guided as you will sample:
    accelerate launch training/train_reward_tuning.py --method draft_lv --pretrained_model_name_or_path models/sd15 \\
        --reward models/image-reward --held_out_reward hps --prompts prompts.txt --guidance_scale 5 --drift_weight 1 \\
        --gradient_checkpointing --mixed_precision bf16 --max_train_steps 500 --early_stopping_patience 5

On a laptop, with the small model that ships with this package and no download:
    python -m diffusers_ext.toy.circles --output_dir data/fill50k --count 200
    accelerate launch training/train_reward_tuning.py --prompts data/fill50k/metadata.jsonl --prompt_field text \\
        --reward fill50k:soft --held_out_reward fill50k --guidance_scale 2 --resolution 64 --max_train_steps 100

Run the same command with --resume_from_checkpoint latest to resume after an interruption; on a CPU, bit for bit.
The run folder holds the LoRA: pipe.load_lora_weights("runs/tuned"), or with --full_unet the whole pipeline.
"""

from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.options import option, run
from diffusers_ext.tuning.options import TuningOptions


@dataclass
class Options(TuningOptions):
    output_dir: str = option(
        "runs/tuned", "the run folder: LoRA or model, card, options, metrics, samples, checkpoints"
    )
    learning_rate: float = option(1e-4, "after warm-up, before decay; a full U-Net takes 1e-5")
    lr_warmup_steps: int = option(0, "steps of linear warm-up, for schedules that have one")
    validation_steps: int = option(25, "draw samples and measure every so many steps")


def main(options: Options) -> None:
    import torch

    from diffusers_ext import load_reward
    from diffusers_ext.control.options import base_name
    from diffusers_ext.diffusion.files import BaseFiles
    from diffusers_ext.engine import loop
    from diffusers_ext.engine.hub import publish
    from diffusers_ext.tuning.build import (
        FROM_UNET,
        check_reward,
        compile_network,
        make_decoder,
        make_objective,
        make_policy,
        prepare,
        read_source,
        sources_of,
    )
    from diffusers_ext.tuning.card import write_tuning_card
    from diffusers_ext.tuning.options import check_options
    from diffusers_ext.tuning.previews import TuningPreview
    from diffusers_ext.tuning.reward_path import RewardPath

    # What the user can get wrong, before anything heavy.
    loop.check(options)
    check_options(options)
    source = read_source(options)
    reward = load_reward(options.reward) if options.reward else None
    held_out = load_reward(options.held_out_reward) if options.held_out_reward else None

    accelerator = loop.start(options)
    if source.seen:
        accelerator.print(f"warning: measures on {source.measured_on}; give others as --validation_prompts")
    forward = loop.frozen_dtype(accelerator)
    files = BaseFiles.find(
        base_name(options),
        options.pretrained_vae_model_name_or_path,
        forward=forward,
        dtype=torch.float32 if options.full_unet else forward,
        revision=options.revision,
        variant=options.variant,
    )
    if cut := files.cut_captions(source.captions()):
        accelerator.print(f"warning: {cut}")
    dataset, texts = prepare(source, files, options, accelerator)
    policy, pipe = make_policy(options, files, texts)
    if warning := files.check_resolution(options.resolution, policy.network.config):
        accelerator.print(warning)
    path = RewardPath(reward, policy.encoders, make_decoder(options, pipe.vae), options.decode_batch_size)
    objective, sampler = make_objective(options, policy, pipe, path)
    if options.dry_run:
        parts = {files.family.network: policy.network, "vae": pipe.vae, "reward": path}
        accelerator.print(loop.plan(options, len(dataset), parts))
        return

    for part in (objective, path, *([held_out] if held_out is not None else [])):
        part.to(accelerator.device)
    compile_network(policy.network, accelerator)
    if options.method != "dpo":
        with accelerator.autocast():
            warning = check_reward(objective, dataset)
        accelerator.print(f"warning: {warning}" if warning else "the reward's gradient reaches the latents")
    loop.claim(accelerator, options, lambda: sources_of(options, source, files, reward, held_out), FROM_UNET)
    preview = TuningPreview(objective, sampler, path, held_out, source.validation, texts, options)
    if accelerator.is_main_process:
        with accelerator.autocast():
            print(f"the base: {preview.start()}")
    loop.train(accelerator, objective, dataset, options, preview)

    if accelerator.is_main_process:
        run_folder = Path(options.output_dir)
        save(policy.network, files, run_folder)
        with accelerator.autocast():
            preview.sweep()
        write_tuning_card(run_folder, base_name(options), len(dataset), source.measured_on)
        publish(run_folder, options)
    accelerator.end_training()


def save(network, files, folder: Path) -> None:
    """Write the LoRA into the run folder itself, or the whole pipeline around a network that learned whole."""
    from diffusers_ext.diffusion.lora import has_lora, save_lora

    if has_lora(network):
        save_lora(network, folder)
    else:
        files.load(**{files.family.network: network}).save_pretrained(folder)


if __name__ == "__main__":
    run(main, Options)
