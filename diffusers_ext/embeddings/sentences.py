"""Sentence embeddings of prompts: a transformer, the mean over its tokens, unit length; each prompt encoded once.

    embed("path/to/all-MiniLM-L6-v2", prompts, cache_dir)     # (n, d), float32

The encoder is a folder or a name on the Hub, in the form of transformers or sentence-transformers. Embeddings are kept by
the content of prompt and encoder, so that what was embedded before, by whichever run, costs a look-up.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tqdm.auto import tqdm

from ..cache import Batches, Digests, Store, digest_of, fingerprint
from ..errors import InputError
from ..rewards.completeness import LOADING_ERRORS, check_tokenizer, check_weights, why_not_loaded
from ..rewards.reward_inputs import check_prompts

FILES = ("config.json", "*token*.json", "vocab.*", "*.model", "merges.txt", "*.safetensors", "sentence_*.json", "1_*/*")
CHUNK = 4096  # prompts looked up in the store at a time


class SentenceEncoder:
    """A text encoder whose sentence embedding is the normalised mean of its last hidden states (Reimers & Gurevych 2019)."""

    def __init__(self, folder: str | Path, device: str = "cpu"):
        from transformers import AutoModel, AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model, report = AutoModel.from_pretrained(
                folder,
                dtype=torch.float32,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except LOADING_ERRORS as error:
            reason = why_not_loaded(folder, error).splitlines()[0]
            raise InputError(f"--encoder {folder}: cannot be loaded ({reason})") from error
        # Heads that a checkpoint has besides, and a pooler that it lacks, are not used here.
        check_weights(report | {"unexpected_keys": ()}, folder, unused=["pooler."])
        check_tokenizer(self.tokenizer, model.config.vocab_size, folder)
        self.model = model.eval().to(device)
        self.length = max_tokens(
            folder, min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)
        )

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Return embeddings, (texts, d), float32, on the CPU; text beyond the encoder's length is not seen."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=self.length, return_tensors="pt")
        tokens = tokens.to(self.model.device)
        hidden, mask = self.model(**tokens).last_hidden_state, tokens.attention_mask[..., None]
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).cpu()


def embed(
    encoder: str,
    texts: Sequence[str],
    cache_dir: str | Path,
    batch_size: int = 64,
    device: str = "cpu",
    show: bool = False,
) -> np.ndarray:
    """Return the embeddings of texts, (n, d), float32, in their order; the model is loaded if one is missing only.

    Texts of like length share a batch, the longest first. What is computed stays if the user interrupts. Raises
    InputError if the encoder is not complete or pools otherwise than by the mean.
    """
    texts = check_prompts(texts)
    folder = local_folder(encoder)
    check_encoder(folder)
    digests = Digests(cache_dir)
    store = Store(cache_dir, {"value": "sentences", "encoder": fingerprint(folder, ["."], digests)}, digests)
    digests.save()
    keys = [digest_of(text) for text in texts]
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    load = functools.cache(lambda: SentenceEncoder(folder, device))
    rows: np.ndarray = np.empty((0, 0))
    with tqdm(total=len(texts), desc="embedding", unit="prompt", dynamic_ncols=True, disable=not show) as bar:
        for first in range(0, len(order), CHUNK):
            chunk = order[first : first + CHUNK]
            missing = set(store.missing([keys[index] for index in chunk]))
            new = [index for index in chunk if keys[index] in missing]

            def encode(positions: range, new: list[int] = new) -> torch.Tensor:
                bar.update(len(positions))
                return load()([texts[new[position]] for position in positions])

            store.fill([keys[index] for index in new], Batches(len(new), batch_size, encode))
            values = torch.stack([store[keys[index]] for index in chunk]).numpy()
            rows = rows if len(rows) else np.empty((len(texts), values.shape[1]), np.float32)
            rows[chunk] = values
            bar.update(first + len(chunk) - bar.n)
    return rows


def local_folder(encoder: str) -> Path:
    """Return the encoder's folder, after downloading what is needed of it if it is a name on the Hub."""
    if Path(encoder).is_dir():
        return Path(encoder)
    if encoder.count("/") != 1 or encoder.startswith((".", "/", "~")):
        raise InputError(f"--encoder {encoder}: no such folder; give a transformers folder or an owner/name on the Hub")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(encoder, allow_patterns=list(FILES)))
    except Exception as error:  # no such name, no access, no network: the Hub's own message says which
        raise InputError(f"--encoder {encoder}: neither a folder here nor to be had from the Hub ({error})") from None


def check_encoder(folder: Path) -> None:
    """Raise InputError unless the folder is a transformers text encoder, pooled by the mean as far as it says."""
    for name in ("config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder / name}: missing; give the folder that save_pretrained of encoder and tokenizer wrote"
            )
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder}: no .safetensors; load the encoder once and save_pretrained it")
    pooling = folder / "1_Pooling" / "config.json"
    if pooling.is_file() and not json.loads(pooling.read_text(encoding="utf-8")).get("pooling_mode_mean_tokens", False):
        raise InputError(
            f"{pooling}: does not pool by the mean; embed with sentence-transformers, give --embeddings FILE.npy"
        )


def max_tokens(folder: str | Path, limit: int) -> int:
    """Return the length the encoder was trained at, if sentence-transformers wrote it down, else its positions."""
    path = Path(folder) / "sentence_bert_config.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return min(known.get("max_seq_length") or limit, limit)


def read_embeddings(path: str | Path) -> np.ndarray | torch.Tensor:
    """Read a .npy, memory-mapped, or a .safetensors with one tensor or one named "embeddings": (n, d).

    Raises InputError, naming the file, if it is missing, damaged or of another shape.
    """
    readers = {".npy": lambda path: np.load(path, mmap_mode="c", allow_pickle=False), ".safetensors": _read_safetensors}
    path = Path(path)
    if path.suffix not in readers:
        raise InputError(f"{path}: embeddings are a .npy or a .safetensors; convert it")
    try:
        rows = readers[path.suffix](path)
    except (OSError, EOFError, ValueError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read as embeddings ({error}); write it again") from None
    if rows.ndim != 2:
        raise InputError(f"{path}: shape {tuple(rows.shape)}; embeddings are (prompts, dimensions)")
    return rows


def _read_safetensors(path: Path) -> torch.Tensor:
    tensors = load_file(path)
    if len(tensors) != 1 and "embeddings" not in tensors:
        raise ValueError(f"it holds {', '.join(tensors) or 'nothing'}, where one tensor 'embeddings' is expected")
    return tensors.get("embeddings", next(iter(tensors.values())))
