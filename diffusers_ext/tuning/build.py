"""What a reward tuning starts from: its data with captions embedded, the model that learns, its objective, and the check
that the reward can teach it."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from diffusers import AutoencoderKL, AutoencoderTiny

from ..data import preflight
from ..data.batches import collate
from ..data.files import Row
from ..data.held_out import hold_out
from ..data.pairs import Pairs
from ..data.rows import read_rows
from ..data.texts import read_prompts, without_duplicates
from ..diffusion.bases.encoders import vae_scale_factor
from ..diffusion.encoded import Encoded, EncoderCache, Texts, embed
from ..diffusion.files import BaseFiles
from ..diffusion.lora import add_lora
from ..diffusion.noising import Diffusion
from ..diffusion.paths import path_of
from ..diffusion.sampler import Sampler
from ..engine import provenance
from ..engine.objective import Objective
from ..errors import InputError
from ..preferences import checks as ranking_checks
from ..preferences.formats import read_rankings
from .data import PreferencePairs, PromptSamples, rows_of
from .dpo import DPO
from .options import TuningOptions, grad_window
from .policy import Policy
from .reward_path import RewardPath, check_gradient
from .reward_tuning import AlignProp, DRaFT, DRaFTLV, ReFL, RewardObjective, Weights

FROM_UNET = (
    "start a new run from these weights in another --output_dir: with --full_unet, the finished run folder is a pipeline, "
    "given as --pretrained_model_name_or_path; a LoRA becomes one by pipe.load_lora_weights(RUN), pipe.fuse_lora() and "
    "pipe.save_pretrained(FOLDER)"
)
MEASURED = 4  # prompts to measure on where none is kept aside
PROBED = 4  # pictures that the reward is checked on before anything is trained


@dataclass(frozen=True)
class Source:
    """What the files hold: prompts to learn from, or ranked ones; rows of pictures; prompts to measure on."""

    prompts: list
    rows: list[Row]
    validation: list[str]

    def captions(self) -> list[str]:
        """Every text that the text encoders read: prompts, those of pictures, and those to measure on."""
        prompts = [getattr(prompt, "prompt", prompt) for prompt in self.prompts]
        return [*prompts, *self.validation, *(text for row in self.rows for text in row.texts)]

    @property
    def seen(self) -> int:
        """How many of the prompts to measure on are learnt from too."""
        return len(set(self.validation) & {getattr(prompt, "prompt", prompt) for prompt in self.prompts})

    @property
    def measured_on(self) -> str:
        """What the prompts to measure on are."""
        return f"prompts, {self.seen} of {len(self.validation)} learnt from too" if self.seen else "held-out prompts"


def read_source(options: TuningOptions) -> Source:
    """Read and check the prompts, rankings and pictures that options name; InputError lists what is wrong."""
    source = _read_rankings(options) if options.method == "dpo" else _read_prompts(options)
    if not options.validation_prompts:
        return source
    prompts = read_prompts(options.validation_prompts, options.prompt_field)
    return replace(source, validation=list(dict.fromkeys(prompt.text for prompt in prompts)))


def _read_rankings(options: TuningOptions) -> Source:
    assert options.rankings is not None
    skip = options.on_bad_sample == "skip"
    prompts = ranking_checks.check_images(read_rankings(options.rankings, options.image_root), skip)
    prompts = [prompt for prompt in prompts if len(prompt.pairs())]
    learnt, aside = ranking_checks.hold_out(prompts, options.held_out_samples, options.seed)
    if not learnt:
        raise InputError(f"{options.rankings}: no prompt has two pictures of which one was preferred")
    texts = [prompt.prompt for prompt in aside or learnt[:MEASURED]]
    return Source(learnt, rows_of(learnt)[0], list(dict.fromkeys(texts)))


def _read_prompts(options: TuningOptions) -> Source:
    assert options.prompts is not None
    prompts = without_duplicates(read_prompts(options.prompts, options.prompt_field), "drop")
    texts = [prompt.text for prompt in prompts]
    learnt, aside = hold_out(len(texts), 0 if options.validation_prompts else options.held_out_samples, options.seed)
    measured = [texts[row] for row in sorted(aside)] or texts[:MEASURED]
    return Source([texts[row] for row in learnt], pretraining_rows(options), list(dict.fromkeys(measured)))


def sources_of(
    options: TuningOptions, source: Source, files: BaseFiles, reward: Any, held_out: Any
) -> provenance.Sources:
    """What the weights of a reward tuning come from."""
    of = provenance.Source
    texts, ranked = [getattr(prompt, "prompt", prompt) for prompt in source.prompts], options.method == "dpo"
    orders = [[ranking.ranking for ranking in prompt.valid] for prompt in source.prompts] if ranked else []
    named_by = ("rankings", "image_root") if ranked else ("prompts", "prompt_field")
    found = {"prompts": of(named_by, provenance.digest_of_values(texts, orders), f"{len(texts)} prompts")}
    measured = provenance.digest_of_values(source.validation)
    found["prompts to measure on"] = of(("validation_prompts",), measured, f"{len(source.validation)} prompts")
    if source.rows:
        images = provenance.digest_of_files(row.image for row in source.rows)
        digest = provenance.digest_of_values(images, [row.texts for row in source.rows])
        found["pictures"] = of(("pretrain_data_dir", "rankings"), digest, f"{len(source.rows)} rows")
    found["base"] = files.source()
    for name, model in (("reward", reward), ("held_out_reward", held_out)):
        if model is not None:
            found[name] = of((name,), provenance.digest_of_reward(model, getattr(options, name)))
    return found


def pretraining_rows(options: TuningOptions) -> list[Row]:
    """Return the rows of --pretrain_data_dir, checked; none where it is not given."""
    if options.pretrain_data_dir is None:
        return []
    return preflight.check(
        read_rows(options.pretrain_data_dir, conditioning_image_column=None), options.on_bad_sample
    ).rows


class Prepared(NamedTuple):
    """The data set to learn from, and embeddings by caption."""

    dataset: PromptSamples | PreferencePairs
    texts: Texts


def prepare(source: Source, files: BaseFiles, options: TuningOptions, accelerator: Accelerator) -> Prepared:
    """Return the data set, and embeddings by caption: each caption goes through the text encoders once."""
    pairs = Pairs(source.rows, options.resolution, options.seed)
    pictures: Pairs | Encoded = pairs
    captions = [*source.captions(), *pairs.captions()]
    if options.encoder_cache_dir and not options.dry_run:
        cache = EncoderCache.of(options.encoder_cache_dir, files, accelerator)
        texts: Texts = cache.texts(captions)
        transform = {"fit": "cover", "resolution": options.resolution, "interpolation": None}
        if source.rows:
            moments = cache.moments([row.image for row in source.rows], pairs.picture, transform)
            pictures = Encoded(pairs, moments, conditions=True)
    else:
        encoders = files.load_encoders(vae=False).to(accelerator.device)  # gone when this returns
        with accelerator.autocast():
            texts = embed(captions[:1] if options.dry_run else captions, encoders, files.dtype)
    if options.method == "dpo":
        return Prepared(PreferencePairs(source.prompts, pictures, rows_of(source.prompts)[1], texts), texts)
    own = pictures if source.rows else None
    return Prepared(PromptSamples(source.prompts, texts, options.seed, options.resolution, own), texts)


class Start(NamedTuple):
    """The model that learns, at step 0, and the base's pipeline without text encoders."""

    policy: Policy
    pipe: Any


def make_policy(options: TuningOptions, files: BaseFiles, texts: Texts) -> Start:
    """Load the base without text encoders, and put on what learns."""
    pipe = files.load_without("text_", "tokenizer")
    base = files.base(pipe)
    network = base.network
    for part in (network, pipe.vae):
        part.to(memory_format=torch.channels_last)  # most of the time goes into convolutions, which like it so
    if options.full_unet:
        network.requires_grad_(True).float()
    else:
        torch.manual_seed(options.seed)
        add_lora(network, options.lora_rank, options.lora_alpha, options.lora_target_modules)
    if options.gradient_checkpointing:
        network.enable_gradient_checkpointing()
        pipe.vae.enable_gradient_checkpointing()
    empty = texts[""]
    if getattr(pipe.config, "force_zeros_for_empty_prompt", False):  # what such a pipeline guides away from
        empty = {name: torch.zeros_like(value) for name, value in empty.items()}
    keep_base = options.method == "dpo" or bool(options.drift_weight)
    return Start(Policy(base, empty, options.guidance_scale, keep_base), pipe)


def compile_network(network: torch.nn.Module, accelerator: Accelerator) -> None:
    """Compile the network, in place, where the run compiles: once for rollouts, once for gradients, whatever the steps.

    Objectives are loops around it and are not compiled: the loops would be unrolled, step by step.
    """
    plugin = accelerator.state.dynamo_plugin
    if plugin.backend != DynamoBackend.NO:
        network.compile(**plugin.to_kwargs())


def make_decoder(options: TuningOptions, vae: AutoencoderKL) -> torch.nn.Module | None:
    """Return the tiny decoder that --tiny_decoder names, if any; InputError if that is for other latents than the VAE's."""
    if options.tiny_decoder is None:
        return None
    tiny = AutoencoderTiny.from_pretrained(options.tiny_decoder)
    factor, wanted = 2 ** (len(tiny.config.num_decoder_blocks) - 1), vae_scale_factor(vae.config)
    if (factor, tiny.config.latent_channels) != (wanted, vae.config.latent_channels):
        raise InputError(
            f"--tiny_decoder {options.tiny_decoder}: for {tiny.config.latent_channels} channels at 1/{factor} of the size, "
            f"the base has {vae.config.latent_channels} at 1/{wanted}"
        )
    return tiny


class Made(NamedTuple):
    """The objective of --method, and the sampler that draws."""

    objective: Objective
    sampler: Sampler


def make_objective(options: TuningOptions, policy: Policy, pipe: Any, path: RewardPath) -> Made:
    """Return the objective of --method, and the sampler that draws."""
    sampler = Sampler.of(pipe.scheduler, options.num_inference_steps, options.seed, options.eta)
    diffusion = Diffusion(path_of(pipe.scheduler), options.seed)
    if options.method == "dpo":
        return Made(DPO(policy, diffusion, options.dpo_beta or 5000.0), sampler)
    method = {
        "refl": partial(ReFL, window=grad_window(options), unit_gain=options.unit_gain),
        "draft": partial(DRaFT, steps=options.grad_steps or 1),
        "draft_lv": partial(DRaFTLV, repeats=options.lv_repeats or 2),
        "alignprop": partial(AlignProp, steps=options.grad_steps or len(sampler)),
    }[options.method]
    weights = Weights(
        options.reward_weight,
        options.reward_margin if options.use_margin else None,
        options.drift_weight,
        options.pretrain_weight if options.pretrain_data_dir else 0.0,
    )
    recompute = options.gradient_checkpointing
    return Made(method(policy, sampler, path, diffusion, options.resolution, weights, recompute), sampler)


def check_reward(objective: RewardObjective, dataset: PromptSamples) -> str | None:
    """See `check_gradient`, on pictures of the first prompts as the base draws them; every rank comes to the same end."""
    batch = collate([dataset[0, row] for row in range(min(PROBED, len(dataset)))])
    device = objective.policy.device
    batch = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    latents = objective.roll_out(batch, len(objective.sampler))
    return check_gradient(objective.rewards, latents, batch["prompt"], objective.weights.margin)
