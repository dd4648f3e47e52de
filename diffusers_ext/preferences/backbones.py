"""What a reward model is trained from, what of it is frozen, and how its inputs are prepared or taken from a cache.

    ImageReward folder or Hub name      continues from a reward, with its own head
    BLIP folder or Hub name             BlipForImageTextRetrieval: its two encoders, a new head
    open_clip model/tag or folder       a head on its frozen embeddings (`rewards.linear_head`)
    tiny                                a small ImageReward with random weights, to try things out

Shapes: N images, L = 1 + patches, W the image encoder's width, D the width of embeddings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedConfig

from ..cache import Digests, Store, digest_of, digest_of_file, digest_of_tensors, fingerprint
from ..data.files import File, load
from ..embeddings.backbones import is_open_clip, load_backbone
from ..errors import InputError
from ..rewards import tiny as tiny_image_reward
from ..rewards.completeness import LOADING_ERRORS, check_tokenizer, check_weights, why_not_loaded
from ..rewards.linear_head import LinearHeadConfig, LinearHeadReward
from ..rewards.modeling_image_reward import ImageRewardConfig, ImageRewardModel, RewardHead
from ..rewards.reward_inputs import pixels
from .objective import Rewards

Reward = ImageRewardModel | LinearHeadReward
BLIP_HEADS = ("itm_head.", "vision_proj.", "text_proj.", "logit_scale", "text_encoder.pooler.")


@dataclass
class Prepared:
    """A reward ready to train: the module, its frozen parts, and the way from files and prompts to rewards."""

    model: Reward
    image: Callable[[File], torch.Tensor]
    rewards: Rewards
    text: Callable[[str], Any] = str
    frozen: list[nn.Module] = field(default_factory=list)


def load_reward_backbone(name: str, texts: Sequence[str], head_sizes: Sequence[int] | None = None) -> Reward:
    """Return a reward model to train, on the CPU in float32; texts are those a tiny model's tokenizer learns from.

    Raises InputError where nothing of the known kinds is at `name`.
    """
    if name == "tiny":
        return tiny_image_reward.image_reward(texts)
    if is_open_clip(name):
        backbone = load_backbone(name)
        width = backbone.embed_texts([""]).shape[1]
        model = LinearHeadReward(LinearHeadConfig(backbone=name, width=width, head_sizes=list(head_sizes or ())))
        model._backbone = backbone
        return model
    kind = kind_of(name)
    if kind == ImageRewardConfig.model_type:
        return _loaded(lambda: ImageRewardModel.from_pretrained(name, dtype=torch.float32), name)
    return _loaded(lambda: from_blip(name), name)


def _loaded(load: Callable[[], ImageRewardModel], name: str) -> ImageRewardModel:
    """Load a folder; whatever is wrong with its files, an InputError says so."""
    try:
        return load()
    except InputError:
        raise
    except LOADING_ERRORS as error:
        reason = why_not_loaded(name, error)
        raise InputError(f"--backbone {name}: cannot be loaded ({reason}); download it again") from error


def kind_of(name: str) -> str:
    """Return the model type that a folder's or Hub model's config.json names; InputError if it is none to train from."""
    try:
        kind = PreTrainedConfig.get_config_dict(name)[0].get("model_type")
    except (OSError, AttributeError):
        kind = None
    if kind not in (ImageRewardConfig.model_type, "blip"):
        found = f"its config.json says {kind!r}" if kind else "it has no config.json"
        raise InputError(
            f"--backbone {name}: {found}; give an ImageReward or BLIP folder, an open_clip model/tag or folder, or tiny. "
            "A released ImageReward.pt is converted by diffusers-ext convert-reward"
        )
    return kind


def from_blip(name: str) -> ImageRewardModel:
    """Return an ImageReward with the encoders of a BlipForImageTextRetrieval, at its resolution, and a new head."""
    from transformers import BlipForImageTextRetrieval

    blip, report = BlipForImageTextRetrieval.from_pretrained(
        name, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
    )
    # Of a BLIP for another task the encoders are the same; its own heads, and the lack of these, do not count.
    check_weights(report | {"unexpected_keys": ()}, f"--backbone {name}", unused=BLIP_HEADS)
    text, vision = blip.config.text_config.to_dict(), blip.config.vision_config.to_dict()
    length = min(ImageRewardConfig.max_length, text["max_position_embeddings"])
    text = {**text, "is_decoder": True}
    model = ImageRewardModel(ImageRewardConfig(text_config=text, vision_config=vision, max_length=length))
    model.vision_model.load_state_dict(blip.vision_model.state_dict())
    model.text_encoder.load_state_dict(blip.text_encoder.state_dict())
    model.tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    check_tokenizer(model.tokenizer, model.config.text_config.vocab_size, name)
    return model.eval()


def init_head(head: RewardHead, kind: str) -> None:
    """Draw the head's weights anew.

    "default": deviation 1/√(inputs) in each layer, which keeps the features' scale. "official": 1/(D + 1) in every
    layer, D the features' width. Through five layers that leaves rewards of about 1e-10 and gradients near Adam's
    epsilon, so that the loss stays at ln 2 for some 1,800 steps at the official learning rate.
    """
    width = head.layers[0].in_features
    for layer in head.layers:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=1 / (width + 1) if kind == "official" else layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)


def freeze(model: ImageRewardModel, fraction: float) -> list[nn.Module]:
    """Freeze the embeddings and the first `fraction` of the layers of both encoders; return the frozen modules.

    At 0.7 the released model keeps 8 text layers and 16 blocks, as the paper's best run did but for one tensor of the
    next layer that the official loop freezes too. 0 freezes nothing, 1 all but the head.
    """
    if not 0 <= fraction <= 1:
        raise InputError(f"--freeze_fraction must lie in 0 to 1, got {fraction}")
    if fraction == 0:
        return []
    vision, text = model.vision_model, model.text_encoder
    frozen = [vision.embeddings, *vision.encoder.layers[: int(len(vision.encoder.layers) * fraction)]]
    frozen += [text.embeddings, *text.encoder.layer[: int(len(text.encoder.layer) * fraction)]]
    if fraction == 1:
        frozen.append(vision.post_layernorm)
    for module in frozen:
        module.requires_grad_(False).eval()
    return frozen


def prepare(model: Reward, frozen: list[nn.Module], files: Sequence[File], texts: Sequence[str], cache: "Cache | None"):
    """Return what `RankedImages` and `RankingObjective` take; with a cache, what is frozen is computed once per image.

    cache None: images are read and encoded at each step. A reward on open_clip's embeddings needs one.
    """
    if isinstance(model, LinearHeadReward):
        assert cache is not None, "a head is trained on embeddings that were computed before"
        return _on_embeddings(model, files, texts, cache)
    if cache is None or not frozen:
        image = PixelReader(model.config.vision_config.image_size)
        return Prepared(model, image, _reading(model, model.encode_images), frozen=frozen)
    return _on_activations(model, frozen, files, cache)


@dataclass(frozen=True)
class PixelReader:
    """Read a file as `ImageRewardModel` sees it: (3, size, size) float32."""

    size: int

    def __call__(self, file: File) -> torch.Tensor:
        return pixels(load(file), self.size)


def _reading(model: ImageRewardModel, encode: Callable[[torch.Tensor], torch.Tensor]) -> Rewards:
    def rewards(prompts: list[str], images: torch.Tensor, prompt_index: torch.Tensor) -> torch.Tensor:
        text = {name: ids.to(images.device) for name, ids in model.tokenize(prompts).items()}
        each = torch.arange(len(images), device=images.device)
        return model.cross(**text, tokens=encode(images), prompt_index=prompt_index, image_index=each)

    return rewards


def _on_activations(
    model: ImageRewardModel, frozen: list[nn.Module], files: Sequence[File], cache: "Cache"
) -> Prepared:
    """Keep each image's activations (L, W) below the first block that learns."""
    vision, read = model.vision_model, PixelReader(model.config.vision_config.image_size)
    depth = sum(layer in frozen for layer in vision.encoder.layers)

    def below(file: File) -> torch.Tensor:
        hidden = vision.embeddings(read(file)[None].to(model.device))
        for layer in vision.encoder.layers[:depth]:
            hidden = layer(hidden)
        return hidden[0]

    def above(hidden: torch.Tensor) -> torch.Tensor:
        for layer in vision.encoder.layers[depth:]:
            hidden = layer(hidden)
        return vision.post_layernorm(hidden)

    weights = digest_of_tensors([vision.embeddings, *vision.encoder.layers[:depth]])
    values = cache.images("activations", weights, files, below, {"depth": depth, "image_size": read.size})
    return Prepared(model, values, _reading(model, above), frozen=frozen)


def _on_embeddings(model: LinearHeadReward, files: Sequence[File], texts: Sequence[str], cache: "Cache") -> Prepared:
    name = model.config.backbone
    weights = fingerprint(name, ["."], cache.digests) if Path(name).is_dir() else name
    embed = lambda file: model.backbone.embed_images([load(file)])[0]  # noqa: E731
    images = cache.images("embeddings", weights, files, embed, {"transform": str(model.backbone.preprocess)})
    prompts = cache.texts(weights, texts, lambda text: model.backbone.embed_texts([text])[0])

    def rewards(texts: torch.Tensor, images: torch.Tensor, prompt_index: torch.Tensor) -> torch.Tensor:
        return model(images, texts[prompt_index])

    return Prepared(model, images, rewards, prompts)


class Cache:
    """Tensors of frozen parts by the content of what they were computed from, in a folder that runs share."""

    def __init__(self, folder: str | Path, precision: str, show: bool = False):
        self.folder, self.precision, self.show, self.digests = Path(folder), precision, show, Digests(folder)

    def images(self, value: str, weights: str, files: Sequence[File], encode: Callable, about: dict) -> "CachedImages":
        """Return the values of files, computing what is missing."""
        files = list(dict.fromkeys(files))
        keys = [self.digests(file) if isinstance(file, Path) else digest_of_file(file) for file in files]
        store = self._filled(value, weights, keys, lambda at: encode(files[at]), about)
        return CachedImages(store, dict(zip(files, keys)))

    def texts(self, weights: str, texts: Sequence[str], encode: Callable) -> "CachedTexts":
        """Return the values of prompts, computing what is missing."""
        texts = sorted(set(texts))
        return CachedTexts(self._filled("prompts", weights, [*map(digest_of, texts)], lambda at: encode(texts[at]), {}))

    def _filled(self, value: str, weights: str, keys: list[str], encode: Callable, about: dict) -> Store:
        store = Store(
            self.folder, {"value": value, "weights": weights, "precision": self.precision, **about}, self.digests
        )
        try:
            with torch.no_grad():
                store.fill(keys, encode, self.show)
        finally:
            self.digests.save()
        return store


@dataclass
class CachedImages:
    store: Store
    keys: dict[File, str]

    def __call__(self, file: File) -> torch.Tensor:
        return self.store[self.keys[file]]


@dataclass
class CachedTexts:
    store: Store

    def __call__(self, text: str) -> torch.Tensor:
        return self.store[digest_of(text)]
