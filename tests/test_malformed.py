"""500 malformed files: each is read right or refused in one line that names the file, and no row is lost in silence."""

from __future__ import annotations

import random
from pathlib import Path

import malformed
import pytest
from malformed import Case

from lit_sft.data.readers import read_documents
from lit_sft.errors import UserError

SEEDS = -(-500 // len(malformed.KINDS))


def check(case: Case) -> bool:
    """Whether the file was read; an AssertionError where it was neither read right nor refused well."""
    try:
        documents, report = read_documents(case.source, labeled=case.labeled, **case.options)
    except UserError as error:
        message = str(error)
        assert case.rows is None or case.refusable, message
        assert len(message.splitlines()) == 1, message
        assert str(malformed.path_of(case.source)) in message
        assert case.row is None or f", row {case.row}:" in message, message
        return False
    assert case.rows is not None, (list(documents.texts), report)
    kept = [(text, label) for text, label in case.rows if text.strip()]
    assert list(documents.texts) == [text for text, _ in kept]
    assert documents.labels == ([label for _, label in kept] if case.labeled else None)
    assert (report.rows, report.blank) == (len(case.rows), len(case.rows) - len(kept))
    for words in case.noted:
        assert words in " ".join(report.notes)
    return True


@pytest.mark.parametrize("name", malformed.KINDS)
def test_malformed_files_are_read_right_or_refused(name: str, tmp_path: Path) -> None:
    for seed in range(SEEDS):
        folder = tmp_path / str(seed)
        folder.mkdir()
        check(malformed.KINDS[name](folder, random.Random(f"{name} {seed}")))
