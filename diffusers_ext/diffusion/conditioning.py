"""What a base's network is told about its pictures, beside the noisy latents z_t and the timestep t."""

from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True)
class Conditioning:
    """Texts and sizes of B samples.

    text: (B, tokens, width), the embedded caption. pooled: (B, width), one vector for the whole caption. time_ids: (B, 6),
    the picture's original size, corner of its cut, and size (Podell et al. 2023, section 2.2). A base that does not read
    `pooled` or `time_ids` has None there.

    >>> red, blue = Conditioning(torch.zeros(1, 4, 8)), Conditioning(torch.ones(1, 4, 8))
    >>> red.followed_by(blue).text.shape
    torch.Size([2, 4, 8])
    """

    text: torch.Tensor
    pooled: torch.Tensor | None = None
    time_ids: torch.Tensor | None = None

    def followed_by(self, other: "Conditioning") -> "Conditioning":
        """Return the samples of both, these first."""
        pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return Conditioning(
            **{name: None if own is None else torch.cat([own, rest]) for name, (own, rest) in pairs.items()}
        )
