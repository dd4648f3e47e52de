"""Train a reward model from rankings: which of several images of one prompt do people prefer?

From BLIP, as ImageReward was, or from ImageReward itself, on rankings of your own (diffusers_ext/preferences/rankings.py):
    accelerate launch training/train_reward_model.py --backbone models/blip-itm-large --rankings data/rankings.jsonl \\
        --output_dir runs/reward --mixed_precision bf16 --num_train_epochs 10

A head on the frozen embeddings of any open_clip model, in minutes on a CPU:
    accelerate launch training/train_reward_model.py --backbone ViT-B-32/laion2b_s34b_b79k --rankings data/rankings.jsonl \\
        --output_dir runs/head --learning_rate 1e-3 --train_batch_size 64 --num_train_epochs 20

On a laptop, with circles whose true order is known and no download:
    python -m diffusers_ext.preferences.simulated --output_dir data/circle-rankings --count 1000
    accelerate launch training/train_reward_model.py --backbone tiny --rankings data/circle-rankings/rankings.jsonl \\
        --output_dir runs/circle-reward --freeze_fraction 0 --learning_rate 1e-3 --train_batch_size 16 --max_train_steps 1000

Run the same command with --resume_from_checkpoint latest to resume after an interruption; on a CPU, bit for bit.
The run folder is itself the reward: ImageRewardModel.from_pretrained("runs/reward").score(prompts, images).
"""

from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.errors import InputError
from diffusers_ext.options import COUNT, NATURAL, SHARE, Range, TrainingOptions, group, option, run


@group("model")
@dataclass
class ModelOptions:
    backbone: str | None = option(
        None,
        "an ImageReward or BLIP folder or Hub name, an open_clip model/tag or folder, or tiny: see preferences/backbones.py",
        path="read",
    )
    head_init: str | None = option(
        None,
        "draw the head anew; official is the published initialisation, which stalls. Without it a reward keeps its head",
        ("default", "official"),
    )
    head_sizes: list[int] | None = option(
        None,
        "hidden widths of the head on an open_clip model; default: a linear head",
        COUNT,
        instead="leave it out for a linear head",
    )
    freeze_fraction: float = option(
        0.7, "share of both encoders' layers that stay as they are, from the first on", SHARE
    )
    max_length: int | None = option(
        None,
        "tokens of a prompt that are read; default: the backbone's, 35 for ImageReward",
        Range(2),
        instead="leave it out for the backbone's",
    )
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass: less memory, slower")


@group("data")
@dataclass
class DataOptions:
    rankings: str | None = option(
        None, "rankings to learn from, in any form that preferences/formats.py reads", path="read"
    )
    split: str | None = option(None, "read only this split of them")
    image_root: str | None = option(
        None, "folder that paths of ImageReward's and HPDv2's files start from", path="read"
    )
    validation_rankings: str | None = option(
        None,
        "rankings to measure on; prompts and pictures that they share with the training data are not trained on",
        path="read",
    )
    held_out_samples: int = option(
        64,
        "without validation_rankings: prompts drawn by the seed and kept to measure on, a tenth of all at most",
        NATURAL,
        requires={"validation_rankings": False},
    )
    max_train_samples: int | None = option(
        None, "use only the first so many prompts", COUNT, instead="leave it out for all prompts"
    )
    on_bad_sample: str = option("error", "what to do with pictures that cannot be read", ("error", "skip"))
    pair_weighting: str = option(
        "pair", "what counts alike in the loss: each pair, as published, or each prompt", ("pair", "prompt")
    )
    random_flip: bool = option(
        False, "mirror half of the images, drawn anew each epoch; not where left and right matter"
    )
    encoder_cache_dir: str | None = option(
        None,
        "keep what the frozen layers make of each picture here, for all runs; a head on open_clip always does",
        path="folder",
    )


@dataclass
class Options(TrainingOptions, DataOptions, ModelOptions):
    output_dir: str = option("runs/reward", "the run folder: reward, card, options, metrics, samples, checkpoints")
    learning_rate: float = option(1e-5, "after warm-up, before decay; 1e-5 is the paper's, a head alone takes 1e-3")
    lr_scheduler: str = option(
        "cosine", "shape of the schedule", ("linear", "cosine", "constant", "constant_with_warmup")
    )
    lr_warmup_steps: int = option(0, "steps of linear warm-up")
    adam_weight_decay: float = option(0.0, "decoupled weight decay; norms and biases are never decayed")
    train_batch_size: int = option(8, "prompts per process and forward pass, each with all its images")


def main(options: Options) -> None:
    from diffusers_ext.engine import loop
    from diffusers_ext.engine.hub import publish
    from diffusers_ext.preferences.card import write_reward_card
    from diffusers_ext.preferences.checks import count
    from diffusers_ext.preferences.dataset import RankedImages
    from diffusers_ext.preferences.objective import RankingObjective
    from diffusers_ext.preferences.previews import RankingPreview, finish

    # What the user can get wrong, before anything heavy.
    loop.check(options)
    check_options(options)
    training, held_out = read_data(options)

    accelerator = loop.start(options)
    accelerator.print(f"training: {count(training)}\nheld out: {count(held_out)}")
    model, frozen = make_model(options, training)
    if options.dry_run:
        accelerator.print(loop.plan(options, len(training), {"reward": model}))
        return

    loop.claim(accelerator, options, lambda: sources_of(options, training, held_out), FROM_REWARD)
    prepared = prepare_inputs(options, accelerator, model, frozen, [*training, *held_out])
    split = (options.train_batch_size, options.gradient_accumulation_steps, accelerator.num_processes)
    inputs = (prepared.image, prepared.text, options.seed)
    dataset = RankedImages(training, *inputs, split, options.pair_weighting, options.random_flip)
    objective = RankingObjective(model, prepared.rewards, frozen)
    loop.train(
        accelerator, objective, dataset, options, RankingPreview(objective, RankedImages(held_out, *inputs), options)
    )

    if accelerator.is_main_process:
        run_folder = Path(options.output_dir)
        mean, std = finish(objective, dataset, run_folder, options.train_batch_size)
        print(f"rewards are normalised by the training images' mean {mean:.4g} and deviation {std:.4g}")
        write_reward_card(run_folder, count(training), count(held_out))
        publish(run_folder, options)
    accelerator.end_training()


def check_options(options: Options) -> None:
    """Refuse what is missing or excludes each other, before any data are read."""
    from diffusers_ext.embeddings.backbones import is_open_clip
    from diffusers_ext.preferences.backbones import kind_of

    if options.backbone is None:
        raise InputError("--backbone is missing: name an ImageReward or BLIP folder, an open_clip model/tag, or tiny")
    if options.rankings is None:
        raise InputError(
            "--rankings is missing: name a rankings file; python -m diffusers_ext.preferences.simulated makes one"
        )
    head_alone = options.backbone != "tiny" and is_open_clip(options.backbone)
    if options.head_sizes and not head_alone:
        raise InputError("--head_sizes is for a head on an open_clip model; ImageReward's head keeps its form")
    if options.random_flip and (head_alone or options.encoder_cache_dir):
        raise InputError("--random_flip: what is cached is of one picture each; leave it out, or --encoder_cache_dir")
    if head_alone and options.head_init:
        raise InputError("--head_init is for ImageReward's head; one on an open_clip model is always new")
    if head_alone and options.max_length:
        raise InputError(f"--max_length: {options.backbone} reads as many tokens as its tokenizer gives")
    if options.backbone != "tiny" and not head_alone:
        kind_of(options.backbone)


def read_data(options: Options) -> tuple[list, list]:
    """Return the prompts to train on and those to measure on, all with strict pairs and good pictures."""
    from diffusers_ext.preferences.checks import check_images, hold_out, without_leaks
    from diffusers_ext.preferences.formats import read_rankings

    assert options.rankings, "check_options asks for it"
    skip = options.on_bad_sample == "skip"
    found = read_rankings(options.rankings, options.image_root, options.split)[: options.max_train_samples]
    found = [prompt for prompt in check_images(found, skip) if len(prompt.pairs())]
    if options.validation_rankings:
        held_out = check_images(read_rankings(options.validation_rankings, options.image_root), skip)
        held_out = [prompt for prompt in held_out if len(prompt.pairs())]
        training = without_leaks(found, held_out)
        if len(training) < len(found):
            print(
                f"{len(found) - len(training)} prompts are left out: --validation_rankings has them, or pictures of them"
            )
    else:
        training, held_out = hold_out(found, options.held_out_samples, options.seed)
    for prompts, name in ((training, "to train on"), (held_out, "to measure on")):
        if not prompts:
            raise InputError(
                f"{options.rankings}: no prompt with a strict pair {name}; give more, or --validation_rankings"
            )
    return training, held_out


FROM_REWARD = (
    "start a new run from these weights: another --output_dir, and --backbone {checkpoint}/reward (not for a head on an "
    "open_clip model, which is trained anew in minutes)"
)


def sources_of(options: Options, training: list, held_out: list):
    """What the weights of a reward model come from."""
    from diffusers_ext.engine.provenance import Source, digest_of_files, digest_of_model, digest_of_values

    def ranked(prompts: list, named_by: tuple[str, ...]) -> Source:
        files = digest_of_files(image for prompt in prompts for image in prompt.images)
        judged = [(prompt.prompt, [ranking.ranking for ranking in prompt.valid]) for prompt in prompts]
        return Source(named_by, digest_of_values(files, judged), f"{len(prompts)} prompts")

    return {
        "rankings": ranked(training, ("rankings", "split", "image_root", "max_train_samples")),
        "rankings to measure on": ranked(held_out, ("validation_rankings",)),
        "backbone": Source(("backbone",), digest_of_model(options.backbone)),
    }


def make_model(options: Options, training: list):
    """Return the reward, its head and its frozen layers as the options say, and those layers."""
    import torch

    from diffusers_ext.preferences.backbones import freeze, init_head, load_reward_backbone
    from diffusers_ext.rewards.linear_head import LinearHeadReward

    assert options.backbone, "check_options asks for it"
    torch.manual_seed(options.seed)
    model = load_reward_backbone(options.backbone, [prompt.prompt for prompt in training], options.head_sizes)
    model.config.reward_mean, model.config.reward_std = 0.0, 1.0  # the loss is of the raw output (section 3.1)
    if isinstance(model, LinearHeadReward):
        return model, []
    if options.head_init:
        init_head(model.mlp, options.head_init)
    if options.max_length:
        positions = model.config.text_config.max_position_embeddings
        if not 2 <= options.max_length <= positions:
            raise InputError(f"--max_length must lie in 2 to {positions}, got {options.max_length}")
        model.config.max_length = options.max_length
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable()
        model.disable_input_require_grads()  # what frozen embeddings give needs no gradient: it is not LoRA that learns
    return model, freeze(model, options.freeze_fraction)


def prepare_inputs(options: Options, accelerator, model, frozen: list, prompts: list):
    """Fill the cache where there is one, and return the way from files and prompts to rewards."""
    from diffusers_ext.preferences.backbones import Cache, prepare
    from diffusers_ext.rewards.linear_head import LinearHeadReward

    folder = options.encoder_cache_dir
    if folder is None and isinstance(model, LinearHeadReward):
        folder = str(Path(options.output_dir) / "cache")
    cache = Cache(folder, accelerator.mixed_precision, accelerator.is_main_process) if folder else None
    files = [image for prompt in prompts for image in prompt.images]
    model.to(accelerator.device)
    with accelerator.autocast():
        return prepare(model, frozen, files, [prompt.prompt for prompt in prompts], cache)


if __name__ == "__main__":
    run(main, Options)
