"""An ImageReward small enough for a CPU, untrained: every part is of the class that the released model uses."""

from collections.abc import Iterable

from transformers import BertTokenizerFast, PreTrainedTokenizerBase

from .modeling_image_reward import ImageRewardConfig, ImageRewardModel

TOKENS = 16  # of a prompt that are read
DEVIATION = 0.1  # of the first weights: BLIP's 0.02 is for wide layers, narrow ones would be blind to the image


def tokenizer(texts: Iterable[str], size: int = 2000) -> PreTrainedTokenizerBase:
    """Learn a WordPiece vocabulary from texts, BERT's way, lower case."""
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    return BertTokenizerFast(vocab=words).train_new_from_iterator(sorted(set(texts)), size, show_progress=False)


def image_reward(texts: Iterable[str], width: int = 64, layers: int = 2, image_size: int = 32, patch_size: int = 8):
    """Return a random `ImageRewardModel` whose tokenizer knows the words of these texts; seeded by torch's generator.

    >>> model = image_reward(['red circle'])
    >>> type(model).__name__
    'ImageRewardModel'
    """
    words = tokenizer(texts)
    shape = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "initializer_range": DEVIATION,
    }
    ids = {
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "sep_token_id": 3,
    }  # BLIP's own lie outside of `words`
    text = {**shape, "vocab_size": len(words), "max_position_embeddings": TOKENS, **ids}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    vision = {**shape, "image_size": image_size, "patch_size": patch_size}
    config = ImageRewardConfig(
        text_config={**text, **quiet},
        vision_config=vision,
        head_sizes=[width],
        max_length=TOKENS,
        initializer_range=DEVIATION,
    )
    model = ImageRewardModel(config)
    model.tokenizer = words
    return model
