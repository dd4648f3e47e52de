"""ImageReward (Xu et al. 2023, arXiv:2304.05977): how well a picture answers a prompt, as people would judge it.

    r(prompt, image) = (head(h) - mean) / std

h is BLIP's text encoder at [CLS], which reads the prompt and attends to every patch of the image in every layer; head is
linear layers without activations between them, as released. The scale is that of the training set: only differences
under one prompt mean something.

`save_pretrained` copies this file and those it imports beside the weights, and `AutoModel.from_pretrained(folder,
trust_remote_code=True)` runs them where nothing else of their package is installed.

Shapes: P prompts of T tokens, I images, N pairs, L = 1 + patches, W the image encoder's width.
"""

import os
from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import (
    BlipPreTrainedModel,
    BlipTextConfig,
    BlipVisionConfig,
    PreTrainedConfig,
    PreTrainedModel,  # noqa: F401  diffusers looks for a component's base class in its module
)
from transformers import initialization as init

from .image_reward_checkpoint import convert, official_options, read_checkpoint
from .image_reward_files import ImageRewardFiles
from .image_reward_layers import (
    TEXT,
    VISION,
    HeadLinear,
    ImageEncoder,
    ImageRewardOutput,
    PatchAttention,
    PromptAttention,
    PromptEncoder,
    RewardHead,
    records_asked,
)
from .reward_inputs import InputError, check_images, check_prompts, pairs, pixels, wants_gradient
from .reward_values import check_finite


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
        kernel = kwargs.get("attn_implementation")
        if kernel not in (None, "eager", "sdpa"):  # any other name would be downloaded as code
            raise InputError(f"attn_implementation {kernel!r}: there are sdpa, torch's fused kernel, and eager")
        super().__post_init__(**kwargs)


class ImageRewardModel(ImageRewardFiles, BlipPreTrainedModel):
    """ImageReward with its tokenizer: `score(prompts, images)`, or `forward` on tokens and pixels for training.

    >>> config = ImageRewardConfig(
    ...     text_config={'hidden_size': 16, 'intermediate_size': 16, 'num_hidden_layers': 1, 'num_attention_heads': 2},
    ...     vision_config={'hidden_size': 16, 'intermediate_size': 16, 'num_hidden_layers': 1, 'num_attention_heads': 2},
    ... )
    >>> model = ImageRewardModel(config).eval()
    >>> ids, pixels = torch.ones(2, 5, dtype=torch.long), torch.zeros(2, 3, 224, 224)
    >>> model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels).shape
    torch.Size([2, 2])
    """

    config_class = ImageRewardConfig
    base_model_prefix = ""
    differentiable = True
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = (r"mlp\.layers",)  # the head's; those of BLIP's layers are called mlp.fc1, mlp.fc2
    _no_split_modules: ClassVar[list[str]] = [
        "BlipVisionEmbeddings",
        "BlipEncoderLayer",
        "BlipTextEmbeddings",
        "BlipTextLayer",
        "RewardHead",
    ]

    def __init__(self, config: ImageRewardConfig):
        super().__init__(config)
        self.vision_model = ImageEncoder(config.vision_config)
        self.text_encoder = PromptEncoder(config.text_config, add_pooling_layer=False)
        self.mlp = RewardHead([config.text_config.hidden_size, *config.head_sizes])
        for layer in self.vision_model.encoder.layers:  # here, so that a seed keeps giving the same first weights
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

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_encoder.set_input_embeddings(value)

    # ------------------------------------------------------------------ tokens and pixels -> rewards

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        prompt_index: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> torch.Tensor | ImageRewardOutput | tuple:
        """Return the rewards of every prompt with every image, (P, I) float32, or of the pairs named by two indices.

        Args:
            input_ids, attention_mask: (P, T) integers; without a mask, all tokens are read.
            pixel_values: (I, 3, image_size, image_size), as `preprocess` gives them. Each image is encoded once.
            prompt_index, image_index: (N,) integers; the result is then (N,).
            token_type_ids: what BERT's tokenizer returns too; BLIP has no embedding of them, so they are not read.
            output_hidden_states, output_attentions: return an `ImageRewardOutput` with those; default: as the config
                says. Attentions need attn_implementation="eager".
            return_dict: True returns an `ImageRewardOutput` in any case, False a tuple.
        """
        if pixel_values is None:
            raise InputError("give pixel_values too, (I, 3, H, W): model.preprocess(images) makes them")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        asked = records_asked(self.config, output_hidden_states, output_attentions, prompt_index is not None)
        if asked:
            output = self._recorded(input_ids, mask, pixel_values, asked)
        else:
            rewards = self.cross(input_ids, mask, self.encode_images(pixel_values), prompt_index, image_index)
            if return_dict is None:
                return rewards
            output = ImageRewardOutput(rewards)
        return output.to_tuple() if return_dict is False else output

    def _recorded(self, input_ids, attention_mask, pixel_values, asked: dict[str, bool]) -> ImageRewardOutput:
        """`forward` of every prompt with every image, with what the encoders did on the way."""
        images = self.vision_model(pixel_values.to(self.dtype), **asked)
        count = len(images.last_hidden_state)
        texts = self.text_encoder(
            input_ids=input_ids.repeat(count, 1),
            attention_mask=attention_mask.repeat(count, 1),
            encoder_hidden_states=images.last_hidden_state,
            **asked,
        )
        return ImageRewardOutput(
            self._normalised(texts.last_hidden_state).view(count, -1).T,
            texts.hidden_states,
            texts.attentions,
            texts.cross_attentions,
            images.hidden_states,
            images.attentions,
        )

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
        return self._normalised(hidden)

    def _normalised(self, hidden: torch.Tensor) -> torch.Tensor:
        """(N, T, D) -> (N,) float32: the head at [CLS], on the scale of the training set."""
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
        if not isinstance(batch_size, Integral) or batch_size < 1:
            raise InputError(f"batch_size {batch_size!r}: a whole number, 1 at least")
        order, device, rewards = torch.argsort(image_index, stable=True), self._input_device, []
        with torch.set_grad_enabled(wants_gradient(images)):
            text = {name: ids.to(device) for name, ids in self.tokenize(prompts).items()}
            for start in range(0, len(images), batch_size):
                tokens = self.encode_images(self._pixels(images[start : start + batch_size]))
                here = order[(image_index[order] >= start) & (image_index[order] < start + batch_size)]
                for block in here.split(8 * batch_size):
                    prompt, image = prompt_index[block].to(device), image_index[block].to(device) - start
                    rewards.append(self.cross(**text, tokens=tokens, prompt_index=prompt, image_index=image))
            result = torch.cat(rewards).to(device)[torch.argsort(order).to(device)]
        check_finite(result, self.dtype, type(self).__name__, [images[index] for index in image_index.tolist()])
        return result

    def tokenize(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return input_ids and attention_mask, (P, T), padded to the longest and cut at config.max_length."""
        if self.tokenizer is None:
            raise InputError(
                "this ImageRewardModel has no tokenizer; set model.tokenizer = "
                "AutoTokenizer.from_pretrained('bert-base-uncased'), or the folder of another"
            )
        kept = self.tokenizer(
            check_prompts(prompts),
            padding=True,
            truncation=True,
            max_length=self.config.max_length,
            return_tensors="pt",
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
        return torch.stack([pixels(image, size).to(self._input_device) for image in images])

    @property
    def _input_device(self) -> torch.device:
        """Where inputs belong: the weights' device, or where accelerate runs weights that it keeps elsewhere."""
        if self.device.type != "meta":
            return self.device
        hooks = (getattr(module, "_hf_hook", None) for module in self.modules())
        places = (getattr(hook, "execution_device", None) for hook in hooks)
        return torch.device(next((place for place in places if place is not None), "cpu"))

    # ------------------------------------------------------------------ the official file

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
