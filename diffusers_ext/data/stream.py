"""A data set that is read while it trains: nothing is stored, nothing is read ahead but a buffer of rows.

Rows come in the order of `datasets`' streaming shuffle under (seed, epoch): shards in a drawn order, then a buffer from
which rows are drawn. Position p of that endless order belongs to the same micro-batch, rank and randomness key whatever
the workers and interruptions, so runs resume exactly; to do so the rows before are read again, but not decoded, from the
start of the epoch where the set's size is known. Every rank reads every row and decodes its own.
"""

import sys
from collections.abc import Iterator
from itertools import count, islice
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..errors import InputError
from ..randomness import Key, Share, generator
from .batches import collate
from .cells import Cell, check_whole, open_stream
from .files import Columns, File, Row, Rows, captions
from .findings import Finding
from .pairs import Pairs
from .preflight import check_turns
from .rows import parquet_files
from .tables import named_file

HEAD = 64  # rows looked at before training: checked, shown, and measured to initialise the hint network


class Stream:
    """The rows of a streamed split "train" after the first `held_out`, endlessly, and samples made of them.

    head, held_out: rows read once, in the order of the source; the head's come again in training. Their faults are the
    rows that cannot be used.
    Raises InputError where the source cannot be opened or read, a column is missing, or no row is left to learn from.
    """

    def __init__(
        self, source: str, columns: Columns, held_out: int, seed: int, buffer: int, on_bad_sample: str, **hub: Any
    ):
        self.source, self.columns, self.seed, self.buffer, self.on_bad = source, columns, seed, buffer, on_bad_sample
        chosen = parquet_files(source, hub.get("config"))
        self.files = chosen.files
        opened = open_stream(source, chosen.files, columns, **hub)
        data, self.names, self.folder = opened.data, opened.names, opened.folder
        first = list(self._read(data.take(held_out + HEAD)))
        self.held_out, self.head = self._rows(first[:held_out], 0), self._rows(first[held_out:], held_out)
        self.head.notes += chosen.notes
        if len(first) <= held_out:
            kept = f", of which --held_out_samples keeps {held_out}" if first and held_out else ""
            raise InputError(f"{source}: holds {len(first)} rows{kept}; nothing to train on")
        self.data = data.skip(held_out)
        known = (data.info.splits or {}).get("train")
        self.size = known.num_examples - held_out if known and known.num_examples else None

    def _read(self, data: Any) -> Iterator[dict]:
        """Yield what `datasets` reads; InputError where that fails, as of a file cut short."""
        try:
            yield from data
        except Exception as error:  # of pyarrow, datasets and the network, without a common ancestor
            check_whole(self.files, self.names)
            raise InputError(f"{self.source}: cannot be read ({type(error).__name__}: {error})") from error

    def _rows(self, records: list[dict], begin: int) -> Rows:
        rows = Rows()
        for index, record in enumerate(records, begin):
            try:
                rows.append(self.row(record, (0, index)))
            except InputError as error:
                rows.faults.append(Finding("bad row", str(error)))
        return rows

    def row(self, record: dict, key: Key) -> Row:
        origin = f"{self.source}[epoch {key[0]}, row {key[1]}]"
        names = self.names
        condition, mask = (self._file(record, name, origin) if name else None for name in (names.condition, names.mask))
        image = self._file(record, names.image, origin)
        return Row(image, captions(record, names.caption, origin), condition, origin, mask)

    def _file(self, record: dict, column: str, origin: str) -> File:
        value = record[column]
        if value is None or (isinstance(value, dict) and value.get("bytes") is None and value.get("path") is None):
            raise InputError(f"{origin}: no picture under '{column}'; remove the row")
        if isinstance(value, str):
            return named_file(record, self.folder, column, "image", origin, False)
        return Cell([record], 0, column, origin, self.folder)

    def records(self, begin: int) -> Iterator[tuple[Key, dict]]:
        """Yield ((epoch, position in it), record) from position `begin` of the endless order on."""
        first, skipped = divmod(begin, self.size) if self.size else (0, begin)
        for epoch in count(first):
            order = self.data.shuffle(
                int(generator(self.seed, "stream", epoch).integers(2**31)), buffer_size=self.buffer
            )
            # Not `for record in order`: inside a loader's worker that reads the worker's share of the shards only.
            for offset, batch in enumerate(self._read(order.iter(batch_size=1))):
                record = {name: values[0] for name, values in batch.items()}
                if skipped:
                    skipped -= 1
                else:
                    yield (epoch, offset), record


class StreamedPairs:
    """The samples that `pairs` makes of a stream's rows, as `engine.loop` asks for them (`batches.Trainable`).

    Under on_bad_sample "skip" the stream's first row stands in for one that cannot be used.
    """

    def __init__(self, stream: Stream, pairs: Pairs):
        self.stream, self.pairs = stream, pairs

    def __len__(self) -> int:
        """Rows an epoch, 0 where the source does not say."""
        return self.stream.size or 0

    def loader(self, seed: int, share: Share, **settings: Any) -> DataLoader:
        """Return the loader of a share's micro-batches, in the stream's own order; settings: of torch's DataLoader."""
        return DataLoader(StreamBatches(self, share), batch_size=None, collate_fn=collate, **settings)

    def sample(self, record: dict, key: Key) -> dict:
        """Return the sample of a row, or of the stream's first where that cannot be used and such are to be skipped."""
        try:
            row = self.stream.row(record, key)
            sample = self.pairs.with_rows({key[1]: row})[key]
            check_turns(row)  # after the decoders, which say what else is wrong
            return sample
        except InputError as error:
            if self.stream.on_bad == "error":
                raise
            print(f"left out: {error}", file=sys.stderr)
            first = next(iter([*self.pairs.rows, *self.stream.head]))
            return self.pairs.with_rows({key[1]: first})[key]


class StreamBatches(IterableDataset):
    """Lists of samples, the micro-batches of one rank, whatever the number of workers."""

    def __init__(self, samples: StreamedPairs, share: Share):
        self.samples, self.share = samples, share

    def __iter__(self) -> Iterator[list[dict]]:
        worker = get_worker_info()
        turn, turns = (worker.id, worker.num_workers) if worker else (0, 1)  # the loader asks each worker in turn
        micros, size = self.share.micro, self.share.batch_size
        records = self.samples.stream.records(micros.start * self.share.ranks * size)
        for micro in micros:
            for rank in range(self.share.ranks):
                chunk = list(islice(records, size))
                if rank == self.share.rank and (micro - micros.start) % turns == turn:
                    yield [self.samples.sample(record, key) for key, record in chunk]
