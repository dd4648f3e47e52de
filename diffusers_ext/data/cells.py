"""Rows of a `datasets.Dataset`: of the Hub, of a folder that save_to_disk wrote, of parquet files.

A column of pictures holds the pictures themselves or their paths. Needs the extra: pip install diffusers_ext[data].
"""

from dataclasses import dataclass
from glob import glob
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Literal

from ..errors import InputError
from .files import Columns, File, Row, Rows, captions


@dataclass(frozen=True, eq=False)
class Cell:
    """A picture inside a data set, undecoded: bytes, or {"bytes": ..., "path": ...}."""

    data: Any
    index: int
    column: str
    source: str

    @property
    def name(self) -> str:
        return f"{self.column}-{self.index}"

    def open(self, mode: Literal["rb"] = "rb") -> IO[bytes]:
        value = self.data[self.index][self.column]
        if isinstance(value, dict):
            value = value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()
        return BytesIO(value)

    def __str__(self) -> str:
        return f"{self.source}[{self.index}]['{self.column}']"


def open_stream(
    source: str, columns: Columns, config: str | None = None, cache_dir: str | None = None
) -> tuple[Any, Columns]:
    """Open the split "train" of a Hub data set, or local parquet files, to be read row by row, pictures undecoded.

    Returns the `datasets.IterableDataset` and what the columns are called in it.
    """
    datasets, files = _datasets(source), sorted(glob(source))
    where = {"path": "parquet", "data_files": files} if files else {"path": source, "name": config}
    try:
        data = datasets.load_dataset(**where, split="train", streaming=True, cache_dir=cache_dir)
        data = data if data.column_names else data._resolve_features()
    except (OSError, ValueError) as error:
        message = str(error).splitlines()[0]
        raise InputError(f"{source}: {message}; give owner/name of a Hub data set, or .parquet files") from None
    roles = ("image", "caption", "conditioning_image", "mask")
    names = Columns(*(name and _column(data, source, name, role) for name, role in zip(columns, roles)))
    for name in (names.image, names.condition, names.mask):
        if name and isinstance(data.features[name], datasets.Image):
            data = data.cast_column(name, datasets.Image(decode=False))
    return data.select_columns([name for name in names if name]), names


def read_hub(name: str, config: str | None, cache_dir: str | None, columns: Columns, limit: int | None) -> Rows:
    """Read the split "train" of a data set on the Hub, or in its cache."""
    try:
        data = _datasets(name).load_dataset(name, config, split="train", cache_dir=cache_dir)
    except (OSError, ValueError) as error:  # the Hub's errors are of these kinds
        message = str(error).splitlines()[0]
        raise InputError(f"{name}: {message}; no such folder here, and the Hub does not give this data set") from None
    return _rows(data, name, Path(), columns, limit)


def read_saved(folder: Path, columns: Columns, limit: int | None) -> Rows:
    """Read what save_to_disk wrote: a data set, or several splits of which "train" is read."""
    return _rows(open_table(folder), str(folder), Path(), columns, limit)


def open_table(source: Path) -> Any:
    """Return the `datasets.Dataset` in a parquet file, in a folder of them, or in what save_to_disk wrote."""
    datasets = _datasets(source)
    files = [source] if source.is_file() else sorted(source.rglob("*.parquet"))
    if files:
        return datasets.Dataset.from_parquet([str(file) for file in files])
    try:
        data = datasets.load_from_disk(str(source))
    except FileNotFoundError:
        raise InputError(f"{source}: holds no .parquet files and was not written by save_to_disk") from None
    if isinstance(data, datasets.DatasetDict):
        if "train" not in data:
            raise InputError(f"{source}: no split 'train'; it has {', '.join(data)}; name the folder of one of them")
        data = data["train"]
    return data


def read_parquet(files: list[Path], columns: Columns, limit: int | None) -> Rows:
    """Read parquet files; paths in them are relative to the first one's folder."""
    data = _datasets(files[0]).Dataset.from_parquet([str(file) for file in files])
    return _rows(data, str(files[0]), files[0].parent, columns, limit)


def _rows(data: Any, source: str, folder: Path, columns: Columns, limit: int | None) -> Rows:
    if limit is not None:
        data = data.select(range(min(limit, len(data))))
    images = _files(data, source, folder, columns.image, "image")
    conditions, masks = (
        _files(data, source, folder, column, role) if column else [None] * len(data)
        for column, role in ((columns.condition, "conditioning_image"), (columns.mask, "mask"))
    )
    name = _column(data, source, columns.caption, "caption")
    origins = [f"{source}[{index}]" for index in range(len(data))]
    texts = (captions({name: value}, name, origin) for value, origin in zip(data[name], origins))
    return Rows([Row(*values) for values in zip(images, texts, conditions, origins, masks)])


def _files(data: Any, source: str, folder: Path, column: str, role: str) -> list[File]:
    column = _column(data, source, column, role)
    datasets = _datasets(source)
    if data.features[column] == datasets.Value("string"):
        return [folder / name for name in data[column]]
    data = data.select_columns([column])  # or each access would read the other pictures as well
    if isinstance(data.features[column], datasets.Image):
        data = data.cast_column(column, datasets.Image(decode=False))
    return [Cell(data, index, column, source) for index in range(len(data))]


def _column(data: Any, source: str, column: str, role: str) -> str:
    for name in (column, f"{column}_file_name", *(["file_name"] if column == "image" else [])):
        if name in data.column_names:
            return name
    raise InputError(f"{source}: no column '{column}'; it has {', '.join(data.column_names)}; see --{role}_column")


def _datasets(source: str | Path) -> Any:
    try:
        import datasets
    except ImportError:
        raise InputError(f"{source}: reading it needs the datasets package; pip install diffusers_ext[data]") from None
    return datasets
