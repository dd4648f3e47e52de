"""Convert an official ImageReward checkpoint to a folder that from_pretrained, AutoModel and load_reward read.

    diffusers-ext convert-reward ImageReward.pt --output_dir models/image-reward
    diffusers-ext convert-reward train/checkpoint.pt --output_dir models/mine --tokenizer path/to/bert-base-uncased

The released ImageReward.pt and what the official training writes both work; nothing but tensors is unpickled, and a
tensor that is missing or too much is an error. The tokenizer comes from the Hub unless a folder is given.
"""

from dataclasses import dataclass

from ..options import Range, option


@dataclass
class Options:
    checkpoint: str | None = option(None, "the official file, such as ImageReward.pt", positional=True, path="read")
    output_dir: str | None = option(None, "the folder to write; it must not hold anything yet", path="folder")
    tokenizer: str = option("bert-base-uncased", "folder or Hub name of BERT's uncased tokenizer", path="read")
    text_config: str | None = option(None, "med_config.json of another text encoder than the released one", path="read")
    vision_config: str | None = option(
        None, "JSON of another image encoder: width, depth, heads, patch, image_size", path="read"
    )
    max_length: int = option(35, "tokens of a prompt that are read; the released model was trained with 35", Range(2))


def main(options: Options) -> None:
    from pathlib import Path

    from ..errors import InputError

    if not options.checkpoint or not options.output_dir:
        raise InputError(
            "give a checkpoint and --output_dir: diffusers-ext convert-reward ImageReward.pt --output_dir DIR"
        )
    source, folder = Path(options.checkpoint), Path(options.output_dir)
    if not source.is_file():
        raise InputError(f"{source}: no such file; ImageReward.pt is in the Hub repository THUDM/ImageReward")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--output_dir {folder} is not empty; name another")
    text_config, vision_config = _read(options.text_config), _read(options.vision_config)
    tokenizer = _tokenizer(options.tokenizer)

    from ..disk import follow_umask
    from ..rewards.card import write_converted_card
    from ..rewards.modeling_image_reward import ImageRewardModel

    model = ImageRewardModel.from_official_checkpoint(source, text_config, vision_config, tokenizer)
    if len(tokenizer) > model.config.text_config.vocab_size:
        raise InputError(
            f"--tokenizer {options.tokenizer} has {len(tokenizer)} tokens, the checkpoint "
            f"{model.config.text_config.vocab_size}; it is not the one this model was trained with"
        )
    if not 2 <= options.max_length <= model.config.text_config.max_position_embeddings:
        raise InputError(f"--max_length: 2 to {model.config.text_config.max_position_embeddings} tokens")
    model.config.max_length = options.max_length
    model.save_pretrained(folder)
    follow_umask(folder)
    write_converted_card(folder, source, model.config)
    print(
        f"{folder}: {sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M parameters, tokenizer and card"
    )


def _tokenizer(name: str):
    """BERT's tokenizer with the two tokens that BLIP adds, whose embeddings the checkpoint has."""
    from transformers import AutoTokenizer

    from ..errors import InputError

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--tokenizer {name} cannot be loaded ({reason}); give a folder that holds it") from error
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_tokens(["[ENC]"], special_tokens=True)
    return tokenizer


def _read(path: str | None) -> dict | None:
    import json
    from pathlib import Path

    from ..errors import InputError

    try:
        return json.loads(Path(path).read_text(encoding="utf-8")) if path else None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no JSON that can be read ({error})") from None
