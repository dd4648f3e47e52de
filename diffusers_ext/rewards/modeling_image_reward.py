"""ImageReward (Xu et al. 2023, arXiv:2304.05977): how well a picture answers a prompt, as people would judge it.

    r(prompt, image) = (head(h) - mean) / std

h is BLIP's text encoder at [CLS], which reads the prompt and attends to every patch of the image in every layer; head is
linear layers without activations between them, as released. The scale is that of the training set: only differences
under one prompt mean something.

`save_pretrained` copies this file and the three it imports beside the weights, and `AutoModel.from_pretrained(folder,
trust_remote_code=True)` runs them where nothing else of their package is installed.

Shapes: P prompts of T tokens, I images, N pairs, L = 1 + patches, W the image encoder's width.
"""

import os
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import create_repo, file_exists, upload_folder
from torch import nn
from transformers import (
    BlipPreTrainedModel,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    PreTrainedConfig,
    PreTrainedModel,  # noqa: F401  diffusers looks for a component's base class in its module
    PreTrainedTokenizerFast,
)
from transformers import initialization as init
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention
from transformers.utils import cached_file

from .image_reward_checkpoint import convert, official_options, read_checkpoint
from .image_reward_hub import card_of, fetch_tokenizer
from .reward_inputs import InputError, check_finite, check_images, check_prompts, pairs, pixels, wants_gradient

TEXT = {"num_attention_heads": 12, "is_decoder": True, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "layer_norm_eps": 1e-6,
    "initializer_range": 0.02,
}
HUB = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class ImageRewardConfig(PreTrainedConfig):
    """The shape of the two encoders and of the head, and what is done with its output.

    text_config, vision_config: BLIP's, as dicts or configs; what a dict leaves out is the released model's.
    head_sizes: widths between the linear layers. max_length: tokens of a prompt that are read, 35 in the released
    model; position embeddings allow 512. reward_mean, reward_std: of the raw output on the training set.
    """

    model_type = "image_reward"
    sub_configs = {"text_config": BlipTextConfig, "vision_config": BlipVisionConfig}  # noqa: RUF012

    text_config: Any = None
    vision_config: Any = None
    head_sizes: tuple[int, ...] | list[int] = (1024, 128, 64, 16)
    max_length: int = 35
    reward_mean: float = 0.16717362830052426
    reward_std: float = 1.0333394966054072
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        if not isinstance(self.text_config, BlipTextConfig):
            self.text_config = BlipTextConfig(**{**TEXT, **(self.text_config or {})})
        if not isinstance(self.vision_config, BlipVisionConfig):
            self.vision_config = BlipVisionConfig(**{**VISION, **(self.vision_config or {})})
        self.text_config.encoder_hidden_size = self.vision_config.hidden_size
        if not 2 <= self.max_length <= self.text_config.max_position_embeddings:
            raise InputError(
                f"max_length {self.max_length}: give 2 to {self.text_config.max_position_embeddings} tokens"
            )
        super().__post_init__(**kwargs)


class PatchAttention(BlipAttention):
    """BLIP's attention over patches through torch's fused kernel."""

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> tuple[torch.Tensor, None]:
        images, tokens, _ = hidden_states.shape
        query, key, value = self.qkv(hidden_states).view(images, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        dropout = self.dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.projection(attended.transpose(1, 2).reshape(hidden_states.shape)), None


class PromptAttention(BlipTextSelfAttention):
    """BLIP's attention of words to words, or of words to patches, through torch's fused kernel.

    (N, T, D) words may attend to the (M, L, W) patches of fewer images, N = M x prompts per image, sorted by image: an
    image's prompts then share its keys and values, computed once.
    """

    def forward(
        self, hidden_states, attention_mask=None, encoder_hidden_states=None, **kwargs
    ) -> tuple[torch.Tensor, None]:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            projected.reshape(len(source), -1, self.num_attention_heads, self.attention_head_size).transpose(1, 2)
            for projected in (self.query(hidden_states), self.key(source), self.value(source))
        )
        mask = attention_mask if encoder_hidden_states is None else None
        dropout = self.dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return attended.transpose(1, 2).reshape(*hidden_states.shape[:2], self.all_head_size), None


class HeadLinear(nn.Linear):
    """A linear layer of the head, named apart because it is initialised apart."""


class RewardHead(nn.Module):
    """Linear layers with dropout between them: (N, D) -> (N,).

    Computed in float64 whatever the weights are in: in float32 these five layers would round more than all that comes
    before them, and the work is nothing.
    """

    def __init__(self, sizes: Sequence[int]):
        super().__init__()
        first, *between, last = [HeadLinear(*pair) for pair in zip(sizes, [*sizes[1:], 1])]
        dropouts = [0.2, 0.2, 0.1]  # after the first layers; none before the last two, as released
        modules = [first]
        for position, linear in enumerate(between):
            modules += [nn.Dropout(dropouts[position]), linear] if position < len(dropouts) else [linear]
        self.layers = nn.Sequential(*modules, last)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        kind = torch.float32 if features.device.type == "mps" else torch.float64  # MPS has none
        features = features.to(kind)
        with torch.autocast(features.device.type, enabled=False):
            for layer in self.layers:
                if isinstance(layer, nn.Linear):
                    features = F.linear(features, layer.weight.to(kind), layer.bias.to(kind))
                else:
                    features = layer(features)
        return features.squeeze(1)


class ImageRewardModel(BlipPreTrainedModel):
    """ImageReward with its tokenizer: `score(prompts, images)`, or `forward` on tokens and pixels for training."""

    config_class = ImageRewardConfig
    base_model_prefix = ""
    differentiable = True
    _keep_in_fp32_modules_strict = ("mlp",)

    def __init__(self, config: ImageRewardConfig):
        super().__init__(config)
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = BlipTextModel(config.text_config, add_pooling_layer=False)
        self.mlp = RewardHead([config.text_config.hidden_size, *config.head_sizes])
        for layer in self.vision_model.encoder.layers:
            layer.self_attn = PatchAttention(config.vision_config)
        for layer in self.text_encoder.encoder.layer:
            layer.attention.self = PromptAttention(config.text_config, is_cross_attention=False)
            layer.crossattention.self = PromptAttention(config.text_config, is_cross_attention=True)
        self.tokenizer = None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if not isinstance(module, HeadLinear):
            return super()._init_weights(module)
        # The official initialisation, deviation 1/769 in every layer, starts training on a plateau: the rewards of a
        # batch differ by 1e-10. This one keeps the features' scale.
        init.normal_(module.weight, std=module.in_features**-0.5)
        init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_encoder.get_input_embeddings()

    # ------------------------------------------------------------------ tokens and pixels -> rewards

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pixel_values: torch.Tensor,
        prompt_index: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the rewards of every prompt with every image, (P, I) float32, or of the pairs named by two indices.

        Args:
            input_ids, attention_mask: (P, T) integers.
            pixel_values: (I, 3, image_size, image_size), as `preprocess` gives them. Each image is encoded once.
            prompt_index, image_index: (N,) integers; the result is then (N,).
        """
        return self.cross(input_ids, attention_mask, self.encode_images(pixel_values), prompt_index, image_index)

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(I, 3, image_size, image_size) -> (I, L, W), what `cross` takes."""
        return self.vision_model(pixel_values.to(self.dtype)).last_hidden_state

    def cross(self, input_ids, attention_mask, tokens, prompt_index=None, image_index=None) -> torch.Tensor:
        """`forward` from encoded images, (I, L, W)."""
        if prompt_index is None:
            images = len(tokens)
            rewards = self._read(input_ids.repeat(images, 1), attention_mask.repeat(images, 1), tokens)
            return rewards.view(images, -1).T
        # Images that are asked about equally often go together, so that the prompts of each share its keys and values.
        counts = torch.bincount(image_index, minlength=len(tokens))
        by_image = torch.argsort(image_index, stable=True)
        asked = counts[image_index[by_image]]
        rewards, pairs = [], []
        for count in counts[counts > 0].unique():
            pair = by_image[asked == count]
            prompt = prompt_index[pair]
            rewards.append(self._read(input_ids[prompt], attention_mask[prompt], tokens[counts == count]))
            pairs.append(pair)
        return torch.cat(rewards)[torch.argsort(torch.cat(pairs))]

    def _read(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Rewards of N = M x P prompts, sorted by image, on M images: (N,) float32."""
        hidden = self.text_encoder(
            input_ids=input_ids, attention_mask=attention_mask, encoder_hidden_states=tokens
        ).last_hidden_state
        return ((self.mlp(hidden[:, 0]) - self.config.reward_mean) / self.config.reward_std).float()

    # ------------------------------------------------------------------ prompts and images -> rewards

    def score(self, prompts: str | Sequence[str], images: Any, batch_size: int = 16) -> torch.Tensor:
        """Return the reward of each pair, (N,) float32 on the model's device; higher is better.

        Args:
            prompts: N texts, or one for all images. Tokens beyond config.max_length are not read.
            images: N images, or one for all prompts: PIL images of any mode (turned as EXIF says, transparency over
                white) or paths to such; or tensors, (N, 3, H, W) or a list of (3, H, W), float in [0, 1] or uint8. A
                float tensor that requires a gradient gets one; without, nothing is kept for a backward pass.
            batch_size: images encoded at a time; it bounds the memory, not the result.

        Equal prompts, and images that are the same object, are encoded once. Raises InputError where an input cannot
        be used, or a reward is not finite.
        """
        prompts, images = pairs(prompts, images)
        texts = list(dict.fromkeys(prompts))
        distinct = {id(image): image for image in images}
        text_of = {text: index for index, text in enumerate(texts)}
        image_of = {key: index for index, key in enumerate(distinct)}
        prompt_index = torch.tensor([text_of[prompt] for prompt in prompts])
        image_index = torch.tensor([image_of[id(image)] for image in images])
        return self._score(texts, list(distinct.values()), prompt_index, image_index, batch_size)

    def score_matrix(self, prompts: Sequence[str], images: Any, batch_size: int = 16) -> torch.Tensor:
        """Return the reward of every prompt with every image, (P, I) float32; arguments as in `score`."""
        prompts, images = check_prompts(prompts), check_images(images)
        prompt_index = torch.arange(len(prompts)).repeat(len(images))
        image_index = torch.arange(len(images)).repeat_interleave(len(prompts))
        return self._score(prompts, images, prompt_index, image_index, batch_size).view(len(images), -1).T

    def _score(self, prompts, images, prompt_index, image_index, batch_size) -> torch.Tensor:
        order = torch.argsort(image_index, stable=True)
        rewards = []
        with torch.set_grad_enabled(wants_gradient(images)):
            text = {name: ids.to(self.device) for name, ids in self.tokenize(prompts).items()}
            for start in range(0, len(images), batch_size):
                tokens = self.encode_images(self._pixels(images[start : start + batch_size]))
                here = order[(image_index[order] >= start) & (image_index[order] < start + batch_size)]
                for block in here.split(8 * batch_size):
                    prompt, image = prompt_index[block].to(self.device), image_index[block].to(self.device) - start
                    rewards.append(self.cross(**text, tokens=tokens, prompt_index=prompt, image_index=image))
            result = torch.cat(rewards)[torch.argsort(order).to(self.device)]
        check_finite(result, self.dtype)
        return result

    def tokenize(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return input_ids and attention_mask, (P, T), padded to the longest and cut at config.max_length."""
        if self.tokenizer is None:
            raise InputError(
                "this ImageRewardModel has no tokenizer; set model.tokenizer = "
                "AutoTokenizer.from_pretrained('bert-base-uncased'), or the folder of another"
            )
        kept = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=self.config.max_length, return_tensors="pt"
        )
        return {"input_ids": kept["input_ids"], "attention_mask": kept["attention_mask"]}

    def preprocess(self, images: Any) -> torch.Tensor:
        """Return (I, 3, image_size, image_size) float32 on the model's device: resized, cut to the middle, normalised.

        Images as in `score`. PIL images give what the official preprocessing gives, bit for bit; tensors are resized by
        torch with antialiasing, without the rounding to 8 bits, and carry gradients.
        """
        return self._pixels(check_images(images))

    def _pixels(self, images: list) -> torch.Tensor:
        size = self.config.vision_config.image_size
        return torch.stack([pixels(image, size).to(self.device) for image in images])

    # ------------------------------------------------------------------ files

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load model and tokenizer from a folder or the Hub; arguments are those of transformers."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        hub = {name: kwargs[name] for name in HUB if kwargs.get(name) is not None}
        name = "tokenizer_config.json"
        fetch_tokenizer(pretrained_model_name_or_path)
        if cached_file(pretrained_model_name_or_path, name, **hub, _raise_exceptions_for_missing_entries=False):
            # AutoTokenizer would read the config first, and ask whether to run the code that it names.
            model.tokenizer = PreTrainedTokenizerFast.from_pretrained(pretrained_model_name_or_path, **hub)
        return loaded

    def save_pretrained(self, save_directory, *args, push_to_hub: bool = False, **kwargs) -> None:
        """Save weights, config, tokenizer and this file; arguments are those of transformers."""
        hub = {name: kwargs.pop(name) for name in ("repo_id", "private", "commit_message") if name in kwargs}
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)
        if push_to_hub:  # after the tokenizer, so that it is uploaded too
            self.push_to_hub(hub.pop("repo_id", os.path.basename(save_directory)), token=kwargs.get("token"), **hub)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None, **upload) -> str:
        """Upload what `save_pretrained` writes, and a card where the repository has none; return its address.

        The card is that of the folder the model came from, if its weights are still those. upload: arguments of
        `huggingface_hub.upload_folder`, such as commit_message and create_pr.
        """
        repository = create_repo(repo_id, private=private, token=token, exist_ok=True)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            if not file_exists(repository.repo_id, "README.md", token=token):
                card_of(self, repository.repo_id).save(os.path.join(folder, "README.md"))
            upload_folder(repo_id=repository.repo_id, folder_path=folder, token=token, **upload)
        return str(repository)

    @classmethod
    def from_official_checkpoint(
        cls,
        path_or_state_dict: str | os.PathLike | dict[str, torch.Tensor],
        text_config: dict | None = None,
        vision_config: dict | None = None,
        tokenizer: Any = None,
    ) -> "ImageRewardModel":
        """Return the model of a released ImageReward.pt, or of a checkpoint that the official training wrote.

        Args:
            path_or_state_dict: the file, read with weights_only=True, or its contents. Names may begin with "module.".
            text_config: what med_config.json holds, where it is not the released one.
            vision_config: {"width", "depth", "heads", "patch", "image_size"}, where it is not ViT-L/16 at 224.
            tokenizer: BERT's, uncased, to be saved along; without, set `model.tokenizer` before `score`.

        Raises InputError if the file cannot be read, or naming the tensors missing, unexpected or of another shape.
        """
        state = read_checkpoint(path_or_state_dict)
        text_config, vision_config = official_options(text_config, vision_config)
        config = ImageRewardConfig(text_config=text_config, vision_config=vision_config)
        with torch.device("meta"):
            model = cls(config)
        model.load_state_dict(convert(state, model.state_dict()), strict=True, assign=True)
        positions = torch.arange(config.text_config.max_position_embeddings).unsqueeze(0)
        model.text_encoder.embeddings.position_ids = positions  # a buffer that no checkpoint holds
        model.tokenizer = tokenizer
        return model.eval()


ImageRewardConfig.register_for_auto_class()
ImageRewardModel.register_for_auto_class("AutoModel")
