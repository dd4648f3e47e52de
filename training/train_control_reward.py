"""Tune a trained ControlNet so that its pictures keep to the condition more closely.

By the agreement of decoded pictures with their condition, as ControlNet++:
    accelerate launch training/train_control_reward.py --controlnet_model_name_or_path runs/controlnet \\
        --train_data_dir data/pairs --consistency edges --output_dir runs/closer --learning_rate 1e-5 --max_train_steps 2000

By preferring each picture's own condition to another, without decoding, as CPO:
    accelerate launch training/train_control_reward.py --controlnet_model_name_or_path runs/controlnet \\
        --train_data_dir data/pairs --method cpo --output_dir runs/closer --learning_rate 1e-6 --max_train_steps 2000

Data, base and everything else are train_controlnet.py's. Run the same command with --resume_from_checkpoint latest to
resume after an interruption. The run folder is itself the model: ControlNetModel.from_pretrained("runs/closer").
"""

from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.control.options import ControlOptions
from diffusers_ext.errors import InputError
from diffusers_ext.options import COUNT, NATURAL, POSITIVE, WEIGHT, depends, group, option, run

_REWARDED, _PREFERRED = {"method": ("consistency",)}, {"method": ("cpo",)}


@group("method")
@dataclass
class MethodOptions:
    method: str = option(
        "consistency", "reward of the decoded picture, or preference among conditions", ("consistency", "cpo")
    )
    consistency: str = option(
        "edges", "consistency: edges, colours, or module:function; see rewards/agreement.py", requires=_REWARDED
    )
    consistency_weight: float = option(
        1.0, "consistency: its weight beside the denoising loss; 0.5 to 1 in the paper", WEIGHT, requires=_REWARDED
    )
    reward_timestep_max: int | None = option(
        None,
        "highest timestep that is rewarded, or where preferred; default: 200 for consistency, 600 for cpo, as in the papers",
        NATURAL,
    )
    decode_batch_size: int = option(
        1, "consistency: pictures in the decoder at a time: memory against speed", COUNT, requires=_REWARDED
    )
    cpo_beta: float = option(
        5000.0, "cpo: how soon a sample that is ahead of the start counts less", POSITIVE, requires=_PREFERRED
    )
    cpo_margin: float = option(
        1e-2, "cpo: by how much the wrong condition's error should be larger", WEIGHT, requires=_PREFERRED
    )
    cpo_diffusion_weight: float = option(0.05, "cpo: weight of the denoising loss", WEIGHT, requires=_PREFERRED)


# The denoising loss, in whose place cpo has its own.
@depends(("snr_gamma", "loss_type", "huber_delta"), method=("consistency",))
@dataclass
class Options(ControlOptions, MethodOptions):
    output_dir: str = option(
        "runs/control-reward", "the run folder: model, card, options, metrics, samples, checkpoints"
    )


def main(options: Options) -> None:
    import torch

    from diffusers_ext.control.card import write_controlnet_card
    from diffusers_ext.control.data import FROM_CONTROLNET, encode, read_data, sources_of
    from diffusers_ext.control.gap import ConditionGap
    from diffusers_ext.control.objective import save
    from diffusers_ext.control.options import base_name, check_options
    from diffusers_ext.control.previews import ControlPreview, preview_notes
    from diffusers_ext.control.start import start_controlnet
    from diffusers_ext.diffusion.files import BaseFiles
    from diffusers_ext.diffusion.noising import Diffusion
    from diffusers_ext.diffusion.paths import path_of
    from diffusers_ext.engine import loop
    from diffusers_ext.engine.hub import publish
    from diffusers_ext.tuning.card import tell_control_reward

    # What the user can get wrong, before anything heavy.
    loop.check(options)
    check_options(options)
    if options.controlnet_model_name_or_path is None:
        raise InputError("--controlnet_model_name_or_path is missing: name the trained ControlNet to tune")
    data = read_data(options)

    accelerator = loop.start(options)
    accelerator.print(data.report.summary(shown=10))
    forward = loop.frozen_dtype(accelerator)
    files = BaseFiles.find(
        base_name(options),
        options.pretrained_vae_model_name_or_path,
        forward=forward,
        dtype=torch.float32 if options.unlock_decoder else forward,
        revision=options.revision,
        variant=options.variant,
        tokenizer_name=options.tokenizer_name,
    )
    if cut := files.cut_captions(data.shown.captions()):
        accelerator.print(f"warning: {cut}")
    for note in preview_notes(options, data.pairs, len(data.held_out)):
        accelerator.print(note)
    pipe = files.load()
    base = files.base(pipe)
    controlnet = start_controlnet(options, files, base, data.shown)
    diffusion = Diffusion.from_options(path_of(pipe.scheduler), options)
    objective = make_objective(options, controlnet, base, diffusion)
    if options.dry_run:
        accelerator.print(loop.plan(options, len(data.dataset), {"controlnet": controlnet, **pipe.components}))
        return

    objective.to(accelerator.device)
    if options.method == "consistency":
        check_agreement(objective, data.shown, accelerator)
    loop.claim(accelerator, options, lambda: sources_of(options, data, files), FROM_CONTROLNET)
    if options.encoder_cache_dir is not None:
        data = encode(data, files, options, accelerator)
    gap = ConditionGap.on(data.held_out, objective, options.train_batch_size)
    preview = ControlPreview(lambda: pipe, objective, data.pairs, gap, options)
    loop.train(accelerator, objective, data.dataset, options, preview)

    if accelerator.is_main_process:
        run_folder = Path(options.output_dir)
        save(objective, run_folder)
        card = write_controlnet_card(
            run_folder,
            base_name(options),
            base.family,
            samples=len(data.dataset),
            held_out=len(data.held_out),
            digest=data.report.digest,
        )
        tell_control_reward(card, options)
        publish(run_folder, options)
    accelerator.end_training()


def make_objective(options: Options, controlnet, base, diffusion):
    """Return the objective of --method."""
    from diffusers_ext.control.options import variant_of
    from diffusers_ext.rewards.agreement import resolve
    from diffusers_ext.tuning.control import ConditionPath, ConditionPreferenceObjective, ConsistencyObjective

    highest, variant = options.reward_timestep_max, variant_of(options)
    if options.method == "cpo":
        return ConditionPreferenceObjective(
            controlnet,
            base,
            diffusion,
            variant,
            beta=options.cpo_beta,
            margin=options.cpo_margin,
            diffusion_weight=options.cpo_diffusion_weight,
            threshold=600 if highest is None else highest,
        )
    return ConsistencyObjective(
        controlnet,
        base,
        diffusion,
        variant,
        path=ConditionPath(resolve(options.consistency), base.encoders, batch_size=options.decode_batch_size),
        weight=options.consistency_weight,
        threshold=200 if highest is None else highest,
    )


def check_agreement(objective, pairs, accelerator) -> None:
    """Refuse an agreement whose gradient does not reach the latents of the data's own pictures; say how high those score."""
    import torch

    from diffusers_ext.tuning.reward_path import check_gradient

    rows = range(min(4, len(pairs)))
    pictures = torch.stack([pairs.picture(row) for row in rows]).to(accelerator.device)
    conditions = torch.stack([pairs.condition(row) for row in rows]).to(accelerator.device)
    encoders = objective.base.encoders
    latents = encoders.normalise(encoders.moments(pictures)[:, 0])
    warning = check_gradient(objective.path, latents, conditions, None)
    with torch.no_grad():
        truth = float(objective.path(latents, conditions).mean())
    accelerator.print(f"warning: {warning}" if warning else f"the data's own pictures agree by {truth:.3f}")


if __name__ == "__main__":
    run(main, Options)
