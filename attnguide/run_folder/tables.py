"""Reads and appends to CSV files of a run, which several processes may write. Importing this needs no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from attnguide.run_folder.files import append, make_folder, write_atomic

TABLES_LOCK = ".lock"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder's tables, which several processes of one run write."""
    make_folder(folder)
    with FileLock(folder / TABLES_LOCK):
        yield


def read_table(path: str | Path) -> list[dict[str, str]]:
    """Lines of a CSV file with a header, as mappings; empty if the file is missing. A truncated last line is left out.

    Raises:
        ValueError: If the file is not UTF-8 text or not CSV.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file, _fields_of_any_length():
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    return [row for row in rows if None not in row and None not in row.values()]


def table_lines(path: str | Path, columns: Sequence[str]) -> Iterator[list[str]]:
    """Selected columns of a CSV file, streamed line by line, so that memory stays small; nothing if the file is missing.

    Args:
        path: The file.
        columns: Columns in the order of each yielded line; a column that the file lacks gives empty text.
    """
    path = Path(path)
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file, _fields_of_any_length():
        reader = csv.reader(file)
        header = next(reader, [])
        places = [header.index(name) if name in header else len(header) for name in columns]
        for line in reader:
            if len(line) == len(header):
                whole = [*line, ""]
                yield [whole[place] for place in places]


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    """Lift the csv module's limit of 131072 characters a field, which prompts and polygons may exceed."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def append_table(path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Append lines to a CSV file, all or none of them; the header is written with the first.

    Args:
        path: The file; its folder is made.
        columns: Columns of the lines. New columns are inserted into an existing file, with empty cells in earlier lines.
        rows: Column -> value of each line.

    Raises:
        ValueError: If the first column of the file is not the first of ``columns``.
    """
    path, columns = Path(path), list(columns)
    with _locked(path.parent):
        header = _header(path)
        if not header:
            write_atomic(path, _csv_text([columns, *([cell_text(row.get(c)) for c in columns] for row in rows)]))
            return
        if header[0] != columns[0]:
            raise ValueError(f"{path} begins with the column {header[0]!r}, not {columns[0]!r}; it is not of this run.")
        merged = _merge(header, columns)
        if merged != header or not _ends_whole(path):
            _rewrite(path, merged, read_table(path))
        lines = _csv_text([cell_text(row.get(column)) for column in merged] for row in rows)
        append(path, lines.encode())


def keep_rows(path: str | Path, ids: Collection[str], key: Sequence[str] = ()) -> None:
    """Drop duplicate lines of a CSV file and those whose ``id`` is not among ``ids``; leave files without such a column alone.

    Args:
        path: The file; may be missing.
        ids: Ids of the rows to keep.
        key: Columns that identify a line, all columns if empty; of lines that agree in them, the last is kept.
    """
    path = Path(path)
    with _locked(path.parent):
        header = _header(path)
        if "id" not in header:
            return
        kept = [row for row in read_table(path) if row["id"] in ids]
        _rewrite(path, header, without_doubles(kept, key or header))


def without_doubles(rows: Iterable[dict[str, str]], key: Sequence[str]) -> list[dict[str, str]]:
    """Lines without duplicates: of those that agree in ``key``, the last one, in the place of the first."""
    return list({tuple(row.get(column, "") for column in key): row for row in rows}.values())


def cell_text(value: Any) -> str:
    """A value as the text of a CSV cell: empty for ``None``, floats with six digits."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _header(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, io.SEEK_END)
        return file.read(1) == b"\n"


def _rewrite(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the whole file atomically, unless its content would not change."""
    text = _csv_text([columns, *([cell_text(row.get(column)) for column in columns] for row in rows)]).encode()
    if path.read_bytes() != text:
        write_atomic(path, text)


def _merge(header: Sequence[str], columns: Sequence[str]) -> list[str]:
    """``header`` with the new ones of ``columns`` inserted, each after its predecessor in ``columns``."""
    merged = list(header)
    for index, column in enumerate(columns):
        if column not in merged:
            merged.insert(merged.index(columns[index - 1]) + 1 if index else 0, column)
    return merged


def _csv_text(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
