"""Rows of a `datasets.Dataset`: of the Hub, of a folder that save_to_disk wrote, of parquet and Arrow files.

A column of pictures holds the pictures themselves or their paths, of captions any of Arrow's kinds of text or lists of
them. Needs the extra: pip install diffusers_ext[data].
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Literal

from ..errors import InputError
from .arrow_columns import ROLES, column_name, features_of, used_columns
from .files import Columns, File, Row, Rows, captions
from .findings import Finding
from .names import pointer_error
from .snapshots import split_note
from .splits import split_of
from .tables import Record, named_file

ARROW_FILE = b"ARROW1"  # begins a file that lists its tables; a stream begins otherwise


@dataclass(frozen=True, eq=False)
class Cell:
    """A picture inside a data set, undecoded: bytes, or {"bytes": ..., "path": ...}, a path from `folder`."""

    data: Any
    index: int
    column: str
    source: str
    folder: Path = Path()

    @property
    def name(self) -> str:
        return f"{self.column}-{self.index}"

    def open(self, mode: Literal["rb"] = "rb") -> IO[bytes]:
        value = self.data[self.index][self.column]
        if isinstance(value, dict):
            inside = value["bytes"]
            value = inside if inside is not None else (self.folder / value["path"]).read_bytes()
        return BytesIO(value)

    def __str__(self) -> str:
        return f"{self.source}[{self.index}]['{self.column}']"


@dataclass(frozen=True)
class OpenStream:
    """A data set to be read row by row, pictures undecoded: what the columns are called in it, where paths start from."""

    data: Any
    names: Columns
    folder: Path


def open_stream(
    source: str, files: Sequence[Path], columns: Columns, config: str | None = None, cache_dir: str | None = None
) -> OpenStream:
    """Open parquet files, or where there are none the split "train" of a Hub data set."""
    datasets = _datasets(source)
    where: dict[str, Any] = {"path": source, "name": config}
    if files and not (files := _with_rows(files)):
        raise InputError(f"{source}: holds 0 rows; nothing to train on")
    if files:
        features = features_of(_schemas(files), columns)
        names = [escape(str(file)) for file in files]
        where = {"path": "parquet", "data_files": names, "features": features, "columns": list(features)}
    try:
        data = datasets.load_dataset(**where, split="train", streaming=True, cache_dir=cache_dir)
        data = data if data.column_names else data._resolve_features()
    except ImportError:
        raise
    except Exception as error:  # of pyarrow, datasets and the Hub's client, which have many
        raise InputError(f"{source}: {_reason(error)}; give owner/name of a Hub data set, or .parquet files") from None
    if not data.column_names:
        raise InputError(f"{source}: holds no rows; nothing to train on")
    named = used_columns(data.column_names, source, columns)
    for name, role in zip(named, ROLES):
        if not name or role == "caption":
            continue
        _check_pictures(data.features[name], str(files[0]) if files else source, name, role)
        if isinstance(data.features[name], datasets.Image):
            data = data.cast_column(name, datasets.Image(decode=False))
    folder = files[0].parent if files else Path()
    return OpenStream(data.select_columns([name for name in named if name]), named, folder)


def read_hub(name: str, config: str | None, cache_dir: str | None, columns: Columns, limit: int | None) -> Rows:
    """Read the split "train" of a data set on the Hub, or in its cache."""
    try:
        data = _datasets(name).load_dataset(name, config, split="train", cache_dir=cache_dir)
    except (OSError, ValueError, RuntimeError) as error:  # the Hub's errors are of these kinds
        raise InputError(
            f"{name}: {_reason(error)}; no such folder here, and the Hub does not give this data set"
        ) from None
    return _rows(data, name, Path(), columns, limit)


def read_saved(folder: Path, columns: Columns, limit: int | None) -> Rows:
    """Read what save_to_disk wrote: a data set, or several splits of which "train" is read."""
    data = _saved(folder)
    train = _train_name(data, folder)
    rows = _rows(data[train] if train else data, str(folder), Path(), columns, limit)
    rows.notes += split_note(folder, train, [name for name in data if name != train]) if train else []
    return rows


def open_table(source: Path) -> Any:
    """Return the `datasets.Dataset` in a parquet file, in a folder of them, or in what save_to_disk wrote."""
    files = [source] if source.is_file() else sorted(source.rglob("*.parquet"))
    if files:
        return _parquet(files)
    data = _saved(source)
    train = _train_name(data, source)
    return data[train] if train else data


def table_records(path: Path) -> Iterator[Record]:
    """Yield the rows of a parquet file that names files, as those of other tables."""
    _datasets(path)
    from pyarrow.parquet import read_table

    with _readable(path):
        rows = read_table(path).to_pylist()
    for index, values in enumerate(rows):
        yield Record(f"{path}[{index}]", values)


def read_parquet(files: Sequence[Path], columns: Columns, limit: int | None) -> Rows:
    """Read parquet files; paths in them are relative to the first one's folder."""
    return _rows(_parquet(files, columns), str(files[0]), files[0].parent, columns, limit)


def read_arrow(files: Sequence[Path], columns: Columns, limit: int | None) -> Rows:
    """Read Arrow files as `datasets` writes them; paths in them are relative to the first one's folder."""
    datasets = _datasets(files[0])
    tables = {file: _arrow(datasets, file) for file in files}
    features = features_of({file: table.schema for file, table in tables.items()}, columns)
    with _readable(files[0]):
        parts = [datasets.Dataset(table.select(list(features))) for table in tables.values()]
        data = datasets.concatenate_datasets(
            [part if part.features == features else part.cast(features) for part in parts]
        )
    return _rows(data, str(files[0]), files[0].parent, columns, limit)


def _arrow(datasets: Any, file: Path) -> Any:
    """The table in an Arrow file: a stream of tables, as `datasets` writes it, or a file with a list of them."""
    import pyarrow

    with _readable(file), open(file, "rb") as stream:
        if stream.read(len(ARROW_FILE)) == ARROW_FILE:
            return pyarrow.ipc.open_file(file).read_all()
        return datasets.table.MemoryMappedTable.from_file(str(file))


def _parquet(files: Sequence[Path], columns: Columns | None = None) -> Any:
    """The data set in parquet files, without the columns that are not used; all columns where none are named."""
    datasets = _datasets(files[0])
    kept = _with_rows(files)
    if not kept:
        return datasets.Dataset.from_dict({})
    features = features_of(_schemas(kept), columns)
    names = [escape(str(file)) for file in kept]
    with _readable(files[0]):
        try:
            return datasets.Dataset.from_parquet(names, features=features, columns=list(features))
        except Exception:
            check_whole(kept, list(features))
            raise


def check_whole(files: Sequence[Path], columns: Sequence[str | None]) -> None:
    """Raise InputError for the first parquet file that cannot be read to its end."""
    from pyarrow.parquet import ParquetFile

    for file in files:
        with _readable(file):
            for _ in ParquetFile(file).iter_batches(columns=[name for name in columns if name]):
                pass


def _with_rows(files: Sequence[Path]) -> list[Path]:
    """The parquet files that hold rows: `datasets` fails at empty ones."""
    from pyarrow.parquet import read_metadata

    kept = []
    for file in files:
        with _readable(file):
            kept += [file] if read_metadata(file).num_rows else []
    return kept


def _schemas(files: Sequence[Path]) -> dict[Path, Any]:
    from pyarrow.parquet import read_schema

    found = {}
    for file in files:
        with _readable(file):
            found[file] = read_schema(file)
    return found


def _saved(folder: Path) -> Any:
    datasets = _datasets(folder)
    try:
        with _readable(folder):
            return datasets.load_from_disk(str(folder))
    except FileNotFoundError:
        raise InputError(f"{folder}: holds no .parquet files and was not written by save_to_disk") from None


def _train_name(data: Any, source: Path) -> str | None:
    """The name of the split "train", however it is spelt, among those of save_to_disk; None where there are no splits."""
    if not isinstance(data, dict):
        return None
    found = [name for name in data if name == "train"] or [name for name in data if split_of(name) == "train"]
    if len(found) != 1:
        why = f"several splits to train on ({', '.join(found)})" if found else "no split 'train'"
        raise InputError(
            f"{source}: {why}; it has {', '.join(data)}; name the folder of one of them, such as {source}/{next(iter(data), '')}"
        )
    return found[0]


@contextmanager
def _readable(source: Path) -> Iterator[None]:
    """Turn what pyarrow and datasets raise at a file that is not whole into an InputError."""
    try:
        yield
    except (InputError, FileNotFoundError):
        raise
    except Exception as error:  # they have many, without a common ancestor
        kind = source.suffix.lstrip(".") or "data set"
        why = pointer_error(source) or f"not a whole {kind} file ({_reason(error)})"
        raise InputError(f"{source}: {why}") from None


def _reason(error: Exception) -> str:
    """The first line of the error that `datasets` wraps, or of the error itself."""
    cause = error.__cause__ or error
    return next(iter(str(cause).split("\n")), "") or type(cause).__name__


def _rows(data: Any, source: str, folder: Path, columns: Columns, limit: int | None) -> Rows:
    if not len(data):
        return Rows()
    if limit is not None:
        data = data.select(range(min(limit, len(data))))
    roles = zip((columns.image, columns.condition, columns.mask), ("image", "conditioning_image", "mask"))
    files = [_files(data, source, folder, column, role) if column else None for column, role in roles]
    name = column_name(data.column_names, source, columns.caption, "caption")
    rows = Rows()
    for index, value in enumerate(data[name]):
        origin = f"{source}[{index}]"
        try:
            image, condition, mask = (named and named(index, origin) for named in files)
            assert image is not None, "the picture's column is named"
            texts = captions({name: value}, name, origin)
        except InputError as error:
            rows.faults.append(Finding("bad row", str(error)))
        else:
            rows.append(Row(image, texts, condition, origin, mask))
    return rows


def _files(data: Any, source: str, folder: Path, column: str, role: str) -> Callable[[int, str], File]:
    """Return how the file of a row is had, by its index and origin; InputError where it has none."""
    column = column_name(data.column_names, source, column, role)
    datasets = _datasets(source)
    _check_pictures(data.features[column], source, column, role)
    if is_text(data.features[column]):
        names = list(data[column])
        return lambda index, origin: named_file({column: names[index]}, folder, column, role, origin, False)
    null = _null(data, column)
    data = data.select_columns([column])  # or each access would read the other pictures as well
    if isinstance(data.features[column], datasets.Image):
        data = data.cast_column(column, datasets.Image(decode=False))

    def cell(index: int, origin: str) -> File:
        if null[index]:
            raise InputError(f"{origin}: no picture under '{column}'; remove the row")
        return Cell(data, index, column, source, folder)

    return cell


def is_text(feature: Any) -> bool:
    """Say whether a column holds text, in any of the ways that Arrow keeps it."""
    return getattr(feature, "dtype", None) in ("string", "large_string", "string_view")


def _check_pictures(feature: Any, source: str, column: str, role: str) -> None:
    """Raise InputError for a column that holds neither pictures nor their paths."""
    if not (type(feature).__name__ == "Image" or is_text(feature) or _is_picture(feature)):
        raise InputError(
            f"{source}: column '{column}' holds {feature}, neither pictures nor paths; see --{role}_column"
        )


def _is_picture(feature: Any) -> bool:
    """Say whether a column holds the bytes of pictures, or those beside their paths."""
    if isinstance(feature, dict):
        feature = feature.get("bytes")
        if getattr(feature, "dtype", None) == "null":  # all rows have paths
            return True
    return str(getattr(feature, "dtype", "")).startswith(("binary", "large_binary", "binary_view"))


def _null(data: Any, column: str) -> Sequence[bool]:
    """Which rows have no picture, without reading the others."""
    if data._indices is not None:
        data = data.flatten_indices()
    values = data.data.column(column)
    null = [value for chunk in values.chunks for value in chunk.is_null().to_pylist()]
    if not str(values.type).startswith("struct"):
        return null
    fields = [field for field in ("bytes", "path") if values.type.get_field_index(field) >= 0]
    empty = [
        [value for chunk in values.chunks for value in chunk.field(field).is_null().to_pylist()] for field in fields
    ]
    return [none or all(nothing) for none, *nothing in zip(null, *empty)]


def _datasets(source: str | Path) -> Any:
    try:
        import datasets
    except ImportError:
        raise InputError(f"{source}: reading it needs the datasets package; pip install diffusers_ext[data]") from None
    return datasets
