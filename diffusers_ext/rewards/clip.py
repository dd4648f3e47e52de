"""Rewards by the embeddings of CLIP: CLIP score, PickScore, HPSv2 and the LAION aesthetic heads.

    CLIPScore  (Hessel et al. 2021, arXiv:2104.08718)   cos(image, text), without the paper's factor 2.5 and cut at 0
    PickScore  (Kirstain et al. 2023, arXiv:2305.01569) exp(logit_scale) cos(image, text)
    HPSv2      (Wu et al. 2023, arXiv:2306.09341)       cos(image, text), of the whole picture padded to a square
    aesthetic  (LAION-AI/aesthetic-predictor)           head(image): a linear layer, or the five of "improved"

Shapes: N pairs, D the width of the embedding.
"""

import os
import re
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from ..embeddings.tokenizer import open_clip_tokenizer
from ..errors import InputError
from .completeness import LOADING_ERRORS, check_tokenizer, check_tokenizer_files, check_weights, why_not_loaded
from .image_reward_checkpoint import READING_ERRORS, why_unreadable
from .interface import Reward
from .reward_inputs import MEAN, STD, pixels


class OpenClip(nn.Module):
    """The two towers of an open_clip model: embeddings of unit length.

    whole: keep the whole picture, padded to a square, instead of the middle square.
    """

    def __init__(self, model: nn.Module, tokenizer, whole: bool = False):
        super().__init__()
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        prepared = model.visual.preprocess_cfg
        size = prepared["size"] if isinstance(prepared["size"], int) else prepared["size"][0]
        if prepared.get("interpolation") != "bicubic" or prepared.get("resize_mode") != "shortest":
            raise InputError(
                f"an open_clip model prepared otherwise than CLIP's, {prepared}: not one for these rewards"
            )
        self.prepare = {"size": size, "mean": prepared["mean"], "std": prepared["std"], "whole": whole}

    @classmethod
    def load(cls, architecture: str, pretrained: str, whole: bool = False) -> "OpenClip":
        """Load by open_clip's name and tag, or a name and a checkpoint; InputError if that does not give those weights."""
        import open_clip

        try:
            with warnings.catch_warnings():
                # The wrong activation runs, and scores a little wrong everywhere.
                warnings.filterwarnings("error", message=".*QuickGELU mismatch")
                model = open_clip.create_model(architecture, pretrained, require_pretrained=True)
            return cls(model, open_clip_tokenizer(architecture), whole)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"open_clip cannot load {architecture} with the weights {pretrained!r}: {error}"
            ) from error

    def embed_images(self, images: list) -> torch.Tensor:
        """N checked images -> (N, D)."""
        parameter = next(self.model.parameters())
        batch = torch.stack([pixels(image, **self.prepare) for image in images])
        return F.normalize(self.model.encode_image(batch.to(parameter)).float(), dim=-1)

    def embed_texts(self, prompts: list[str]) -> torch.Tensor:
        """N texts -> (N, D)."""
        tokens = self.tokenizer(prompts).to(next(self.model.parameters()).device)
        return F.normalize(self.model.encode_text(tokens).float(), dim=-1)

    @property
    def scale(self) -> torch.Tensor:
        return self.model.logit_scale.exp().float()


class TransformersClip(nn.Module):
    """The two towers of a transformers CLIPModel: embeddings of unit length."""

    def __init__(self, model: nn.Module, tokenizer, mean=MEAN, std=STD):
        super().__init__()
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.prepare = {"size": model.config.vision_config.image_size, "mean": mean, "std": std}

    @classmethod
    def load(cls, name: str, tokenizer: str | None = None) -> "TransformersClip":
        """Load a folder or a Hub name; tokenizer: where its tokenizer is, if not there too."""
        from transformers import AutoTokenizer, CLIPModel

        words = tokenizer or name
        check_tokenizer_files(words)
        try:
            model, report = CLIPModel.from_pretrained(
                name, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
            )
            loaded = AutoTokenizer.from_pretrained(words, trust_remote_code=False)
        except LOADING_ERRORS as error:
            raise InputError(f"{name}: no CLIP that transformers can load: {why_not_loaded(name, error)}") from error
        check_weights(report, name)
        check_tokenizer(loaded, model.config.text_config.vocab_size, words)
        return cls(model, loaded)

    def embed_images(self, images: list) -> torch.Tensor:
        """N checked images -> (N, D)."""
        parameter = next(self.model.parameters())
        batch = torch.stack([pixels(image, **self.prepare) for image in images])
        pooled = self.model.vision_model(pixel_values=batch.to(parameter)).pooler_output
        return F.normalize(self.model.visual_projection(pooled).float(), dim=-1)

    def embed_texts(self, prompts: list[str]) -> torch.Tensor:
        """N texts -> (N, D)."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(prompts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        tokens = tokens.to(next(self.model.parameters()).device)
        pooled = self.model.text_model(tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
        return F.normalize(self.model.text_projection(pooled).float(), dim=-1)

    @property
    def scale(self) -> torch.Tensor:
        return self.model.logit_scale.exp().float()


class ClipReward(Reward):
    """Cosine of picture and prompt, in units of the model's logit scale where `scaled`."""

    def __init__(self, clip: OpenClip | TransformersClip, scaled: bool = False):
        super().__init__()
        self.clip, self.scaled = clip, scaled

    def _score(self, prompts: list[str], images: list) -> torch.Tensor:
        distinct = list(dict.fromkeys(prompts))
        texts = self.clip.embed_texts(distinct)
        texts = texts[[distinct.index(prompt) for prompt in prompts]]
        cosines = (self.clip.embed_images(images) * texts).sum(-1)
        return cosines * self.clip.scale if self.scaled else cosines


class AestheticReward(Reward):
    """LAION's aesthetic score of the picture, about 1 to 10; the prompt is not looked at."""

    def __init__(self, clip: OpenClip | TransformersClip, head: nn.Module):
        super().__init__()
        self.clip, self.head = clip, head.eval().requires_grad_(False)

    def _score(self, prompts: list[str], images: list) -> torch.Tensor:
        embedded = self.clip.embed_images(images)
        return self.head(embedded.to(next(self.head.parameters()))).squeeze(-1)


def load_aesthetic_head(path: str | os.PathLike) -> nn.Sequential:
    """Read a LAION head, .pth with weights_only=True or .safetensors: (N, D) -> (N, 1).

    Known are the linear heads (weight, bias) and the improved predictor's (layers.0, 2, 4, 6, 7; dropout between).
    Raises InputError for anything else.
    """
    state = read_tensors(path)
    names = {match[1] for name in state if (match := re.fullmatch(r"(?:layers\.(\d+)\.)?(?:weight|bias)", name))}
    layers: list[nn.Module] = []
    for name in sorted(names, key=lambda name: int(name or 0)):
        prefix = f"layers.{name}." if name else ""
        weight, bias = state.pop(f"{prefix}weight", None), state.pop(f"{prefix}bias", None)
        if (
            weight is None
            or bias is None
            or weight.ndim != 2
            or (layers and layers[-1].out_features != weight.shape[1])
        ):
            raise InputError(f"{path}: no aesthetic head; {prefix}weight and bias do not fit the layers before")
        layers.append(nn.Linear(weight.shape[1], weight.shape[0]))
        layers[-1].load_state_dict({"weight": weight.float(), "bias": bias.float()})
    if state or not layers or layers[-1].out_features != 1:
        raise InputError(
            f"{path}: no aesthetic head; expected weight and bias, or layers.N.weight and .bias, ending in one value"
        )
    return nn.Sequential(*layers)


def read_tensors(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Read a flat dict of tensors, unpickling nothing but tensors."""
    try:
        if str(path).endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except READING_ERRORS as error:
        raise InputError(f"{path}: cannot be read ({why_unreadable(path, error)})") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path}: expected a dict of tensors")
    return dict(state)
