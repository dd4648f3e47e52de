"""A classifier's backbone: named in its configuration with the digest of its weights, loaded when it is asked for."""

from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from typing_extensions import Self

from ..errors import InputError
from .backbones import Backbone, load_backbone
from .references import overlay_of

if TYPE_CHECKING:
    from diffusers import ModelMixin as Model
else:
    Model = object  # a mixin: the model comes behind it in the bases of a class


def _plain(value: Any) -> Any:
    """A setting as JSON brings it back: numbers rounded, no tuples."""
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return round(float(value), 6) if isinstance(value, (int, float)) else value


class BackboneOwner(Model):
    """For a model whose configuration names a backbone; `named_by` says under which names, the reference's and the digest's.

    It stands before diffusers' ModelMixin in the bases of a class. The backbone is neither saved nor trained with it.
    """

    named_by: ClassVar[tuple[str, str]]
    config: Any
    _backbone: Backbone | None = None
    _folder: str | PathLike | None = None  # from which the model was loaded, beside which its backbone may lie

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike | None, **kwargs: Any) -> Self:
        """Load from a folder or the Hub, as every diffusers model; the backbone may lie beside it."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info, as diffusers has it
        model._folder = pretrained_model_name_or_path
        return loaded

    def _with_backbone(self, backbone: Backbone | None) -> Self:
        """Take the backbone that this model's configuration was made from, and return this model."""
        self._backbone = backbone
        return self

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
        self._check_preparation(backbone)
        self._backbone = backbone

    def _check_preparation(self, backbone: Backbone) -> None:
        """Raise InputError where pictures would be prepared otherwise than in training, as far as that is known."""
        name = self.config[self.named_by[0]] or ""
        stated = dict(self.config.get("prepared") or {})
        if name.startswith("timm:"):
            stated |= overlay_of(name)
        for setting, value in stated.items():
            actual = backbone.prepared.get(setting)
            if _plain(actual) != _plain(value):
                raise InputError(
                    f"{backbone.name}: prepares pictures with {setting} {actual}, this classifier was trained with {value}; "
                    f"give the same settings, as in {name}"
                )

    @property
    def _backbone_device(self) -> torch.device:
        return torch.device("cpu")
