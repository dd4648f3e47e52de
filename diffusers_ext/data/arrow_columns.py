"""Which columns of parquet and Arrow files are used, and of what kind they are: the same in all files of one data set.

Needs the extra: pip install diffusers_ext[data].
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .files import Columns

ROLES = ("image", "caption", "conditioning_image", "mask")  # of `Columns`, as the options call them


def used_columns(names: Sequence[str], source: str, columns: Columns) -> Columns:
    """What the columns are called among those of a data set; InputError for one that is missing."""
    found: list[Any] = [name and column_name(names, source, name, role) for name, role in zip(columns, ROLES)]
    return Columns(*found)


def column_name(names: Sequence[str], source: str, column: str, role: str) -> str:
    for name in (column, f"{column}_file_name", *(["file_name"] if column == "image" else [])):
        if name in names:
            return name
    raise InputError(f"{source}: no column '{column}'; it has {', '.join(names)}; see --{role}_column")


def features_of(schemas: Mapping[Path, Any], columns: Columns | None) -> Any:
    """Return the `datasets.Features` of the columns that are used, else of all that `datasets` can read.

    Raises InputError for the first file that lacks one of them or has one in another kind than the files before it.
    """
    from datasets import Features

    first, schema = next(iter(schemas.items()))
    used = set(filter(None, used_columns(schema.names, str(first), columns))) if columns else set(schema.names)
    for file, other in schemas.items():
        if used - set(other.names) if columns else used ^ set(other.names):
            pair = set(schema.names), set(other.names)
            only = [", ".join(sorted(ours - theirs)) or "none" for ours, theirs in (pair, pair[::-1])]
            raise InputError(
                f"{file}: its columns differ from those of {first}, which alone has: {only[0]}; this file alone has: "
                f"{only[1]}; rename them, or name one of the files"
            )
    found = {name: _feature(schemas, name, columns is not None) for name in schema.names if name in used}
    return Features({name: feature for name, feature in found.items() if feature is not None})


def _feature(schemas: Mapping[Path, Any], name: str, needed: bool) -> Any:
    """The feature of a column; None, or InputError where it is needed, for a kind that `datasets` cannot read."""
    import pyarrow
    from datasets import Features

    for file, schema in schemas.items():
        if schema.names.count(name) > 1:
            raise InputError(
                f"{file}: {schema.names.count(name)} columns are called '{name}'; rename or remove all but one"
            )
    fields = {file: schema.field(name) for file, schema in schemas.items()}
    (first, field), *others = [(file, field) for file, field in fields.items() if field.type != pyarrow.null()] or [
        *fields.items()
    ]
    for file, other in others:
        if _kind(other.type) != _kind(field.type):
            raise InputError(
                f"{file}: column '{name}' holds {other.type}, but in {first} it holds {field.type}; write it in one way in "
                "all files, or name one of the files"
            )
    if pyarrow.types.is_dictionary(field.type):
        field = field.with_type(field.type.value_type)
    plain = {pyarrow.string_view(): pyarrow.string(), pyarrow.binary_view(): pyarrow.large_binary()}
    field = field.with_type(plain.get(field.type, field.type))  # streams cannot be shuffled with views
    try:
        return Features.from_arrow_schema(pyarrow.schema([field], schemas[first].metadata))[name]
    except Exception:  # of datasets, for kinds such as maps
        if not needed:
            return None
        raise InputError(
            f"{first}: column '{name}' holds {field.type}; write pictures as bytes or paths, captions as text or lists of it"
        ) from None


def _kind(type_: Any) -> str:
    """What files of one data set must have in common in a column: text, bytes, lists and pictures are kept in several ways."""
    from pyarrow import types

    if types.is_dictionary(type_):
        return _kind(type_.value_type)
    if types.is_struct(type_) and type_.get_field_index("bytes") >= 0:
        return "picture"
    if str(type_).split("<")[0].endswith(("list", "list_view")):
        return f"list of {_kind(type_.value_type)}"
    if types.is_integer(type_) or types.is_floating(type_):
        return "number"
    return re.sub(r"^(large|fixed_size)_|(_view)?(\[.*)?$", "", str(type_))
