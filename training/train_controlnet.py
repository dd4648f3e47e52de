"""Train a ControlNet onto a frozen Stable Diffusion 1.x, 2.x or XL.

On your pictures, an image folder with metadata.jsonl (file_name, conditioning_image_file_name, text):
    accelerate launch training/train_controlnet.py --pretrained_model_name_or_path models/stable-diffusion-v1-5 \\
        --train_data_dir data/pairs --resolution 512 --output_dir runs/controlnet --learning_rate 1e-5 \\
        --proportion_empty_prompts 0.5 --mixed_precision bf16 --max_train_steps 10000

On Stable Diffusion XL, whose pictures and captions are better encoded once than at each step:
    accelerate launch training/train_controlnet.py --pretrained_model_name_or_path models/stable-diffusion-xl-base-1.0 \\
        --train_data_dir data/pairs --resolution 1024 --output_dir runs/controlnet-xl --learning_rate 1e-5 \\
        --encoder_cache_dir cache --gradient_checkpointing --train_batch_size 1 --gradient_accumulation_steps 16 \\
        --mixed_precision bf16 --max_train_steps 10000

On a laptop, with the small model that ships with this package and no download:
    python -m diffusers_ext.toy.circles --output_dir data/fill50k --count 2000
    accelerate launch training/train_controlnet.py --train_data_dir data/fill50k --resolution 64 \\
        --output_dir runs/circles --learning_rate 1e-3 --train_batch_size 8 --max_train_steps 1000

Run the same command with --resume_from_checkpoint latest to resume after an interruption; on a CPU, bit for bit.
The run folder is itself the model: ControlNetModel.from_pretrained("runs/circles").
"""

from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.control.options import ControlOptions
from diffusers_ext.options import check_alone, option, run


@dataclass
class Options(ControlOptions):
    output_dir: str = option("runs/controlnet", "the run folder: model, card, options, metrics, samples, checkpoints")
    self_test: bool = option(False, "check that training works on this machine: a minute of CPU time; goes alone")


def main(options: Options) -> None:
    if options.self_test:
        check_alone(options, "self_test")
        from diffusers_ext.control.self_test import self_test

        raise SystemExit(min(1, self_test(lambda **settings: main(Options(**settings)))))

    import torch

    from diffusers_ext.control.card import write_controlnet_card
    from diffusers_ext.control.data import FROM_CONTROLNET, encode, read_data, sources_of
    from diffusers_ext.control.gap import ConditionGap
    from diffusers_ext.control.objective import ControlObjective, save
    from diffusers_ext.control.options import base_name, check_options, variant_of
    from diffusers_ext.control.previews import ControlPreview, preview_notes
    from diffusers_ext.control.start import start_controlnet
    from diffusers_ext.data.preflight import contact_sheet
    from diffusers_ext.diffusion.files import BaseFiles
    from diffusers_ext.diffusion.noising import Diffusion
    from diffusers_ext.diffusion.paths import path_of
    from diffusers_ext.engine import loop
    from diffusers_ext.engine.hub import publish

    # What the user can get wrong, before anything heavy.
    loop.check(options)
    check_options(options)
    data = read_data(options)

    # The frozen base, without its encoders where all they make is cached; and the ControlNet.
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
    cached = options.encoder_cache_dir is not None and not options.dry_run
    pipe = files.load_without_encoders() if cached else files.load()
    base = files.base(pipe)
    controlnet = start_controlnet(options, files, base, data.shown)
    diffusion = Diffusion.from_options(path_of(pipe.scheduler), options)
    objective = ControlObjective(controlnet, base, diffusion, variant_of(options))
    if options.dry_run:
        accelerator.print(loop.plan(options, len(data.dataset), {"controlnet": controlnet, **pipe.components}))
        return

    loop.claim(accelerator, options, lambda: sources_of(options, data, files), FROM_CONTROLNET)
    if accelerator.is_main_process:
        contact_sheet(data.shown, Path(options.output_dir) / "data.png")
    if cached:
        data = encode(data, files, options, accelerator)
    gap = ConditionGap.on(data.held_out, objective, options.train_batch_size)

    def load_drawer():
        return files.load(**{base.family.network: base.network}).to(accelerator.device) if cached else pipe

    preview = ControlPreview(load_drawer, objective, data.pairs, gap, options)
    loop.train(accelerator, objective, data.dataset, options, preview)

    if accelerator.is_main_process:
        run_folder = Path(options.output_dir)
        save(objective, run_folder)
        write_controlnet_card(
            run_folder,
            base_name(options),
            base.family,
            samples=len(data.dataset),
            held_out=len(data.held_out),
            digest=data.report.digest,
        )
        publish(run_folder, options)
    accelerator.end_training()


if __name__ == "__main__":
    run(main, Options)
