"""A classifier's backbone: named in its configuration with the digest of its weights, loaded when it is asked for."""

from pathlib import Path
from typing import Any, ClassVar

import torch

from .backbones import Backbone, load_backbone
from .errors import InputError


class BackboneOwner:
    """For a model whose configuration names a backbone; `named_by` says under which names, the reference's and the digest's.

    The backbone is neither saved nor trained with it.
    """

    named_by: ClassVar[tuple[str, str]]
    config: Any
    _backbone: Backbone | None = None
    _folder: str | Path | None = None  # from which the model was loaded, beside which its backbone may lie

    @property
    def backbone(self) -> Backbone:
        """What embeds pictures. Raises InputError if none was named, it is gone, or its weights are others than in training."""
        if self._backbone is None:
            name = self.config[self.named_by[0]]
            if name is None:
                raise InputError("this classifier names no backbone: give embeddings, or set classifier.backbone")
            self.backbone = load_backbone(name, self._backbone_device, beside=self._folder)
        assert self._backbone is not None
        return self._backbone

    @backbone.setter
    def backbone(self, backbone: Backbone) -> None:
        digest = self.config[self.named_by[1]]  # None in a classifier saved before there were digests
        if digest and backbone.weights != digest:
            raise InputError(
                f"{backbone.name}: its weights are not those that this classifier was trained on; give the same backbone"
            )
        self._backbone = backbone

    @property
    def _backbone_device(self) -> torch.device:
        return torch.device("cpu")
