"""Read parquet tables whose sizes were checked before anything is unpacked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.documents import require_file
from interp.errors import InputError

MAX_VALUES = 50_000_000
"""Rows by columns; the largest table of this project has a millionth of the rows that would take."""
MAX_TABLE_BYTES = 2**30


def read_parquet(path: Path) -> pd.DataFrame:
    """The table of a parquet file, whose sizes are checked before it is unpacked.

    Raises:
        InputError: missing, damaged or too large.
    """
    import pyarrow.parquet

    require_file(path, "a parquet file")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            metadata = file.metadata
            n_bytes = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
            check_size(path, metadata.num_rows, metadata.num_columns, n_bytes)
            texts = [f.name for f in file.schema_arrow if pyarrow.types.is_string(f.type)]
        # A text that is there a million times is in the file once: it is measured before it is copied.
        columns = pyarrow.parquet.read_table(path, read_dictionary=texts, use_threads=False)
        check_size(path, columns.num_rows, columns.num_columns, sum(map(_unpacked_bytes, columns.columns)))
        table = pyarrow.parquet.read_table(path, use_threads=False)
        table.validate(full=True)  # that texts are UTF-8, which pandas only finds out when it looks at one
        return table.to_pandas()
    except InputError:
        raise
    except Exception as error:  # pyarrow believes what the file says of itself: a KeyError, an OverflowError …
        found_error = str(error).split("\n")[0]
        raise InputError(
            f"{path} cannot be read as a parquet table ({type(error).__name__}: {found_error})",
            "a table as it was written",
            "Write or copy it again",
        ) from error


def _unpacked_bytes(column: Any) -> int:
    """How large a column is whose texts are still in a dictionary."""
    import pyarrow.compute

    if not pyarrow.types.is_dictionary(column.type):
        return int(column.nbytes)
    total = 0
    for chunk in column.chunks:
        lengths = pyarrow.compute.binary_length(chunk.dictionary).to_numpy(zero_copy_only=False)
        indices = chunk.indices.drop_null().to_numpy(zero_copy_only=False)
        total += int(np.nansum(lengths[indices])) if len(indices) else 0
    return total


def check_size(path: Path, rows: int, columns: int, n_bytes: int) -> None:
    """Raise `InputError` where a table is larger than any that this project makes."""
    if rows * columns > MAX_VALUES or n_bytes > MAX_TABLE_BYTES:
        raise InputError(
            f"{path} holds {rows:,} rows of {columns:,} columns, {n_bytes:,} bytes",
            f"at most {MAX_VALUES:,} values and {MAX_TABLE_BYTES:,} bytes",
        )
