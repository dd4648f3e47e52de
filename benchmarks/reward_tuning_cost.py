"""What does a step of reward tuning cost, beside the official loop written down plainly?

    python benchmarks/reward_tuning_cost.py                 # the embedded model, batch 8 at 64 px: some three CPU minutes
    python benchmarks/reward_tuning_cost.py --model sd15    # SD 1.5's architecture at a quarter of its width, 256 px

CPU seconds and peak memory of a ReFL step with the pre-training term, float32 on one thread, each side in a process of its
own, in turns:

    official     40 ancestral steps, everything recomputed at each update: `official_step`
    same steps   ours with the official sampler and window: what is left is not the sampler's doing
    ours         as train_reward_tuning.py runs by default: 20 steps of DDIM

Columns: medians over rounds of CPU seconds a step and of peak memory above that of the imports; "of official" is the
ratio within a round. The reward is fill50k:soft, which costs next to nothing; a large reward model costs every side the
same.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from harness import BenchmarkOptions, Report, peak_memory, run, take_turns, timed
from spreads import paired_ratio, quartiles

from diffusers_ext.options import COUNT, option

SIDES = ("official", "same steps", "ours")
WARM_COMPILED = 6  # steps after which no batch of a new size is compiled


@dataclass(frozen=True)
class Setting:
    """Pictures a step, their side in pixels, steps that are timed after a first one."""

    batch_size: int
    resolution: int
    timed: int


SETTINGS = {"embedded": Setting(8, 64, 3), "sd15": Setting(1, 256, 1)}


@dataclass
class Options(BenchmarkOptions):
    model: str = option("embedded", "the embedded model, or SD 1.5's architecture, random and narrow", tuple(SETTINGS))
    rounds: int = option(3, "turns of each side", COUNT)
    decode_batch_size: int = option(1, "ours: pictures in the decoder at a time", COUNT)
    torch_compile: bool = option(False, "ours: compile the U-Net, as --torch_compile of the training does")
    side: str | None = option(None, "run one side in this process, which is what the turns call", SIDES)


def main(options: Options, report: Report) -> None:
    if options.side:
        print(json.dumps(measure(options)))
        return
    turns = take_turns({side: lambda side=side: in_a_process(side, options) for side in SIDES}, options.rounds)
    measures = {side: [turn.result for turn in timings] for side, timings in turns.items()}
    rows = []
    for side in SIDES:
        row = {"side": side}
        for name, label in (("cpu_seconds", "CPU s a step"), ("mib", "MiB")):
            values, official = ([measure[name] for measure in measures[other]] for other in (side, SIDES[0]))
            row |= {label: quartiles(values), f"{label}, of official": paired_ratio(values, official)}
        rows.append(row)
    report.table(f"a step of reward tuning, {options.model}", rows, {"MiB": ".0f"})


def in_a_process(side: str, options: Options) -> dict[str, float]:
    """Return what `measure` does of a side, in a process of its own."""
    words = ["--model", options.model, "--decode_batch_size", str(options.decode_batch_size), "--side", side]
    words += ["--torch_compile"] if options.torch_compile else []
    done = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: Options) -> dict[str, float]:
    """Return CPU seconds a step, and peak resident memory above that of the imports, in MiB, of one side."""
    import torch

    from diffusers_ext import embedded_model, load_reward
    from diffusers_ext.diffusion.base import load_base
    from diffusers_ext.tuning import build as tuning_start  # noqa: F401 - all sides count without imports

    setting = SETTINGS[options.model]
    torch.manual_seed(0)
    imported = peak_memory()
    pipe = load_base(embedded_model())
    if options.model == "sd15":
        pipe = narrow_stable_diffusion(pipe.tokenizer)
    reward = load_reward("fill50k:soft")
    step = (
        official_step(pipe, reward, setting) if options.side == "official" else our_step(pipe, reward, setting, options)
    )
    warm = WARM_COMPILED if options.torch_compile and options.side != "official" else 1
    before = timed(lambda: [step(number) for number in range(warm)])
    print(f"{options.side}: {before.cpu:.0f} CPU s before what is timed", file=sys.stderr)
    spent = timed(lambda: [step(number) for number in range(warm, warm + setting.timed)])
    return {"cpu_seconds": round(spent.cpu / setting.timed, 3), "mib": round(peak_memory() - imported, 1)}


def narrow_stable_diffusion(tokenizer: Any):
    """Return Stable Diffusion 1.5's architecture with a quarter of the channels everywhere, so that the parts weigh as they
    do there, and random weights."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer.model_max_length = 77
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=(32, 64, 128, 128), layers_per_block=2, **blocks)
    sizes = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    unet = UNet2DConditionModel(
        sample_size=32, block_out_channels=(80, 160, 320, 320), norm_num_groups=16, cross_attention_dim=192
    )
    scheduler = DDIMScheduler(
        prediction_type="v_prediction", beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    )
    parts = (vae, CLIPTextModel(CLIPTextConfig(**sizes)), tokenizer, unet, scheduler, None, None)
    pipe = StableDiffusionPipeline(*parts, requires_safety_checker=False)
    for part in (pipe.vae, pipe.text_encoder, pipe.unet):
        part.requires_grad_(False).eval()
    return pipe


def samples(setting: Setting) -> tuple[list[str], Any]:
    """Prompts, which are the captions of the pre-training pictures too, and those pictures."""
    import torch

    from diffusers_ext.toy.circles import Fill50k

    data, numbers = Fill50k(setting.batch_size, setting.resolution, 0, "train"), range(setting.batch_size)
    return [data.caption((0, index)) for index in numbers], torch.stack([data.picture(index) for index in numbers])


def our_step(pipe, reward, setting: Setting, options: Options):
    """ReFL with the pre-training term and adapters, as train_reward_tuning.py makes it; captions and pictures were encoded once."""
    import torch

    from diffusers_ext.diffusion.base import base_of
    from diffusers_ext.diffusion.encoded import embed
    from diffusers_ext.diffusion.lora import add_lora
    from diffusers_ext.diffusion.noising import Diffusion
    from diffusers_ext.diffusion.paths import path_of
    from diffusers_ext.diffusion.sampler import Sampler
    from diffusers_ext.tuning.policy import Policy
    from diffusers_ext.tuning.reward_path import RewardPath
    from diffusers_ext.tuning.reward_tuning import ReFL, Weights

    prompts, pictures = samples(setting)
    base = base_of(pipe)
    encoders = base.encoders
    with torch.no_grad():
        known, moments = embed(prompts, encoders, torch.float32), encoders.moments(pictures)
        texts = torch.stack([known[prompt]["text_embeddings"] for prompt in prompts])
    pipe.text_encoder = encoders.text_encoder = None  # gone while learning
    for part in (pipe.unet, pipe.vae):
        part.to(memory_format=torch.channels_last)
    add_lora(pipe.unet, 16)
    if options.torch_compile:
        pipe.unet.compile()
    steps, eta, window = (40, 1.0, (30, 39)) if options.side == "same steps" else (20, 0.0, (15, 18))
    if setting.batch_size == 1:  # a single draw from the window would be luck
        window = (steps * 17 // 20, steps * 17 // 20)
    policy = Policy(base, known[""])
    path = RewardPath(reward, encoders, batch_size=options.decode_batch_size)
    common = (policy, Sampler.of(pipe.scheduler, steps, 0, eta), path)
    diffusion = Diffusion(path_of(pipe.scheduler), 0)
    objective = ReFL(*common, diffusion, setting.resolution, Weights(pretraining=1.0), window=window)
    optimizer = torch.optim.AdamW(
        [weight for weight in pipe.unet.parameters() if weight.requires_grad], 1e-4, fused=True
    )

    def step(number: int) -> None:
        keys = [(number, index) for index in range(setting.batch_size)]
        batch = {"key": keys, "prompt": prompts, "text_embeddings": texts}
        objective({**batch, "pretrain_moments": moments, "pretrain_text_embeddings": texts})["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def official_step(pipe, reward, setting: Setting):
    """What spec and paper say of the official loop, written down plainly: 40 ancestral steps of the whole batch to one random
    late step, everything recomputed in each: captions, the pictures' latents; decoder and reward on the whole batch at once;
    the pre-training loss added; the whole U-Net learns."""
    import torch
    from diffusers import DDPMScheduler

    prompts, pictures = samples(setting)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    noising = DDPMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.unet.requires_grad_(True)
    optimizer = torch.optim.AdamW(pipe.unet.parameters(), 1e-5)

    def step(number: int) -> None:
        tokens = pipe.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            states = pipe.text_encoder(tokens)[0]
            clean = pipe.vae.encode(pictures).latent_dist.sample() * pipe.vae.config.scaling_factor
        noise, t = torch.randn_like(clean), torch.randint(0, 1000, (len(clean),))
        prediction = pipe.unet(noising.add_noise(clean, noise, t), t, states).sample
        pretraining = (prediction - noising.get_velocity(clean, noise, t)).square().mean()
        scheduler.set_timesteps(40)
        stop = 34 + number % 2  # of 30 to 39, in the mean: a random one would be luck here
        latents = torch.randn_like(clean)
        with torch.no_grad():
            for t in scheduler.timesteps[:stop]:
                latents = scheduler.step(pipe.unet(latents, t, states).sample, t, latents).prev_sample
        t = scheduler.timesteps[stop]
        estimate = scheduler.step(pipe.unet(latents, t, states).sample, t, latents).pred_original_sample
        pixels = (pipe.vae.decode(estimate / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
        loss = (2 - reward.score(prompts, pixels)).relu().mean() * 1e-3
        (loss + pretraining).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    run(main, Options)
