"""Write files atomically: a file appears complete or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from lit_sft.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that no reader ever sees half of it; text in UTF-8.

    Raises:
        UserError: the folder can't be written to.
    """
    # Not with tempfile, whose files only their owner can read.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"{path}: can't be written: {error.strerror or error}") from error


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table as Parquet, in the same way."""
    import pyarrow.parquet  # imported here, since most files are not tables

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    write_atomically(path, buffer.getvalue())
