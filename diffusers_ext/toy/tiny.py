"""The parts of a Stable Diffusion small enough for a CPU and a wheel, untrained.

Every part is of the class that the large models use, so code that runs here runs on Stable Diffusion 1.5 and 2.1.
`training/train_tiny_text_to_image.py` trains them.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..disk import follow_umask

TOKENS = 32  # length of a prompt; CLIP's is 77
WIDTH = 96  # of the text embeddings


def tokenizer(texts: Iterable[str], merges: int = 512) -> CLIPTokenizer:
    """Learn a byte-level BPE vocabulary from texts, CLIP's way; any other text still has tokens, down to single bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    blank = CLIPTokenizer()
    # train_new_from_iterator finds the merges; the vocabulary is laid out anew because it forgets bytes unseen at a word's end.
    learned = blank.train_new_from_iterator(list(texts), vocab_size=2 + 256 + 256 + merges, show_progress=False)
    pairs = [tuple(pair) for pair in json.loads(learned.backend_tokenizer.to_str())["model"]["merges"]]
    symbols = sorted(ByteLevel.alphabet())
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), *dict.fromkeys("".join(pair) for pair in pairs)]
    vocabulary = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=TOKENS)


def autoencoder() -> AutoencoderKL:
    """A KL autoencoder, 4x smaller per side: 64 px to 16x16x4. 0.7 M parameters.

    Two groups per normalisation: with few channels a group, the brightness of a flat picture is normalised away.
    """
    return AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=64,
    )


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text encoder of three layers. 0.4 M parameters."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def unet() -> UNet2DConditionModel:
    """A U-Net over 16x16 latents, attending to itself and to the text at 8x8 and 4x4. 3.0 M parameters."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(48, 64, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # the number of heads, by its historical name
        norm_num_groups=8,
    )


def scheduler() -> DDIMScheduler:
    """Stable Diffusion 2's v-prediction, with the last step pure noise (Lin et al. 2024): flat colours need it."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def save_half(pipe: StableDiffusionPipeline, folder: Path) -> None:
    """Save a pipeline with float16 weights that load as float32 on any machine."""
    pipe.to(dtype=torch.float16).save_pretrained(folder)
    follow_umask(folder)
    # transformers would load the text encoder in the stored type, diffusers casts its own parts to float32.
    config = folder / "text_encoder" / "config.json"
    config.write_text(
        config.read_text(encoding="utf-8").replace('"dtype": "float16"', '"dtype": "float32"'), encoding="utf-8"
    )
