"""Rows of Parquet files, streamed: one row group is open at a time, and a few hundred rows of it in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO, Any

from megatron_slw.config.errors import ConfigError, show

_ROWS = 256


def parquet_rows(path: str, raw: IO[bytes], keys: Sequence[str], first: int = 0) -> Iterator[tuple[bytes | None, ...]]:
    """Yield the bytes under each of `keys` in every row from row `first` (counted from 0); null gives None.

    Raises:
        ConfigError: no Parquet file, a damaged one, or a column that is missing or holds no text.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(raw, pre_buffer=False)
        _check_columns(path, file.schema_arrow, keys)
        start = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if start + rows > first:
                yield from _group_rows(file, group, keys, max(first - start, 0))
            start += rows
    except (OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path} cannot be read: {reason}.") from None


def _group_rows(file: Any, group: int, keys: Sequence[str], first: int) -> Iterator[tuple[bytes | None, ...]]:
    """The rows of one row group."""
    import pyarrow

    for batch in file.iter_batches(_ROWS, row_groups=[group], columns=list(keys), use_threads=False):
        if first >= batch.num_rows:
            first -= batch.num_rows
            continue
        columns = []
        for key in keys:
            column = batch.column(key)
            if pyarrow.types.is_dictionary(column.type):
                column = column.dictionary_decode()
            # As bytes: a writer may have stored text that is not UTF-8, and that is for --on-error to deal with.
            columns.append(column.cast(pyarrow.large_binary()).to_pylist())
        yield from list(zip(*columns, strict=True))[first:]
        first = 0


def _check_columns(path: str, schema: Any, keys: Sequence[str]) -> None:
    import pyarrow

    for key in keys:
        if key not in schema.names:
            raise ConfigError(f'{path} has no column "{key}" (it has {show(schema.names)}); see --json-keys.')
        kind = schema.field(key).type
        if pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        tests = (pyarrow.types.is_string, pyarrow.types.is_large_string)
        if not any(test(kind) for test in (*tests, pyarrow.types.is_binary, pyarrow.types.is_large_binary)):
            raise ConfigError(f'{path}: column "{key}" holds {kind}, not text; see --json-keys.')
