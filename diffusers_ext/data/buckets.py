"""The order of samples whose pictures have several sizes: every micro-batch has one of them."""

from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from ..randomness import Key, Share, generator


class BucketBatches:
    """Yield the keys of one rank's micro-batches, as `MicroBatches` does.

    buckets: each sample's bucket. A bucket b of N_b samples is an endless stream of its own: position p holds sample
    perm_eb[p mod N_b] of epoch e = p div N_b, and its k-th batch takes positions [k·B, (k+1)·B). Epoch e of the whole
    set is the batches completed by then and not before, k from floor(N_b·e / B) to floor(N_b·(e+1) / B), of all
    buckets, shuffled under (seed, e). So no batch is partial, no sample is left out or comes more often than others,
    and the q-th batch is a function of (seed, B, q) alone: micro-batch m of rank r is q = m·ranks + r.

    >>> from ..randomness import Share
    >>> sizes = [(64, 64), (64, 64), (96, 48), (96, 48)]
    >>> for keys in BucketBatches(sizes, seed=0, share=Share(batch_size=2, stop=2)):
    ...     print({sizes[index] for epoch, index in keys})
    {(64, 64)}
    {(96, 48)}
    """

    def __init__(self, buckets: Sequence[Hashable], seed: int, share: Share):
        assert len(buckets) > 0
        self.samples, self.seed, self.share, self.batch_size = len(buckets), seed, share, share.batch_size
        names = {bucket: number for number, bucket in enumerate(dict.fromkeys(buckets))}
        of_sample = np.array([names[bucket] for bucket in buckets])
        self.members = [np.flatnonzero(of_sample == number) for number in range(len(names))]
        self._order = lru_cache(4 * len(names))(self._draw_order)
        self._plan = lru_cache(2)(self._draw_plan)

    def __len__(self) -> int:
        return len(self.share.micro)

    def __iter__(self) -> Iterator[list[Key]]:
        for micro in self.share.micro:
            bucket, batch = self._batch(micro * self.share.ranks + self.share.rank)
            first = batch * self.batch_size
            yield [self._key(bucket, position) for position in range(first, first + self.batch_size)]

    def _batch(self, number: int) -> tuple[int, int]:
        """Return (bucket, which of its batches) of the number-th batch of all."""
        epoch = number * self.batch_size // self.samples  # a lower bound: floors only delay batches
        while self._completed(epoch + 1).sum() <= number:
            epoch += 1
        bucket, batch = self._plan(epoch)[number - self._completed(epoch).sum()]
        return int(bucket), int(batch)

    def _completed(self, epoch: int) -> np.ndarray:
        """Batches that each bucket has completed when `epoch` epochs are over."""
        return np.array([len(members) * epoch // self.batch_size for members in self.members])

    def _key(self, bucket: int, position: int) -> Key:
        epoch, offset = divmod(position, len(self.members[bucket]))
        return epoch, int(self._order(bucket, epoch)[offset])

    def _draw_plan(self, epoch: int) -> np.ndarray:
        """The (bucket, batch) pairs of an epoch in their order: (batches, 2)."""
        ranges = zip(self._completed(epoch), self._completed(epoch + 1))
        pairs = [(bucket, batch) for bucket, (low, high) in enumerate(ranges) for batch in range(low, high)]
        return generator(self.seed, "buckets", epoch).permutation(np.array(pairs))

    def _draw_order(self, bucket: int, epoch: int) -> np.ndarray:
        return generator(self.seed, "order", epoch, bucket).permutation(self.members[bucket])
