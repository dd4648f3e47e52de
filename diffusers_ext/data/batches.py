"""What a training asks of a data set: samples by key, and the loader of one rank's batches."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from ..randomness import Key, MicroBatches, Share
from .buckets import BucketBatches
from .files import Size


class Trainable(Protocol):
    """What `engine.loop` asks of a data set. `Samples` answers for those whose samples can be asked for in any order."""

    def __len__(self) -> int:
        """Samples an epoch; 0 where that is not known."""
        ...

    def loader(self, seed: int, share: Share, **settings: Any) -> DataLoader:
        """Return the loader of a share's micro-batches; settings: of torch's DataLoader."""
        ...


class Samples(Dataset):
    """A data set that answers `len(self)` and `self[(epoch, index)]`, a dictionary with "key": (epoch, index).

    buckets: the size of each sample, where they differ; a micro-batch then has samples of one size.

    >>> class Squares(Samples):
    ...     def __len__(self):
    ...         return 4
    ...     def __getitem__(self, key):
    ...         return {"key": key, "square": torch.tensor(key[1] ** 2)}
    >>> for batch in Squares().loader(seed=0, share=Share(batch_size=2, stop=2)):
    ...     print(batch["square"].tolist())
    [9, 1]
    [0, 4]
    """

    buckets: Sequence[Size] | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, key: Key) -> dict:
        raise NotImplementedError

    def loader(self, seed: int, share: Share, **settings: Any) -> DataLoader:
        """Return the loader of a share's micro-batches, in the order of the seed; settings: of torch's DataLoader."""
        batches = BucketBatches(self.buckets, seed, share) if self.buckets else MicroBatches(len(self), seed, share)
        return DataLoader(self, batch_sampler=batches, collate_fn=collate, **settings)


def collate(samples: list[dict]) -> dict:
    """Stack tensors, list everything else.

    >>> collate([{"key": (0, 3), "value": torch.ones(2)}, {"key": (0, 1), "value": torch.zeros(2)}])["value"].shape
    torch.Size([2, 2])
    """
    batch = {name: [sample[name] for sample in samples] for name in samples[0]}
    return {
        name: torch.stack(values) if isinstance(values[0], torch.Tensor) else values for name, values in batch.items()
    }
