"""The nearest prompt's response, by a slow search; and the script on a run's own data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import Files
from nearest import measure, nearest_responses
from sklearn.feature_extraction.text import TfidfVectorizer
from test_texts_compared import of_torchmetrics

from lit_sft.data.documents import Documents
from lit_sft.data.readers import read_documents
from lit_sft.errors import UserError


def test_each_prompt_gets_the_response_of_the_most_similar_one(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nearest.AT_ONCE", 7)
    train, _ = read_documents(files.train, labeled=True)
    test, _ = read_documents(files.test, labeled=True)
    numbered = Documents(list(train.texts), [f"response {i}" for i in range(len(train))])
    to_features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"[\w]{2,}")
    known = to_features.fit_transform(list(train.texts)).toarray()
    expected = []
    for text in test.texts:
        vector = to_features.transform([text]).toarray()[0]
        expected.append(f"response {max(range(len(known)), key=lambda i: (float(known[i] @ vector), -i))}")
    assert nearest_responses(numbered, list(test.texts)) == expected
    assert nearest_responses(numbered, [train.texts[17], train.texts[3]]) == ["response 17", "response 3"]


def test_a_run_is_measured_on_its_own_data(files: Files, tmp_path: Path, shared_cache: Path) -> None:
    data = {"labeled": str(files.train), "val": str(files.val), "test": str(files.test), "vocab_size": 300}
    options = {**data, "response_column": "label", "cache_dir": str(shared_cache), "seed": 0}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": options}), encoding="utf-8")
    train, _ = read_documents(files.train, labeled=True)
    for split, path in (("val", files.val), ("test", files.test)):
        documents, _ = read_documents(path, labeled=True)
        texts = nearest_responses(train, list(documents.texts))
        expected = of_torchmetrics(texts, [str(label) for label in documents.labels or []])
        found = measure(tmp_path, split)  # type: ignore[arg-type]
        assert {name: value for name, (value, _) in found.items()} == pytest.approx(expected, abs=1e-6)
        low, high = found["exact_match"][1] or (np.nan, np.nan)
        assert low <= found["exact_match"][0] <= high
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": {**data, "seed": 0}}), encoding="utf-8")
    with pytest.raises(UserError, match="no prompts with responses"):
        measure(tmp_path, "test")
