"""The contrastive objective of image-text models (Radford et al. 2021), on frozen towers' outputs (LiT, Zhai et al. 2022).

Shapes: B pairs of this process, G pairs of all processes, D the width of the embeddings.
"""

import math
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

from ..engine.objective import Objective

MAX_SCALE = 100.0  # of the logits, as in CLIP
LEARNED = "learned.safetensors"


def contrastive_loss(
    images: torch.Tensor,
    texts: torch.Tensor,
    all_images: torch.Tensor,
    all_texts: torch.Tensor,
    same: torch.Tensor,
    first: int,
) -> torch.Tensor:
    """Return the mean over B pairs of −½ [log softmax_j(i·t_j) + log softmax_j(t·i_j)] at the pair's own j, a scalar.

    images, texts (B, D): unit embeddings, images times the logit scale. all_images, all_texts (G, D): those of all
    processes, B from `first` on being ours. same (B, G): where another pair holds the same text or picture, which is no
    negative; these logits are left out.
    """
    own = torch.arange(len(images), device=images.device)
    same = same.index_put((own, own + first), torch.tensor(False, device=same.device))
    rows = (images @ all_texts.T).masked_fill(same, -math.inf), (texts @ all_images.T).masked_fill(same, -math.inf)
    return sum(F.cross_entropy(logits, own + first) for logits in rows) / 2


class ImageTextObjective(Objective):
    """Align pictures with their captions. Negatives are those of the whole step's batch, on all processes.

    model: an open_clip.CustomTextCLIP of a timm vision tower and a Hugging Face text tower, whose vision tower is not
    called: batches bring its pooled output. text_tower: whether the text tower learns too; else batches bring its pooled
    output as well.
    """

    def __init__(self, model: nn.Module, text_tower: bool = False):
        super().__init__()
        self.image_projection, self.text_projection = model.visual.head, model.text.proj
        self.logit_scale = model.logit_scale
        self.text_tower = model.text.transformer.requires_grad_(True) if text_tower else None
        self.pool = (model.text.pooler, model.text.config.pad_token_id)
        self.trainable = {name: module for name, module in self.named_children() if module is not None}

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """batch: what `image_text.captioned.ImageTexts` gives, collated: "image", "text", "same_text" and "same_image".

        "accuracy": the share of the pictures whose own caption is nearest among the batch's.
        """
        scale = self.logit_scale.exp().clamp(max=MAX_SCALE)
        images, texts = self.images(batch["image"]) * scale, self.texts(batch["text"])
        names = torch.stack([batch["same_text"], batch["same_image"]])
        first, (all_images, all_texts, all_names) = _of_all(images, texts, names)
        same = (names[:, :, None] == all_names[:, None, :]).any(0)
        loss = contrastive_loss(images, texts, all_images, all_texts, same, first)
        own = torch.arange(len(images), device=images.device) + first
        right = (images.detach() @ all_texts.detach().T).argmax(1) == own
        return {"loss": loss, "accuracy": right.float().mean(), "logit_scale": scale.detach()}

    def images(self, activations: torch.Tensor) -> torch.Tensor:
        """The vision tower's pooled output -> unit embeddings (N, D)."""
        return F.normalize(self.image_projection(activations).float(), dim=1)

    def texts(self, texts: torch.Tensor) -> torch.Tensor:
        """The text tower's pooled output, or where it learns token ids (N, L), -> unit embeddings (N, D)."""
        if self.text_tower is not None:
            pooler, pad = self.pool
            mask = (texts != pad).long()
            texts = pooler(self.text_tower(input_ids=texts, attention_mask=mask), mask)
        return F.normalize(self.text_projection(texts).float(), dim=1)

    def save(self, folder: Path) -> None:
        """Write what learns as one file; the towers stay where they were read."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, Path(folder) / LEARNED)

    def load(self, folder: Path) -> None:
        """Read back what `save` wrote, in place and strictly."""
        self.load_state_dict(load_file(Path(folder) / LEARNED))


def _of_all(images: torch.Tensor, texts: torch.Tensor, names: torch.Tensor) -> tuple[int, tuple[torch.Tensor, ...]]:
    """Return where ours begin among all processes' pairs, and all images, texts (G, D), with gradients, and names (2, G)."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return 0, (images, texts, names)
    gathered = [torch.cat(all_gather(value.contiguous())) for value in (images, texts)]
    every = [torch.empty_like(names) for _ in range(dist.get_world_size())]
    dist.all_gather(every, names.contiguous())
    return dist.get_rank() * len(images), (*gathered, torch.cat(every, dim=1))
