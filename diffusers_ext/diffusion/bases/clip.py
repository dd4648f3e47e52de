"""CLIP's tokenizers: read another than the base's own, and count the captions that are longer than it reads."""

from collections.abc import Sequence

from transformers import AutoTokenizer, CLIPTextConfig, CLIPTokenizer

from ...errors import InputError

AT_ONCE = 10_000  # captions that go through the tokenizer together


def load_tokenizer(name: str, folder: str) -> CLIPTokenizer:
    """Return another tokenizer for the text encoder of the base in `folder`.

    Raises InputError if it cannot be read, or knows more tokens or pads to more than the text encoder takes.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # of transformers and tokenizers, which have many
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise InputError(
            f"--tokenizer_name {name}: no tokenizer that can be read ({reason:.120}); give a folder with tokenizer_config.json "
            "and vocab.json or tokenizer.json, or a name on the Hub"
        ) from error
    encoder = CLIPTextConfig.from_pretrained(folder, subfolder="text_encoder")
    if len(tokenizer) > encoder.vocab_size:
        raise InputError(
            f"--tokenizer_name {name}: {len(tokenizer)} tokens, but the base's text encoder knows {encoder.vocab_size}"
        )
    if tokenizer.model_max_length > encoder.max_position_embeddings:
        raise InputError(
            f"--tokenizer_name {name}: pads to {tokenizer.model_max_length:.4g} tokens, but the base's text encoder has"
            f" {encoder.max_position_embeddings} positions; set model_max_length in its tokenizer_config.json"
        )
    return tokenizer


def cut_captions(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> str | None:
    """Return a sentence on how many captions are longer than the text encoder reads, and by how much; None if none is.

    >>> from diffusers_ext import embedded_model
    >>> tokenizer = CLIPTokenizer.from_pretrained(embedded_model(), subfolder="tokenizer")
    >>> cut_captions(tokenizer, ["red circle"])
    >>> cut_captions(tokenizer, ["red circle " * 40])[:55]
    '1 of 1 different captions are longer than the 32 tokens'
    """
    limit = tokenizer.model_max_length
    distinct = list(dict.fromkeys(captions))
    excess: dict[str, int] = {}
    for first in range(0, len(distinct), AT_ONCE):
        chunk = distinct[first : first + AT_ONCE]
        lengths = map(len, tokenizer(chunk, truncation=False, verbose=False).input_ids)
        excess |= {caption: length - limit for caption, length in zip(chunk, lengths) if length > limit}
    if not excess:
        return None
    longest = max(excess, key=excess.__getitem__)
    low, high = min(excess.values()), max(excess.values())
    return (
        f"{len(excess):,} of {len(distinct):,} different captions are longer than the {limit} tokens that the text encoder reads,"
        f" by {low if low == high else f'{low} to {high}'} tokens; the rest is cut off. The longest begins {longest[:60]!r}"
    )
