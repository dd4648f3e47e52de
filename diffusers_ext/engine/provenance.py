"""What a run's weights come from, and whether a resumed run would still come from it.

`options.json` of a run folder, of which every checkpoint holds a copy, has the options and under "sources" a digest of the
content that they name: data, base, reward, prompts. A resume is refused where anything differs that changes what the weights
mean; where something differs that only changes how training proceeds, that is said. Folders may move: content counts.
"""

import hashlib
import inspect
import json
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.files import File
from ..disk import sha256

OPTIONS = "options.json"
BLOCK, BLOCKS = 1 << 16, 256  # a large weight file is told from another by so many blocks, evenly over it

# Where things lie, how often they are kept, who is told, how fast it goes: a resume may change these without a word.
INCIDENTAL = {
    *("output_dir", "encoder_cache_dir", "cache_dir", "batch_size", "decode_batch_size", "dataloader_num_workers"),
    *("logging_steps", "validation_steps", "checkpointing_steps", "checkpointing_epochs", "checkpoints_total_limit"),
    *("resume_from_checkpoint", "dry_run", "self_test", "report_to", "logging_dir", "tracker_project_name"),
    *("push_to_hub", "hub_model_id", "hub_token", "max_train_steps", "num_train_epochs", "baselines"),
    *(
        "mixed_precision",
        "torch_compile",
        "allow_tf32",
        "gradient_checkpointing",
        "set_grads_to_none",
        "strength_sweep",
    ),
    *("enable_xformers_memory_efficient_attention", "enable_npu_flash_attention", "on_bad_sample"),
}
# How training proceeds, or what is drawn, from here on: a resume may change these, and says so.
ADJUSTABLE = {
    *("learning_rate", "scale_lr", "lr_scheduler", "lr_warmup_steps", "lr_num_cycles", "lr_power", "adam_beta1"),
    *("adam_beta2", "adam_weight_decay", "adam_epsilon", "max_grad_norm", "ema_decay", "train_batch_size"),
    *("gradient_accumulation_steps", "validation_image", "validation_prompt", "validation_extractor"),
    *("num_validation_images", "validation_guidance_scale", "validation_samples", "early_stopping_patience"),
}
# What these name is compared by content, under "sources".
NAMES = {
    *(
        "train_data_dir",
        "dataset_name",
        "dataset_config_name",
        "image_column",
        "conditioning_image_column",
        "mask_column",
    ),
    *("caption_column", "max_train_samples", "pretrained_model_name_or_path", "pretrained_vae_model_name_or_path"),
    *("revision", "variant", "tokenizer_name", "controlnet_model_name_or_path", "transfer_from", "rankings", "split"),
    *("image_root", "validation_rankings", "backbone", "reward", "held_out_reward", "prompts", "prompt_field"),
    *("validation_prompts", "pretrain_data_dir", "tiny_decoder", "vision_tower", "text_tower", "held_out_data_dir"),
    *("zero_shot_data_dir", "zero_shot_label_column", "label_column", "domain_column", "split_column", "domains"),
}


@dataclass(frozen=True)
class Source:
    """One thing that weights come from: the options that name it, a digest of its content, and its size in words."""

    named_by: tuple[str, ...]
    digest: str
    size: str = ""


Sources = Mapping[str, Source]


@dataclass(frozen=True)
class Difference:
    """refused: what changes the meaning of the weights; noted: what may change, and is said."""

    refused: list[str]
    noted: list[str]


def compare(
    record: Mapping[str, Any],
    options: Mapping[str, Any],
    sources: Mapping[str, Any],
    fixed: Collection[str] | None = None,
) -> Difference:
    """Compare a run's record, what options.json holds, with the options and sources of the run that would resume it.

    fixed: the options of a training that tolerates no change of them, whatever they are elsewhere; none of the others counts.
    """
    old, kept = record.get("options", {}), record.get("sources") or {}
    refused: list[str] = []
    noted: list[str] = []
    compared = options.keys() - INCIDENTAL if fixed is None else options.keys() & {*fixed}
    for name in sorted(old.keys() & compared):
        if old[name] == options[name]:
            continue
        text = f"--{name} was {_shown(old[name])}, now {_shown(options[name])}"
        if name not in NAMES:
            (noted if fixed is None and name in ADJUSTABLE else refused).append(text)
        elif not kept and sources:
            noted.append(f"{text}; the run is of an earlier version, which kept no digest to compare by")
    for what, source in sources.items():
        before = kept.get(what)
        if before and before["digest"] != source["digest"]:
            refused.append(f"{what}: {_told(source, before, old)}, now {_told(source, source, options)}")
    refused += [f"{what}: in use before, now left out" for what in kept if sources and what not in sources]
    refused += [f"{what}: not in use before" for what in sources if kept and what not in kept]
    return Difference(refused, noted)


def _told(source: Mapping[str, Any], of: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    named = ", ".join(_shown(options.get(name)) for name in source["named_by"] if options.get(name) is not None)
    size = f", {of['size']}" if of["size"] else ""
    return f"{named or 'the default'} (digest {of['digest'][:8]}{size})"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) < 200 else text[:200] + " ..."


def record_of(checkpoint: Path) -> dict[str, Any]:
    """Return the record of the run that wrote a checkpoint, its own or, of earlier versions, its run folder's; {} for none."""
    for folder in (checkpoint, checkpoint.absolute().parent):
        try:
            record = json.loads((folder / OPTIONS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and isinstance(record.get("options"), dict):
            return record
    return {}


# Digests.


def digest_of_values(*values: Any) -> str:
    """Return the digest of JSON-ready values."""
    return hashlib.sha256(json.dumps(values, default=str).encode("utf-8", "surrogatepass")).hexdigest()


def digest_of_files(files: Iterable[File | str | Path]) -> str:
    """Return the digest of the content of files, in order, in whatever place or archive they lie."""
    with ThreadPoolExecutor(8) as pool:
        return digest_of_values(list(pool.map(_content, files)))


def _content(file: File | str | Path) -> str:
    if isinstance(file, (str, Path)):
        return sha256(Path(file))
    with file.open("rb") as stream:
        return hashlib.sha256(stream.read()).hexdigest()


def digest_of_model(model: str | Path | None, parts: Iterable[str] = (".",), variant: str | None = None) -> str:
    """Return the digest of a model's folder or file: configurations and vocabularies whole, weights by `blocks`; else of the name.

    parts: its sub-folders that are read. variant: of the weight files, such as fp16. Of several formats safetensors counts.
    """
    path = Path(str(model))
    if path.is_file():
        return _blocks(path)
    found: list[Any] = [str(model)] if not path.is_dir() else []
    for part in sorted(parts) if path.is_dir() else ():
        files = [file for file in sorted((path / part).glob("*")) if file.is_file()]
        found += [(part, file.name, _blocks(file)) for file in files if file.suffix in (".json", ".txt", ".model")]
        found += [(part, _blocks(file)) for file in _weights(files, variant)]
    return digest_of_values(found)


def _weights(files: list[Path], variant: str | None) -> list[Path]:
    for suffix in (".safetensors", ".bin", ".pt", ".pth"):
        of_kind = [file for file in files if file.suffix == suffix]
        chosen = [file for file in of_kind if (f".{variant}" in file.stem if variant else "." not in file.stem)]
        if of_kind:
            return chosen or of_kind
    return []


def _blocks(path: Path) -> str:
    """Return the digest of a file: all of it up to 16 MiB, else its size and 256 blocks of it."""
    size = path.stat().st_size
    if size <= BLOCK * BLOCKS:
        return sha256(path)
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for number in range(BLOCKS):
            file.seek(number * (size - BLOCK) // (BLOCKS - 1))
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


def digest_of_reward(reward: torch.nn.Module, name: str) -> str:
    """Return the digest of a reward: its class and weights, and the code of a function or class of the user's own."""
    from ..cache import digest_of_tensors

    own = getattr(reward, "own", type(reward))
    try:
        code = "" if getattr(own, "__module__", "").startswith(f"{__package__}.") else inspect.getsource(own)
    except (OSError, TypeError):
        code = name
    scales = digest_of_model(name) if name.endswith(".json") else ""
    return digest_of_values(type(reward).__name__, digest_of_tensors([reward]), code, scales)
