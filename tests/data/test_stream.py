"""A data set that is read while training: the same rows at the same steps, whatever reads them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from control_script import arguments, call, losses, refusal
from torch.utils.data import DataLoader

from diffusers_ext.data.files import Columns
from diffusers_ext.data.pairs import Pairs
from diffusers_ext.data.stream import Stream, StreamBatches, StreamedPairs
from diffusers_ext.engine.run_folder import read_metrics
from diffusers_ext.errors import InputError
from diffusers_ext.randomness import Share
from diffusers_ext.toy import circles as fill50k

datasets = pytest.importorskip("datasets")
COUNT, HELD_OUT = 50, 6


@pytest.fixture(scope="module")
def parquet(tmp_path_factory) -> Path:
    """Three parquet files of circles, pictures inside."""
    folder = fill50k.write(tmp_path_factory.mktemp("stream") / "circles", count=COUNT, size=64)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    for part in range(3):
        chosen = rows[part::3]
        values = {
            "image": [{"bytes": (folder / row["file_name"]).read_bytes()} for row in chosen],
            "conditioning_image": [
                {"bytes": (folder / row["conditioning_image_file_name"]).read_bytes()} for row in chosen
            ],
            "text": [row["text"] for row in chosen],
        }
        features = datasets.Features(
            image=datasets.Image(), conditioning_image=datasets.Image(), text=datasets.Value("string")
        )
        datasets.Dataset.from_dict(values, features=features).to_parquet(folder.parent / f"part-{part}.parquet")
    return folder.parent / "part-*.parquet"


def stream(parquet, on_bad_sample="error", columns=("image", "text", "conditioning_image")) -> Stream:
    return Stream(str(parquet), Columns(*columns), HELD_OUT, 0, buffer=8, on_bad_sample=on_bad_sample)


def read(made: Stream, share: Share, workers: int = 0) -> list[list[dict]]:
    batches = StreamBatches(StreamedPairs(made, Pairs([], 64, seed=0)), share)
    return list(DataLoader(batches, batch_size=None, num_workers=workers, collate_fn=lambda batch: batch))


def keys(batches: list[list[dict]]) -> list:
    return [[tuple(sample["key"]) for sample in batch] for batch in batches]


def texts(batches: list[list[dict]]) -> list[str]:
    return [sample["text"] for batch in batches for sample in batch]


def test_every_row_once_an_epoch_and_none_that_is_held_out(parquet):
    made, size = stream(parquet), COUNT - HELD_OUT
    seen = read(made, Share(4, 2 * size // 4))
    order = [key for batch in keys(seen) for key in batch]
    assert order == [(epoch, offset) for epoch in (0, 1) for offset in range(size)]
    aside = {row.text for row in made.held_out}
    first, second = texts(seen)[:size], texts(seen)[size:]
    assert sorted(first) == sorted(second) and first != second and len(made.held_out) == HELD_OUT
    assert not aside & set(first)


def test_samples_are_those_of_a_data_set_at_rest(parquet):
    made = stream(parquet)
    (sample,) = read(made, Share(1, 1))[0]
    row = next(row for row in [*made.head] if row.text == sample["text"])
    again = Pairs([row], 64, seed=0)[0, 0]
    assert torch.equal(sample["pixel_values"], again["pixel_values"])
    assert torch.equal(sample["conditioning_pixel_values"], again["conditioning_pixel_values"])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(parquet, workers):
    alone, split = (
        read(stream(parquet), Share(2, 4, accumulation=3)),
        read(stream(parquet), Share(2, 4, accumulation=3), workers=workers),
    )
    assert keys(alone) == keys(split)
    assert all(torch.equal(a["pixel_values"], b["pixel_values"]) for x, y in zip(alone, split) for a, b in zip(x, y))


def test_ranks_share_the_steps_of_one(parquet):
    one = keys(read(stream(parquet), Share(4, 5)))
    two = [keys(read(stream(parquet), Share(2, 5, ranks=2, rank=rank))) for rank in range(2)]
    assert one == [first + second for first, second in zip(*two)]


def test_later_steps_alone_are_the_same(parquet):
    whole = read(stream(parquet), Share(4, 9, accumulation=2))
    tail = read(stream(parquet), Share(4, 9, start=6, accumulation=2))
    assert keys(whole)[12:] == keys(tail) and texts(whole[12:]) == texts(tail)


def test_a_bad_row_ends_the_run_by_name_or_is_replaced(parquet, capsys):
    def spoil(made):
        whole = made.data
        made.data = whole.map(lambda row, index: {**row, "image": {"bytes": b"x", "path": None}} if index == 3 else row,
                              with_indices=True, features=whole.features)  # fmt: skip
        return made

    span = Share(4, (COUNT - HELD_OUT) // 4)
    with pytest.raises(InputError, match=r"\['image'\]: cannot be read"):
        read(spoil(stream(parquet)), span)
    made = spoil(stream(parquet, "skip"))
    assert len(texts(read(made, span))) == COUNT - HELD_OUT
    assert capsys.readouterr().err.count("left out: ") == 1


def test_a_missing_column_is_named_before_training(parquet):
    with pytest.raises(InputError, match="no column 'edges'; it has image, conditioning_image, text"):
        stream(parquet, columns=("image", "text", "edges"))
    with pytest.raises(InputError, match=r"give owner/name of a Hub data set, or \.parquet files"):
        stream("nobody/nothing")


def test_a_run_streams_and_resumes_exactly(untrained, parquet, tmp_path):
    more = ["--streaming", "--train_batch_size", 2, "--checkpointing_steps", 3, "--logging_steps", 1]
    given = [*more, "--held_out_samples", HELD_OUT, "--shuffle_buffer", 8]
    straight, halted = tmp_path / "straight", tmp_path / "halted"
    call(*arguments(untrained, parquet, straight, *given, "--max_train_steps", 6))
    call(*arguments(untrained, parquet, halted, *given, "--max_train_steps", 3))
    call(*arguments(untrained, parquet, halted, *given, "--max_train_steps", 6, "--resume_from_checkpoint", "latest"))
    assert losses(halted) == losses(straight) and len(losses(straight)) == 6
    assert "gap" in read_metrics(straight)[-1] and np.isfinite(read_metrics(straight)[-1]["gap"])
    assert "streamed" in (straight / "README.md").read_text()


def test_what_a_stream_cannot_do_is_refused(untrained, parquet, tmp_path):
    given = arguments(untrained, parquet, tmp_path / "out", "--streaming")
    assert "--streaming needs --max_train_steps" in refusal(*given)
    given += ["--max_train_steps", "2"]
    assert "cannot look ahead" in refusal(*given, "--aspect_buckets")
    assert "leave out --streaming" in refusal(*given, "--encoder_cache_dir", tmp_path / "cache")
