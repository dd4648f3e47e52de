"""The steps of the story: what is typed, in order, and how large."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from load import NAMES
from walk import ROOT, Step

ME = "me"  # who owns the repositories on the story's Hub
DOMAINS = {  # what LADS is told: the style it has pictures of, and styles it has none of
    "source": ["a filled {} shape"],
    "targets": {
        "outlined": ["an outlined {} shape"],
        "cut_out": ["a cut out {} shape"],
        "dark": ["a dark {} shape"],
        "washed_out": ["a washed out {} shape"],
    },
}


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    requests: int = 2000  # prompts that users asked for
    held_out: int = 12  # prompts that nobody asked for
    chosen: int = 100
    neighbours: int = 2  # about requests of different words over chosen
    candidates: int = 8
    spoilt: int = 600  # prompts with pictures spoilt on purpose
    validated: int = 20
    reward_steps: int = 450
    reranked: int = 16  # candidates of each prompt to rerank
    tuning_steps: int = 40
    measured: int = 8  # pictures of each held-out prompt
    outlines: int = 48
    circles: int = 800
    control_steps: int = 200
    closer_steps: int = 50
    drawings: int = 30  # of each colour in each style
    captioned: int = 100
    image_text_epochs: int = 40
    lads_epochs: int = 50
    lads_runs: int = 3
    setting: str = "NCD"  # what a session brings: colours, styles, or both
    groups: int = 4


FULL = Sizes()
QUICK = Sizes(
    requests=120,
    held_out=3,
    chosen=8,
    neighbours=2,
    candidates=2,
    spoilt=12,
    validated=3,
    reward_steps=2,
    reranked=2,
    tuning_steps=1,
    measured=1,
    outlines=2,
    circles=24,
    control_steps=2,
    closer_steps=1,
    drawings=4,
    captioned=6,
    image_text_epochs=2,
    lads_epochs=2,
    lads_runs=1,
    setting="NC",
    groups=2,
)


def story(folder: Path, size: Sizes) -> list[Step]:
    """Return the steps that write into a folder."""
    at = shlex.quote(shown(folder))
    return [
        prompts(at, size),
        candidates(at, size),
        people(at, size),
        reward(at, size),
        rerank(at, size),
        tune(at, size),
        *control(at, size),
        *classifiers(at, size),
        step(
            "measure",
            "measure on prompts and outlines that no training saw",
            f"python examples/story/measure.py --folder {at} --each {size.measured} --outlines {size.outlines}",
        ),
        publish(at),
        load(at),
        Step("report", "one page about all of it", (f"python examples/story/report.py --folder {at}",)),
    ]


def shown(folder: Path) -> str:
    """The folder as the commands name it, which run in the repository's root."""
    whole = folder.resolve()
    return str(whole.relative_to(ROOT) if whole.is_relative_to(ROOT) else whole)


def step(name: str, title: str, *commands: str, online: bool = False) -> Step:
    return Step(name, title, tuple(" ".join(command.split()) for command in commands), online)


def prompts(at: str, size: Sizes) -> Step:
    return step(
        "prompts",
        "choose prompts worth asking people about",
        f"python examples/story/prompts.py --folder {at} --count {size.requests} --held_out {size.held_out}",
        f"""diffusers-ext select-prompts --prompts {at}/requests.txt --encoder {at}/encoder --count {size.chosen}
            --k {size.neighbours} --cache_dir {at}/sentences --output {at}/chosen.jsonl""",
    )


def candidates(at: str, size: Sizes) -> Step:
    return step(
        "candidates",
        "draw candidates of each chosen prompt",
        f"""diffusers-ext rerank --prompts_file {at}/chosen.jsonl --candidates {size.candidates} --keep 1 --chunk_size 8
            --num_inference_steps 5 --guidance_scale 1 --output_dir {at}/candidates""",
    )


def people(at: str, size: Sizes) -> Step:
    return step(
        "people",
        "let three simulated people rank them, and collect what they said",
        f"python examples/story/people.py --candidates {at}/candidates",
        f"diffusers-ext annotate {at}/candidates --export {at}/rankings.jsonl",
        f"""python -m diffusers_ext.preferences.simulated --basic_colours --count {size.spoilt} --annotators 3
            --temperature 0.03 --output_dir {at}/spoilt""",
        f"python examples/story/join.py --folder {at} --held_out {size.validated}",
        f"diffusers-ext rankings {at}/training.jsonl --against {at}/validation.jsonl",
    )


def reward(at: str, size: Sizes) -> Step:
    return step(
        "reward",
        "learn a reward from the rankings",
        f"""accelerate launch training/train_reward_model.py --backbone tiny --rankings {at}/training.jsonl
            --validation_rankings {at}/validation.jsonl --output_dir {at}/reward --freeze_fraction 0 --random_flip
            --learning_rate 1e-3 --train_batch_size 8 --max_train_steps {size.reward_steps} --validation_steps 100
            --checkpointing_steps 100 --checkpoints_total_limit 1 --resume_from_checkpoint latest""",
    )


def rerank(at: str, size: Sizes) -> Step:
    return step(
        "rerank",
        "choose among new candidates by it, on colour pairs that nobody ranked",
        f"""diffusers-ext rerank --prompts_file {at}/held-out.txt --reward {at}/reward --held_out fill50k
            --candidates {size.reranked} --keep 4 --chunk_size 8 --seed 100000 --num_inference_steps 5 --guidance_scale 1
            --output_dir {at}/rerank""",
    )


def tune(at: str, size: Sizes) -> Step:
    return step(
        "tune",
        "tune the model by it, with ReFL; the exact reward is held out",
        f"""accelerate launch training/train_reward_tuning.py --method refl --prompts {at}/chosen.jsonl --resolution 64
            --reward {at}/reward --held_out_reward fill50k --no-use_margin --validation_prompts {at}/held-out.txt
            --num_inference_steps 5 --num_validation_images 2 --train_batch_size 8 --learning_rate 1e-3
            --drift_weight 1 --max_train_steps {size.tuning_steps} --validation_steps 20 --checkpointing_steps 20
            --checkpoints_total_limit 1 --resume_from_checkpoint latest --output_dir {at}/tuned""",
    )


def control(at: str, size: Sizes) -> list[Step]:
    common = f"""--train_data_dir {at}/circles --resolution 64 --train_batch_size 8 --held_out_samples 16
                 --num_validation_images 1 --checkpoints_total_limit 1 --resume_from_checkpoint latest"""
    return [
        step(
            "control",
            "train a ControlNet that draws the circle where the outline is",
            f"python -m diffusers_ext.toy.circles --output_dir {at}/circles --count {size.circles} --size 64",
            f"""accelerate launch training/train_controlnet.py {common} --learning_rate 1e-3
                --max_train_steps {size.control_steps} --validation_steps 100 --checkpointing_steps 50
                --encoder_cache_dir {at}/encoded --output_dir {at}/controlnet""",
        ),
        step(
            "closer",
            "tune the ControlNet by how well its pictures keep to the outline",
            f"""accelerate launch training/train_control_reward.py {common} --learning_rate 3e-4 --consistency edges
                --consistency_weight 0.3 --controlnet_model_name_or_path {at}/controlnet
                --max_train_steps {size.closer_steps} --validation_steps {size.closer_steps}
                --checkpointing_steps 20 --encoder_cache_dir {at}/encoded --output_dir {at}/controlnet-closer""",
        ),
    ]


def classifiers(at: str, size: Sizes) -> list[Step]:
    templates = " ".join(shlex.quote(each) for each in ("a {} shape", "a filled {} shape", "an outlined {} shape"))
    return [
        step(
            "words",
            "draw colours in five styles, and train a small image-text model on them",
            f"python examples/story/colours.py --folder {at} --drawings {size.drawings} --captioned {size.captioned}",
            f"""accelerate launch training/train_image_text.py --train_data_dir {at}/captioned
                --zero_shot_data_dir {at}/colours --zero_shot_templates {templates}
                --vision_tower timm:test_resnet@{at}/tower/weights.safetensors,mean=0.5,std=0.5,size=64
                --text_tower {at}/text --embed_dim 64 --context_length 16 --encoder_cache_dir {at}/embedded
                --train_batch_size 256 --num_train_epochs {size.image_text_epochs} --learning_rate 1e-2
                --hub_model_id {ME}/story-image-text --resume_from_checkpoint latest --output_dir {at}/image-text""",
        ),
        step(
            "extend",
            "extend a classifier of filled drawings to styles known by words alone (LADS)",
            f"""accelerate launch training/train_lads.py --train_data_dir {at}/colours --source_domain filled
                --domains {shlex.quote(json.dumps(DOMAINS))} --backbone {at}/image-text --encoder_cache_dir {at}/embedded
                --num_train_epochs {size.lads_epochs} --runs {size.lads_runs} --resume_from_checkpoint latest
                --output_dir {at}/lads""",
        ),
        step(
            "grow",
            "teach a classifier colours and styles as they come (mixtures)",
            f"""accelerate launch training/train_incremental.py --data {at}/colours --setting {size.setting} --groups {size.groups}
                --backbone {at}/image-text --encoder_cache_dir {at}/embedded --resume_from_checkpoint latest
                --output_dir {at}/stream""",
        ),
    ]


def publish(at: str) -> Step:
    pushes = [f"diffusers-ext push {at}/{folder} {ME}/{name}" for folder, name in NAMES.items()]
    together = f"python examples/story/publish.py --folder {at}"
    return step("publish", "publish everything, on a Hub of this machine", *pushes, together, online=True)


def load(at: str) -> Step:
    return step(
        "load",
        "load everything by its name in a new process, and compare it with what lies here",
        f"python examples/story/load.py --folder {at} --source here --output {at}/here.json",
        f"python examples/story/load.py --folder {at} --source hub --output {at}/hub.json --expected {at}/here.json",
        online=True,
    )
