"""What makes the README's figures: the paired interval, the search's budget, and that rows read the same labels."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from baselines import FIELDS, plans_in
from compare import compare, encoder_of
from conftest import Configs, Files, Fit, Trained, read
from contamination import data_options, options_of
from linear import WORD, fitted_features, linear_model, low_shot_positions
from one_line import in_one_line
from paired import write_intervals
from parts import Parts, pretrained
from parts import main as parts_main
from parts import rows_of as rows_of_parts
from parts import run as run_variant
from parts import table as parts_table
from report import (
    append_line,
    intervals_file,
    paired_difference,
    read_lines,
    rows_tested,
    table,
    write_figures,
)
from scipy import stats
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import f1_score
from table import rows_of, seconds_before, split_name
from table import table as runs_table

from lit_sft.data.datamodule import TextDataModule
from lit_sft.errors import SickRun, UserError
from lit_sft.evaluation.predictions import FILE, Predictions, read_predictions

SEARCH = Path(__file__).parents[1] / "scripts" / "search" / "pydocs.yaml"


@pytest.fixture
def data(files: Files) -> TextDataModule:
    made = TextDataModule(
        labeled=str(files.train), val=str(files.val), test=str(files.test), vocab_size=300, labels_per_class=5, seed=2
    )
    made.prepare_data()
    made.setup()
    return made


def test_data_of_many_labels_have_no_linear_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one label a document"):
        linear_model(SimpleNamespace(multilabel=True), {"C": 1})  # type: ignore[arg-type]
    (tmp_path / "config.yaml").write_text("{seed_everything: 0, data: {}}")
    (tmp_path / "metrics.json").write_text('{"test": {"micro_f1": 1.0}}')
    with pytest.raises(UserError, match="any number of labels, and the linear model one"):
        compare(tmp_path, tmp_path / "scratch.yaml")


def test_the_paired_interval_is_students_over_the_shared_seeds() -> None:
    first, second = {0: 50.0, 1: 53.0, 2: 51.0, 7: 99.0}, {2: 49.0, 0: 47.0, 1: 48.0}
    differences = np.array([3.0, 5.0, 2.0])
    half = stats.t.ppf(0.975, 2) * differences.std(ddof=1) / np.sqrt(3)
    mean = differences.mean()
    assert paired_difference(first, second) == f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"
    assert paired_difference({0: 50.0, 1: 53.0}, {1: 48.0}) == "+5.0"  # one seed has no interval
    assert paired_difference({0: 50.0}, {1: 48.0}) == ""


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
    with pytest.raises(UserError, match="20: every method gets the same search budget"):
        plans_in(tmp_path / "unequal.yaml")


def test_the_linear_model_reads_the_low_shot_labels_of_the_network(data: TextDataModule) -> None:
    chosen = data.corpus.train.select(low_shot_positions(data.prepared.train, data.train))
    assert len(chosen) == 15
    encoded = data.tokenizer.encode_batch(chosen.texts)
    for i, (ids, label) in enumerate(zip(encoded, chosen.labels, strict=True)):
        assert ids.tolist() == data.train.document(i).tolist()
        assert label == data.label_names[int(data.train.labels[i])]
    assert linear_model(data, {"C": 10})["test_accuracy"] > 0.9
    assert set(linear_model(data, {"C": 10}, splits=("val",))) == {"val_macro_f1", "val_accuracy"}  # of a search
    with pytest.raises(UserError, match=r"regression with .*'components': 9999.*: n_components\(9999\) must be"):
        linear_model(data, {"C": 10, "components": 9999})


def test_the_linear_models_words_are_scikit_learns_but_for_marks() -> None:
    usual, ours = (TfidfVectorizer(**pattern).build_tokenizer() for pattern in ({}, {"token_pattern": WORD}))
    plain = "It's a 3.14-inch snake_case naïve café — x² 한국어 문장 I/O\n[a-z]^ b"
    assert ours(plain) == usual(plain)
    assert ours("हिन्दी में e\u0301lan") == ["हिन्दी", "में", "e\u0301lan"]
    assert ours("好看，我 ok漢字。ส้ม") == ["好", "看", "我", "ok", "漢", "字", "ส้", "ม"]  # no blanks between words


def test_the_linear_model_takes_its_features_from_all_training_text_where_asked(files: Files) -> None:
    data = TextDataModule(labeled=str(files.train), unlabeled=str(files.unlabeled), val=str(files.val), vocab_size=300)
    data.prepare_data()
    data.setup()
    texts = [data.tokenizer.normalized(text) for text in [*data.corpus.train.texts, *data.corpus.extra.texts]]
    by_hand = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(texts)
    found, features = fitted_features(data, {"unlabeled": True}, ["the owl"])
    assert (features != by_hand.transform(["the owl"])).nnz == 0
    assert found[0].vocabulary_ == by_hand.vocabulary_
    assert found[0].idf_.tolist() == by_hand.idf_.tolist()
    assert fitted_features(data, {"unlabeled": True}, ["the sail"])[0] is found  # for the next seed
    assert len(fitted_features(data, {}, ["the owl"])[0][0].vocabulary_) == 3
    vectors = fitted_features(data, {"unlabeled": True, "components": 3}, texts)[1]
    projected = TruncatedSVD(3, random_state=0).fit_transform(by_hand.transform(texts))
    np.testing.assert_allclose(vectors, projected / np.linalg.norm(projected, axis=1, keepdims=True), atol=1e-9)


def test_the_linear_model_leaves_its_predictions_as_a_network_does(data: TextDataModule, tmp_path: Path) -> None:
    accuracy = linear_model(data, {"C": 10}, tmp_path)["test_accuracy"]
    kept = read_predictions(tmp_path / FILE)
    assert kept.label_names == data.label_names
    assert kept.keys.tolist() == data.test.keys.tolist()
    assert kept.labels.tolist() == data.test.labels.tolist()
    assert (kept.predicted == kept.labels).mean() == accuracy
    assert (kept.predicted == kept.probabilities.argmax(1)).all()
    assert kept.losses == pytest.approx(-np.log(kept.probabilities[np.arange(30), kept.labels]), abs=1e-5)
    assert read(tmp_path / "metrics.json") == {"seed": 2}


def test_a_column_that_came_later_is_left_out_of_an_older_csv(tmp_path: Path) -> None:
    path = tmp_path / "old.csv"
    append_line(path, {"method": "tfidf", "seed": "0"})
    append_line(path, {"method": "tfidf", "seed": "1", "run": "logs/x"})
    assert read_lines(path) == [{"method": "tfidf", "seed": seed} for seed in "01"]


def test_a_csv_that_was_cut_off_is_refused_and_an_empty_one_begun(tmp_path: Path) -> None:
    path = tmp_path / "cut.csv"
    path.touch()
    append_line(path, {"method": "tfidf", "seed": "0"})
    assert read_lines(path) == [{"method": "tfidf", "seed": "0"}]
    path.write_text("method,seed\ntfidf,")
    with pytest.raises(UserError, match="its last line is cut off"):
        append_line(path, {"method": "tfidf", "seed": "0"})
    with pytest.raises(UserError, match="its last line is cut off"):
        read_lines(path)  # before a run that couldn't be appended


def test_seeds_that_ran_with_different_options_make_no_row(tmp_path: Path) -> None:
    path = tmp_path / "mixed.csv"
    row = {"method": "tfidf", "labels": "20", "val": "full", "test_macro_f1": "0.5", "test_accuracy": "0.5"}
    for seed, c in (("0", 1), ("1", 3)):
        append_line(path, row | {"seed": seed, "options": f"C {c}"})
    with pytest.raises(UserError, match=r"the seeds of tfidf with 20 labels ran with different options, C 1 and C 3"):
        rows_tested(path)
    with pytest.raises(UserError, match="no such results"):
        rows_tested(tmp_path / "absent.csv")


@pytest.mark.parametrize("what", ["config", "start"])
def test_methods_that_ran_with_different_configs_or_from_different_pretrainings_make_no_table(
    what: str, tmp_path: Path
) -> None:
    path = tmp_path / "mixed.csv"
    row = {"labels": "20", "val": "full", "seed": "0", "test_macro_f1": "0.5", "test_accuracy": "0.5"}
    for method, value in (("tfidf", ""), ("pretrained", "a"), ("at", "a")):
        append_line(path, row | {"method": method, what: value})
    append_line(path, row | {"labels": "all", "method": "at", what: "b"})
    assert len(rows_tested(path)) == 4
    append_line(path, row | {"method": "mine", what: "b"})
    with pytest.raises(UserError, match=rf"with 20 labels pretrained ran with {what} a and mine with b: take the"):
        rows_tested(path)


def test_a_mistake_in_a_script_is_one_line() -> None:
    def mistaken() -> None:
        raise UserError("what is wrong")

    with pytest.raises(SystemExit, match=r"^error: what is wrong$"):
        in_one_line(mistaken)


def test_a_script_whose_output_nobody_reads_ends_without_a_word() -> None:
    code = "from one_line import in_one_line; in_one_line(lambda: print('x' * 1_000_000))"
    command = [sys.executable, "-c", code]
    paths = os.pathsep.join(str(SEARCH.parents[2] / folder) for folder in ("", "scripts"))
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stdout=-1, stderr=-1) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_script_prints_texts_of_any_script_whatever_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    in_one_line(lambda: print("ทะเล", flush=True))
    assert written.getvalue().decode() == "ทะเล\n"


def test_errors_of_one_seed_are_shown_without_a_deviation(tmp_path: Path) -> None:
    path = tmp_path / "one.csv"
    figures = {"error": 9.508, "error_std": np.nan, "error_low": 9.14, "error_high": 9.88}
    write_figures(
        intervals_file(path),
        ["labels", "val", "method", "seeds", *figures],
        [{"labels": "all", "val": "full", "method": "tfidf", "seeds": 1, **figures}],
    )
    assert read_lines(intervals_file(path))[0]["error_std"] == ""
    run = {"method": "tfidf", "labels": "all", "val": "full", "seed": 0, "test_macro_f1": 0.9, "test_accuracy": 0.90492}
    write_figures(path, list(run), [run])
    assert table(path).splitlines()[-1] == "| all | tfidf | 1 | 90.0 | 9.5 | [9.1, 9.9] |  |"


def test_rows_whose_intervals_are_of_other_runs_or_missing_are_those_of_the_csv(tmp_path: Path) -> None:
    path = tmp_path / "more.csv"
    methods = {"pretrained": (0.9, 0.9, 0.8), "scratch": (0.6, 0.7), "tfidf": (0.8, 0.82)}
    for method, accuracies in methods.items():
        for seed, accuracy in enumerate(accuracies):
            cell = {"method": method, "labels": "50", "val": "full", "seed": seed, "options": "{}"}
            append_line(path, cell | {"test_macro_f1": "0.5", "test_accuracy": str(accuracy)})
    of_two = {"labels": "50", "val": "full", "seeds": 2, "error_std": 0.0, "error_low": 9.0, "error_high": 11.0}
    minus = {"minus": -5.667, "minus_low": -6.0, "minus_high": -5.0}
    rows = [{**of_two, "method": "pretrained", "error": 10.0}, {**of_two, "method": "tfidf", "error": 19.0, **minus}]
    write_figures(intervals_file(path), [*rows[1]], rows)
    assert table(path).splitlines()[2:] == [
        "| 50 | pretrained | 3 | 50.0 ± 0.0 | 13.3 ± 5.8 |  |  |",  # of three seeds, and not of two
        "| 50 | scratch | 2 | 50.0 ± 0.0 | 35.0 ± 7.1 |  |  |",
        "| 50 | tfidf | 2 | 50.0 ± 0.0 | 19.0 ± 0.0 | [9.0, 11.0] |  |",
    ]
    without = table(path)
    for of_three in ({"seeds": 3}, {"seeds": 3, "error": 13.333}):  # the first of other options
        assert table(path) == without
        write_figures(intervals_file(path), [*rows[1]], [rows[0] | of_three, rows[1]])
    assert table(path).endswith("[9.0, 11.0] | -5.7 [-6.0, -5.0] |")
    write_figures(intervals_file(path), [*rows[1]], [rows[0] | of_three, rows[1] | {"minus": -9.0}])
    assert table(path).endswith("[9.0, 11.0] |  |")  # from other runs of pretrained


def test_error_intervals_are_over_documents_and_the_difference_is_paired(tmp_path: Path) -> None:
    """Against scipy's percentile bootstrap; 2,000 resamples put a border within about 0.4 points of it here."""
    random, path = np.random.default_rng(3), tmp_path / "set.csv"
    labels, hard = random.integers(2, size=400), random.random(400) < 0.3
    wrong: dict[str, list[np.ndarray]] = {}
    for method, rate in (("pretrained", 0.4), ("tfidf", 0.6)):
        for seed in range(3):
            wrong.setdefault(method, []).append(hard & (random.random(400) < rate))
            folder = tmp_path / f"{method}-{seed}"
            predicted = np.where(wrong[method][-1], 1 - labels, labels)
            columns = (np.arange(400), np.arange(400, dtype=np.uint64), labels, predicted)
            Predictions(["no", "yes"], *columns, np.zeros(400), np.eye(2)[predicted]).write(folder / FILE)
            accuracy, f1 = 1 - wrong[method][-1].mean(), f1_score(labels, predicted, average="macro")
            figures = {"test_macro_f1": str(f1), "test_accuracy": str(accuracy), "run": str(folder)}
            cell = {"method": method, "labels": "all", "val": "full", "seed": str(seed), "options": "{}"}
            append_line(path, {field: (cell | figures).get(field, "") for field in FIELDS})
    write_intervals(path)
    one, other = read_lines(intervals_file(path))
    mean = {method: 100 * np.mean(runs, 0) for method, runs in wrong.items()}
    expected = {"error": mean["tfidf"], "minus": mean["pretrained"] - mean["tfidf"]}
    for name, values in expected.items():
        reference = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=0)
        low, high = reference.confidence_interval
        assert float(other[name]) == pytest.approx(values.mean(), abs=1e-3)
        assert [float(other[f"{name}_{end}"]) for end in ("low", "high")] == pytest.approx([low, high], abs=0.4)
    assert (one["seeds"], one["documents"], one["minus"]) == ("3", "400", "")
    spread = np.std([100 * run.mean() for run in wrong["pretrained"]], ddof=1)
    assert f"{float(one['error']):.1f} ± {spread:.1f} | [" in table(path).splitlines()[2]

    # where a folder of that name holds another run, its line stays as it was, and so does a difference from it
    before = intervals_file(path).read_text()
    predicted = labels.copy()
    predicted[np.argsort(-labels, kind="stable")[: wrong["pretrained"][1].sum()]] = 0  # as many wrong, of one class
    columns = (np.arange(400), np.arange(400, dtype=np.uint64), labels, predicted)
    Predictions(["no", "yes"], *columns, np.zeros(400), np.eye(2)[predicted]).write(tmp_path / "pretrained-1" / FILE)
    write_intervals(path)
    assert intervals_file(path).read_text() == before

    # of other runs than before there is no such difference
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    write_intervals(path)
    assert [(line["seeds"], line["minus"]) for line in read_lines(intervals_file(path))] == [("3", ""), ("2", "")]


def test_the_rows_of_a_comparison_read_the_data_of_the_run(fit_recipe: Fit, configs: Configs, files: Files) -> None:
    flags = ["--data.labels_per_class", "7", "--data.val", files.val, "--seed_everything", "4"]
    assert fit_recipe(*flags).code == 0
    rows = compare(Path("logs/tiny/version_0"), configs.finetune)
    assert list(rows) == ["pretrained", "from scratch", "TF-IDF + LR"]
    scratch = read(Path("logs/tiny-scratch/version_0/config.yaml"))
    tokens = {"tokenizer": "logs/tiny/version_0/finetune/tokenizer.json"}  # those of the run
    assert scratch["data"] == read(Path("logs/tiny/version_0/finetune/config.yaml"))["data"] | tokens
    assert scratch["data"]["labels_per_class"] == 7
    assert scratch["seed_everything"] == 4


def test_a_comparison_takes_sizes_and_precision_of_the_run_and_tells_what_it_lacks(
    fit_recipe: Fit, configs: Configs
) -> None:
    flags = ["--model.encoder.hidden_size=13", "--trainer.precision=64-true", "--trainer.max_epochs=1"]
    assert fit_recipe(*flags, "--data.test", "null").code == 0
    for folder in ("logs/tiny/version_0", "logs/tiny/version_0/finetune"):
        with pytest.raises(UserError, match="was not tested: run it again"):
            compare(Path(folder), configs.finetune)
    assert fit_recipe(*flags).code == 0
    compare(Path("logs/tiny/version_1"), configs.finetune)
    scratch = read(Path("logs/tiny-scratch/version_0/config.yaml"))
    assert scratch["model"]["encoder"]["init_args"]["hidden_size"] == 13
    assert scratch["trainer"]["precision"] == "64-true"
    assert scratch["data"]["tokenizer"] == "logs/tiny/version_1/finetune/tokenizer.json"
    assert scratch["early_stopping"]["patience"] == 0


def test_a_comparison_takes_an_own_encoder_of_the_run(
    fit_recipe: Fit, configs: Configs, example: Callable[[str], None]
) -> None:
    example("my_encoder.py")
    own = {"class_path": "my_encoder.GRUEncoder", "init_args": {"size": 9}}
    assert fit_recipe(f"--model.encoder={json.dumps(own)}", "--trainer.max_epochs=1").code == 0
    rows = compare(Path("logs/tiny/version_0"), configs.finetune)
    assert set(rows["from scratch"]) == set(rows["pretrained"])
    assert read(Path("logs/tiny-scratch/version_0/config.yaml"))["model"]["encoder"] == own


def test_of_this_packages_encoders_a_comparison_takes_class_and_sizes() -> None:
    sizes = {"embedding_size": 5, "hidden_size": 6, "num_layers": 2, "last_size": None}
    for name in ("LSTMEncoder", "TwoWayEncoder"):
        encoder = {"class_path": f"lit_sft.models.{name}", "init_args": {**sizes, "hidden_dropout": 0.7}}
        shown = [f"--model.encoder.{key}={'null' if value is None else value}" for key, value in sizes.items()]
        assert encoder_of({"model": {"encoder": encoder}}) == [f"--model.encoder=lit_sft.models.{name}", *shown]


def test_data_options_are_found_in_a_config_or_the_file_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("labeled: a.csv\n")
    (tmp_path / "named.yaml").write_text("data: data.yaml\nmodel: {stage: finetune}\n")
    (tmp_path / "own.yaml").write_text("data: {labeled: a.csv}\n")
    (tmp_path / "none.yaml").write_text("trainer: {max_epochs: 1}\n")
    (tmp_path / "numbers.yaml").write_text("data: {text_column: 0}\n")
    found = [data_options(tmp_path / f"{name}.yaml") for name in ("data", "named", "own", "none", "numbers")]
    assert found == [{"labeled": "a.csv"}] * 3 + [{}, {"text_column": "0"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("stages: [{name: a}]", "config.yaml is a recipe: give the config of one of its stages"),
        ("data: {labled: a.csv}", "no option data.labled; did you mean labeled?"),
        ("data: [a.csv]", r"config.yaml: data must hold options, not \['a.csv'\]"),
        ("\tdata: {}", "config.yaml: not valid YAML"),
        ("- data", "a config is a mapping"),
    ],
)
def test_what_holds_no_data_options_is_told(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        data_options(tmp_path / "config.yaml")
    with pytest.raises(UserError, match=r"no option data\.labled; did you mean labeled\?"):
        options_of(["labled=a.csv"])


def test_a_data_option_that_is_no_yaml_is_told() -> None:
    assert options_of(["label_pattern='[A-Z]+'"]) == {"label_pattern": "[A-Z]+"}
    with pytest.raises(UserError, match=r"^label_pattern=\[A-Z\]\+: not valid YAML, quote it for YAML too: .*$"):
        options_of(["label_pattern=[A-Z]+"])


def test_columns_without_a_header_are_named_by_numbers() -> None:
    names = ("text_column", "label_column", "response_column")
    assert options_of([f"{name}={number}" for number, name in enumerate(names)]) == dict(zip(names, "012", strict=True))


def test_a_name_and_a_run_of_a_table_may_have_an_equals_sign(tmp_path: Path) -> None:
    for name, path in product(("plain", "dropout=0.5"), (tmp_path / "lr=0.1", tmp_path / "lr=[0.1]")):
        path.mkdir(exist_ok=True)
        assert split_name(f"{name}={path}") == (name, str(path))
    assert split_name("a=absent") == ("a", "absent")
    assert split_name("absent") == ("", "absent")


def test_a_table_of_runs_has_errors_differences_and_what_they_cost(tmp_path: Path) -> None:
    """Two seeds from a language model, and a linear model without a fit's record; figures counted by hand."""
    labels = np.array([0, 1] * 50)
    mistakes = {"net/version_0": 10, "net/version_1": 20, "linear": 30}

    def tested(folder: Path, missed: int) -> None:
        predicted = np.where(np.arange(100) < missed, 1 - labels, labels)
        ones = np.full((100, 2), 0.5)
        Predictions(["a", "b"], np.arange(100), np.arange(100), labels, predicted, np.ones(100), ones, None).write(
            folder / FILE
        )

    def record(folder: Path, seconds: float, start: str | None) -> None:
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"init_from": start}}))
        content = {"val": {"accuracy": 0.75}, "seconds": seconds, "tokens_per_second": 1000.0}
        (folder / "metrics.json").write_text(json.dumps(content))

    record(tmp_path / "lm", 600.0, None)
    for seed in (0, 1):
        record(tmp_path / f"net/version_{seed}", 60.0 * (seed + 1), str(tmp_path / "lm/checkpoints/best.ckpt"))
    for name, missed in mistakes.items():
        (tmp_path / name).mkdir(exist_ok=True)
        tested(tmp_path / name, missed)
    (tmp_path / "linear/metrics.json").write_text('{"seed": 0}')
    named = {"net": f"{tmp_path}/net/version_*", "linear": f"{tmp_path}/linear"}
    net, linear = rows_of(named, "net")
    assert (net["seeds"], net["documents"]) == (2, 100)
    expected = {"error": 15.0, "val_error": 25.0, "seconds": 90.0, "pretrain_seconds": 600.0}
    assert {key: net[key] for key in expected} == pytest.approx(expected)
    assert net["error_std"] == pytest.approx(np.std([10, 20], ddof=1))
    assert (linear["error"], linear["minus"]) == (30.0, 15.0)
    assert linear["minus_low"] < 15 < linear["minus_high"]
    assert "seconds" not in linear
    assert seconds_before(tmp_path / "net/version_0") == 600.0
    paths = [tmp_path / f"net/version_{seed}/checkpoints/best.ckpt" for seed in (0, 1)]
    record(tmp_path / "both", 30.0, ",".join(map(str, paths)))
    assert seconds_before(tmp_path / "both") == 60.0 + 120.0 + 600.0  # of the language model once
    (tmp_path / "lm/metrics.json").unlink()
    assert "pretrain_seconds" not in rows_of(named, "net")[0]
    unmeasured = read(tmp_path / "net/version_1/metrics.json") | {"val": {}}  # it ended before its first validation
    (tmp_path / "net/version_1/metrics.json").write_text(json.dumps(unmeasured))
    without = rows_of(named, "net")[0]
    assert (without["seconds"], "val_error" in without) == (90.0, False)
    shown = runs_table([net, linear], "net").splitlines()
    assert shown[2].startswith("| net | 2 | 25.0 | 15.00 ± 7.1 | [")
    assert shown[2].endswith("|  | 1.5 | 10.0 |")
    assert "| +15.00 [+" in shown[3]


def test_a_variant_changes_or_leaves_out_a_part_of_the_recipe(tmp_path: Path, trained: Trained) -> None:
    content = {
        "pretrain": "p.yaml",
        "finetune": "f.yaml",
        "seeds": 3,
        "labels": {20: {}},
        "recipe": {"both": {"a": 1}, "finetune": {"b": 2, "trainer.callbacks+": {"class_path": "X"}}},
        "init_from": str(trained.pretrain),
        "variants": {
            "the recipe": {},
            "no callback": {"without": ["trainer.callbacks+"]},
            "other": {"both": {"a": 3}, "pretrain": {"c": 4}},
        },
    }
    (tmp_path / "parts.yaml").write_text(yaml.safe_dump(content))
    parts = Parts.read(tmp_path / "parts.yaml")
    assert parts.flags("the recipe", "finetune") == {"a": 1, "b": 2, "trainer.callbacks+": {"class_path": "X"}}
    assert parts.flags("no callback", "finetune") == {"a": 1, "b": 2}
    assert parts.flags("other", "pretrain") == {"a": 3, "c": 4}
    assert parts.flags("other", "finetune") == {"a": 3, "b": 2, "trainer.callbacks+": {"class_path": "X"}}
    assert pretrained(parts, parts.flags("no callback", "pretrain")) == trained.pretrain
    assert not parts.is_own_pretraining(parts.flags("other", "pretrain"))
    assert Parts.read(SEARCH.with_name("pydocs_parts.yaml")).init_from is None


def test_the_parts_recipe_s_pretraining_may_be_that_of_a_recipe_s_run(tmp_path: Path, trained: Trained) -> None:
    recipe = tmp_path / "recipe"
    counts: dict[int | str, dict[str, int]] = {"all": {}}
    shutil.copytree(trained.pretrain, recipe / "pretrain")
    (recipe / "config.yaml").write_text(yaml.safe_dump({"stages": [{"name": "pretrain", "init_from": []}]}))
    parts = Parts(Path("p.yaml"), Path("f.yaml"), 1, counts, {"it": {}}, init_from=recipe)
    assert pretrained(parts, {}) == recipe / "pretrain"
    (recipe / "pretrain/metrics.json").unlink()
    with pytest.raises(UserError, match="recipe is no finished run, and the table tells its figures"):
        pretrained(parts, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [("seeds: 1", "give pretrain, finetune, labels, variants"), ("\tseeds: 1", "not valid YAML")],
)
def test_what_is_no_parts_file_is_told(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "parts.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        Parts.read(tmp_path / "parts.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"variants": {"a": {"model.head_dropout": 0.0}}}, "variants, a: no key model.head_dropout; it has pretrain, "),
        ({"variants": {"a": {"fine-tune": {}}}}, r"variants, a: no key fine-tune; did you mean finetune\? "),
        (
            {"variants": {"a": {"without": ["x.hed"]}}},
            r"a, without: x.hed is no flag of the recipe; did you mean x.hea",
        ),
        ({"variants": {"a": {"without": "x.head"}}}, "a, without: give a list of flags, not 'x.head'"),
        ({"variants": {"a": {"both": None}}}, "variants, a, both: give a mapping"),
        ({"variants": {"a": None}}, "variants, a: give a mapping"),
        ({"recipe": {"fine_tune": {}}}, r"recipe: no key fine_tune; did you mean finetune\?"),
        ({"labels": {20: None}}, "labels, 20: give a mapping"),
        ({"labels": {"full": {}}}, "labels: give a number of labels a class, or all, not full"),
    ],
)
def test_what_a_parts_file_names_and_no_run_would_read_is_told(
    content: dict[str, object], message: str, tmp_path: Path
) -> None:
    right = {"pretrain": "p.yaml", "finetune": "f.yaml", "seeds": 1, "labels": {"all": {}}, "variants": {"it": {}}}
    (tmp_path / "parts.yaml").write_text(yaml.safe_dump(right | {"recipe": {"finetune": {"x.head": 1}}} | content))
    with pytest.raises(UserError, match=rf"^{tmp_path}/parts\.yaml, .*{message}"):
        Parts.read(tmp_path / "parts.yaml")


@pytest.mark.parametrize("path", sorted(SEARCH.parent.glob("*_parts.yaml")), ids=lambda path: path.stem)
def test_the_parts_files_here_are_ones(path: Path) -> None:
    assert Parts.read(path).variants


def test_a_part_is_measured_with_labels_a_class_and_with_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def run_network(arguments: list[str], name: str, test: bool) -> Path:
        ran.append(arguments)
        folder = tmp_path / f"run{len(ran)}"
        (folder / "checkpoints").mkdir(parents=True)
        val = {"macro_f1": 0.25, "accuracy": 0.5}
        (folder / "metrics.json").write_text(json.dumps({"val": val}))
        return folder

    monkeypatch.setattr("parts.run_network", run_network)
    (tmp_path / "lm" / "checkpoints").mkdir(parents=True)
    (tmp_path / "lm" / "checkpoints" / "best.ckpt").touch()
    (tmp_path / "lm" / "metrics.json").write_text(json.dumps({"val": {"perplexity": 8.0, "bits_per_byte": 1.25}}))
    counts: dict[int | str, dict[str, int]] = {20: {"x": 1}, "all": {}}
    configs = [tmp_path / "p.yaml", tmp_path / "f.yaml"]
    for config in configs:
        config.write_text("{}")
    parts = Parts(*configs, 2, counts, {"it": {}}, init_from=tmp_path / "lm")
    out = tmp_path / "out.csv"
    run_variant(parts, "it", out)
    run_variant(parts, "it", out)  # nothing is left to do
    assert [[a for a in arguments if "labels" in a or "x" in a] for arguments in ran] == [
        *[["--x=1", "--data.labels_per_class=20"]] * 2,
        *[["--data.labels_per_class=null"]] * 2,
    ]
    assert [row["labels"] for row in read_lines(out)] == ["20", "20", "all", "all"]
    lines = parts_table(parts, out).splitlines()
    assert "20 labels a class | all labels" in lines[0]
    assert lines[2] == "| it | 8.0 | 1.250 | 25.0 ± 0.0 | 25.0 ± 0.0 |"
    counts["all"] = {"x": 2}
    run_variant(parts, "it", out)  # whose flags have changed
    assert len(ran) == 6
    configs[0].write_text("trainer: {max_epochs: 2}")
    run_variant(parts, "it", out)  # whose language model is there already
    assert len(ran) == 6
    configs[1].write_text("trainer: {max_epochs: 2}")
    run_variant(parts, "it", out)
    assert len(ran) == 10
    shutil.copytree(tmp_path / "lm", tmp_path / "other")
    run_variant(replace(parts, init_from=tmp_path / "other"), "it", out)
    assert len(ran) == 14
    assert all(len(rows_of_parts(parts, out, "it", labels)) == 2 for labels in counts)
    older = [{name: value for name, value in row.items() if name != "config"} for row in read_lines(out)]
    write_figures(out, list(older[0]), older)
    assert len(rows_of_parts(parts, out, "it", 20)) == 6  # a file without that column doesn't say
    with pytest.raises(UserError, match="no variant 'that': there are 'it'"):
        run_variant(parts, "that", out)
    fewer = [row for row in read_lines(out) if row["labels"] == "all"]  # as where the others ended sick
    write_figures(out, list(fewer[0]), fewer)
    assert parts_table(parts, out).splitlines()[2] == "| it | 8.0 | 1.250 |  | 25.0 ± 0.0 |"


def test_parts_that_end_sick_are_told_after_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run_network(arguments: list[str], name: str, test: bool) -> Path:
        if set(arguments) & {"--seed_everything=1", "--lr=9"}:
            raise SickRun("a run ended sick")
        folder = tmp_path / f"run{len(ran)}"
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "best.ckpt").touch()
        val = dict.fromkeys(("macro_f1", "accuracy", "perplexity", "bits_per_byte"), 0.5)
        (folder / "metrics.json").write_text(json.dumps({"val": val}))
        ran.append(name)
        return folder

    monkeypatch.setattr("parts.run_network", run_network)
    monkeypatch.chdir(tmp_path)
    for config in ("p.yaml", "f.yaml"):
        Path(config).write_text("{}")
    variants = {"it": {}, "fast": {"pretrain": {"lr": 9}}, "other": {"finetune": {"x": 1}}}
    content = {"pretrain": "p.yaml", "finetune": "f.yaml", "seeds": 3, "labels": {"all": {}}, "variants": variants}
    Path("parts.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(sys, "argv", ["parts.py", "--parts", "parts.yaml", "--out", "out.csv", "--only", "it", "that"])
    with pytest.raises(UserError, match="no variant 'that': there are 'fast', 'it', 'other'"):
        parts_main()
    assert ran == []  # though the first of the two is a variant
    monkeypatch.setattr(sys, "argv", ["parts.py", "--parts", "parts.yaml", "--out", "out.csv"])
    with pytest.raises(SickRun, match=r"fast, pretraining; it, all labels, seed 1; other, all labels, seed 1$"):
        parts_main()
    assert [(row["variant"], row["seed"]) for row in read_lines(Path("out.csv"))] == [
        *(("it", "0"), ("it", "2"), ("other", "0"), ("other", "2"))
    ]


def test_parts_of_prompts_with_responses_are_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text("{}")
    Path("f.yaml").write_text("data: {response_column: response}")
    content = {"pretrain": "p.yaml", "finetune": "f.yaml", "seeds": 1, "labels": {"all": {}}, "variants": {"it": {}}}
    Path("parts.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(sys, "argv", ["parts.py", "--parts", "parts.yaml", "--out", "out.csv"])
    with pytest.raises(UserError, match=r"f\.yaml: prompts with responses have no macro-F1"):
        parts_main()


def test_a_pretraining_of_parts_is_another_where_a_file_that_its_config_names_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[str] = []
    monkeypatch.setattr("parts.run_network", lambda arguments, name, test: named.append(name))
    (tmp_path / "p.yaml").write_text("{model: model.yaml, data: {labeled: a.csv}}")
    parts = Parts(tmp_path / "p.yaml", Path("f.yaml"), 1, {"all": {}}, {"it": {}})
    for layers in (1, 2, 1):
        (tmp_path / "model.yaml").write_text(f"encoder: {{num_layers: {layers}}}")
        pretrained(parts, {})
    assert named[0] == named[2] != named[1]
