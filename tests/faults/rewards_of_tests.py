"""Two rewards that cost nothing, for a training that names them module:function."""

import torch


def smooth(texts, images):
    """Bright pictures."""
    return torch.stack([image.mean() for image in images])


def contrast(texts, images):
    """Pictures of much contrast."""
    return torch.stack([image.std() for image in images])
