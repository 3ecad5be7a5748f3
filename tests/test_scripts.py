"""What makes the README's figures: the paired interval, the search's budget, and that rows read the same labels."""

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import Configs, Files, Fit, read
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from baselines import append_line, linear_model, low_shot_positions, plans_in, read_lines
from compare import compare
from report import paired_difference, table

from lit_sft.data.datamodule import TextDataModule

SEARCH = Path(__file__).parents[1] / "scripts" / "search" / "pydocs.yaml"


@pytest.fixture
def data(files: Files) -> TextDataModule:
    made = TextDataModule(
        labeled=str(files.train), val=str(files.val), test=str(files.test), vocab_size=300, labels_per_class=5, seed=2
    )
    made.prepare_data()
    made.setup()
    return made


def test_the_paired_interval_is_students_over_the_shared_seeds() -> None:
    first, second = {0: 50.0, 1: 53.0, 2: 51.0, 7: 99.0}, {2: 49.0, 0: 47.0, 1: 48.0}
    differences = np.array([3.0, 5.0, 2.0])
    half = stats.t.ppf(0.975, 2) * differences.std(ddof=1) / np.sqrt(3)
    mean = differences.mean()
    assert paired_difference(first, second) == f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def test_the_table_reads_tested_rows_alone_and_a_repeated_one_once(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    searched = {"method": "tfidf", "labels": "20", "val": "full", "seed": "0", "test_macro_f1": "", "test_accuracy": ""}
    append_line(path, searched)
    for seed, f1 in (("0", "0.5"), ("1", "0.7"), ("1", "0.7")):
        append_line(path, searched | {"seed": seed, "test_macro_f1": f1, "test_accuracy": "0.8"})
    assert len(read_lines(path)) == 4
    assert table(path).splitlines()[-1] == "| 20 | tfidf | 2 | 60.0 ± 14.1 | 80.0 ± 0.0 |  |"


def test_every_method_is_searched_alike(tmp_path: Path) -> None:
    plans = plans_in(SEARCH)
    assert [plan.labels for plan in plans] == ["20", "100", "all"]
    for plan in plans:
        assert len({len(grid) for grid in plan.grids.values()}) == 1
        assert plan.small_val is None or plan.small_val <= int(plan.labels)
    content = yaml.safe_load(SEARCH.read_text())
    content[20]["tfidf"] = {"C": [1]}
    (tmp_path / "unequal.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit, match="20: every method gets the same search budget"):
        plans_in(tmp_path / "unequal.yaml")


def test_the_linear_model_reads_the_low_shot_labels_of_the_network(data: TextDataModule) -> None:
    chosen = data.corpus.train.select(low_shot_positions(data.prepared.train, data.train))
    assert len(chosen) == 15
    encoded = data.tokenizer.encode_batch(chosen.texts)
    for i, (ids, label) in enumerate(zip(encoded, chosen.labels, strict=True)):
        assert ids.tolist() == data.train.document(i).tolist()
        assert label == data.label_names[int(data.train.labels[i])]
    assert linear_model(data, {"C": 10})["test_accuracy"] > 0.9


def test_the_rows_of_a_comparison_read_the_data_of_the_run(fit_recipe: Fit, configs: Configs, files: Files) -> None:
    flags = ["--data.labels_per_class", "7", "--data.val", files.test, "--seed_everything", "4"]
    assert fit_recipe(*flags).code == 0
    rows = compare(Path("logs/tiny/version_0"), configs.finetune)
    assert list(rows) == ["pretrained", "from scratch", "TF-IDF + LR"]
    scratch = read(Path("logs/quickstart-scratch/version_0/config.yaml"))
    assert scratch["data"] == read(Path("logs/tiny/version_0/finetune/config.yaml"))["data"]
    assert scratch["data"]["labels_per_class"] == 7
    assert scratch["seed_everything"] == 4
