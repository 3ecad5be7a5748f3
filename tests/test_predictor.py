"""Prediction: a row for each input in its order, the same numbers as in testing, an output that is whole or absent."""

import csv
import inspect
import io
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import SUBJECTS, Command, Configs, Endless, Files, Trained
from lightning.pytorch.callbacks import LambdaCallback
from refusals import one_line

from lit_sft import Predictor, load, predictor, text_classifier
from lit_sft.building import Blueprint
from lit_sft.checkpoints import read_checkpoint, resolve
from lit_sft.data import encoding
from lit_sft.data.buckets import truncate
from lit_sft.data.datamodule import TextDataModule
from lit_sft.data.textdata import TextData
from lit_sft.data.tokenization import Tokenizer
from lit_sft.data.tokens import TokenArray
from lit_sft.errors import UserError
from lit_sft.evaluation.metrics import ClassificationMetrics
from lit_sft.evaluation.predictions import read_predictions
from lit_sft.main import main
from lit_sft.module import LitSFT
from lit_sft.predict_command import predict_command
from lit_sft.stored_network import stored_blueprint, stored_network
from lit_sft.stored_options import MODEL_OPTIONS


@pytest.fixture(scope="module")
def model(trained: Trained) -> Predictor:
    return load(trained.finetune)


@pytest.fixture(scope="module")
def texts(files: Files) -> list[str]:
    with files.test.open(newline="", encoding="utf-8") as file:
        return [row["text"] for row in csv.DictReader(file)]


def probabilities(rows: list[dict[str, Any] | None]) -> np.ndarray:
    return np.array([list(row["probabilities"].values()) for row in rows if row is not None])


# ---- in Python


def test_a_prediction_is_a_label_and_all_probabilities(model: Predictor) -> None:
    (row,) = model.predict(["the whale near the reef"])
    assert row is not None
    assert list(row["probabilities"]) == model.label_names == sorted(SUBJECTS)
    assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-6)
    assert row["label"] == max(row["probabilities"], key=row["probabilities"].__getitem__)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_predictions_equal_those_of_testing(
    precision: Any, trained: Trained, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same checkpoint through Lightning's test loop, over its length-bucketed batches."""
    path = resolve(trained.finetune, "ckpt_path")
    checkpoint = read_checkpoint(path)
    data = TextDataModule(**checkpoint.config["data"] | {"max_tokens": 256})  # several batches
    data.adopt(checkpoint.adopted())
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(ClassificationMetrics, "update", lambda _, probabilities, *__: seen.append(probabilities))
    monkeypatch.setattr(ClassificationMetrics, "compute", lambda _: {})
    indices: list[torch.Tensor] = []
    collect = LambdaCallback(on_test_batch_start=lambda _, __, batch, *___: indices.append(batch.indices))
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = L.Trainer(**options, precision=precision, callbacks=[collect])
    trainer.test(LitSFT.load_from_checkpoint(path), datamodule=data)
    expected = np.empty((len(texts), 3), dtype=np.float32)
    expected[torch.cat(indices)] = torch.cat(seen).numpy()
    assert len(indices) > 1
    computed = replace(checkpoint, config=checkpoint.config | {"trainer": {"precision": precision}})
    model = Predictor(stored_network(computed, stored_blueprint(computed)), computed, torch.device("cpu"))
    found = probabilities(model.predict(texts))
    assert np.abs(found - expected).max() < 1e-6
    assert (np.abs(found - probabilities(predictor.load(path).predict(texts))).max() > 1e-6) == (precision != "32-true")


def test_order_and_count_are_kept_over_chunks(
    model: Predictor, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = model.predict(texts)
    monkeypatch.setattr(text_classifier, "TEXTS_AT_ONCE", 7)
    monkeypatch.setattr(predictor, "TOKENS_AT_ONCE", 64)
    pieces = model.predict(texts)
    assert [row["label"] for row in pieces if row] == [row["label"] for row in whole if row]
    assert np.abs(probabilities(pieces) - probabilities(whole)).max() < 1e-6
    alone = [model.predict([text])[0] for text in texts]
    assert np.abs(probabilities(alone) - probabilities(whole)).max() < 1e-6


def test_a_blank_text_is_a_none_in_its_place(model: Predictor) -> None:
    rows = model.predict(["", "the owl", "  \n\t", "the whale"])
    assert [row is None for row in rows] == [True, False, True, False]
    assert model.predict([]) == []
    assert model.predict([" "]) == [None]
    assert model.encode([]).shape == (0, 36)
    assert model.encode(["", None, " "]).shape == (3, 36)
    vectors = model.encode(["", "the owl"])
    assert np.isnan(vectors[0]).all()
    assert np.isfinite(vectors[1]).all()


def test_one_text_is_not_taken_for_many(model: Predictor, trained: Trained) -> None:
    for one in (model, load([trained.finetune] * 2, device="cpu")):
        for text in ("a text", b"a text"):
            with pytest.raises(UserError, match="give a list of texts, not one text"):
                one.predict(text)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="give a list of texts"):
        model.encode("a text")
    with pytest.raises(UserError, match="give a list of texts, not a dict"):
        model.predict({"id-1": "a text"})  # type: ignore[arg-type]

    class Table:
        """As a DataFrame: what it is iterated over is the names of its columns."""

        columns = ("text",)

        def __iter__(self) -> Iterator[str]:
            return iter(self.columns)

    with pytest.raises(UserError, match="give one column of a table"):
        model.predict(Table())  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_changed_default_dtype_changes_no_prediction(
    dtype: torch.dtype, model: Predictor, trained: Trained, texts: list[str]
) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        assert load(trained.finetune).predict(texts) == model.predict(texts)
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)


def test_a_device_of_number_0_is_a_device(trained: Trained) -> None:
    if torch.cuda.is_available():
        assert load(trained.finetune, device=0).device.type == "cuda"
    else:
        with pytest.raises(UserError, match="device 0: "):
            load(trained.finetune, device=0)


@pytest.mark.parametrize("name", ["stdin", "stdout"])
def test_a_standard_stream_that_is_closed_is_told(
    name: str, cli: Command, trained: Trained, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = "input" if name == "stdin" else "output"
    monkeypatch.setattr(sys, name, None)
    options = {"input": str(files.test), "output": "out.jsonl"} | {put: "-"}
    with pytest.raises(UserError, match=f"--{put} -: standard {put} is closed"):
        predict_command(["--ckpt_path", str(trained.finetune), *(f"--{k}={v}" for k, v in options.items())])


@pytest.mark.parametrize("wrong", [b"bytes", float("nan"), ["a", "list"]])
def test_what_is_no_text_in_a_list_is_told_with_its_place(
    wrong: Any, model: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_classifier, "TEXTS_AT_ONCE", 2)
    with pytest.raises(UserError, match=f"text 3 of the list is of type {type(wrong).__name__}, not str"):
        model.predict(["the owl", None, "", wrong])


def test_long_texts_are_tokenised_few_at_a_time_and_not_kept(
    model: Predictor, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = [" ".join(texts) * count for count in (3, 1, 1)]
    given = ["sea", long[0], "sky", *long[1:], "oak", "owl", "reef"]
    expected = model.predict(given)
    sizes: list[int] = []
    kept: list[np.ndarray] = []
    encode_batch, from_ids = Tokenizer.encode_batch, TokenArray.from_ids

    def counted(tokenizer: Tokenizer, some: list[str]) -> list[np.ndarray]:
        sizes.append(len(some))
        return encode_batch(tokenizer, some)

    def collected(ids: list[np.ndarray]) -> TokenArray:
        kept.extend(ids)
        return from_ids(ids)

    monkeypatch.setattr(Tokenizer, "encode_batch", counted)
    monkeypatch.setattr(TokenArray, "from_ids", collected)
    monkeypatch.setattr(encoding, "CHUNK_CHARACTERS", len(long[1]) + 100)
    assert model.predict(given) == expected
    assert sizes == [1, 1, 2, 4]
    assert max(map(len, kept)) == model.max_length
    assert all(ids.base is None for ids in kept)
    monkeypatch.setattr(text_classifier, "CHARACTERS_AT_ONCE", len(long[1]))
    found = probabilities(model.predict(given))
    assert np.abs(found - probabilities(expected)).max() < 1e-6
    assert sizes[4:] == [1, 1, 2, 1, 3]


def test_the_input_is_read_as_it_is_needed(model: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_classifier, "TEXTS_AT_ONCE", 5)
    texts = Endless()
    rows = model.predict_iter(texts)
    for _ in range(12):
        next(rows)
    assert texts.taken == 15  # three chunks: memory doesn't grow with the input


def test_document_vectors_are_pooled_hidden_states(model: Predictor, texts: list[str]) -> None:
    vectors = model.encode(texts)
    assert vectors.shape == (len(texts), 36)  # concat pooling of 12 units
    assert vectors.dtype == np.float32
    head = model.network.classifier
    assert head is not None
    logits = torch.nn.functional.linear(torch.from_numpy(vectors), head.linear.weight, head.linear.bias)
    assert np.abs(logits.softmax(-1).detach().numpy() - probabilities(model.predict(texts))).max() < 1e-5


def test_a_pretraining_checkpoint_gives_mean_states_and_no_labels(trained: Trained, texts: list[str]) -> None:
    model = load(trained.pretrain)
    encoder, tokenizer = model.network.encoder, model.tokenizer
    assert model.autocast_to is None
    for text, vector in zip(texts[:5], model.encode(texts[:5]), strict=True):
        tail = truncate(tokenizer.encode_batch([text])[0], model.max_length, model.truncation).tolist()
        ids = [tokenizer.eos_id, *tail, tokenizer.eos_id]
        hidden = encoder.embedding(torch.tensor([ids]))
        for layer in encoder.layers:  # type: ignore[union-attr]
            hidden, _ = layer(hidden)
        assert np.abs(vector - hidden[0].mean(0).detach().numpy()).max() < 1e-6
    with pytest.raises(UserError, match="a pretraining checkpoint can't classify"):
        load(trained.pretrain).predict(["the owl"])


def test_a_classifier_of_other_options_is_loaded_as_it_was_trained(
    cli: Command, configs: Configs, trained: Trained, texts: list[str]
) -> None:
    options = ["--model.pooling=last", "--model.head_hidden_size=5", f"--model.init_from={trained.pretrain}"]
    assert cli("fit", "--config", configs.finetune, *options, "--trainer.max_epochs=1", "--name", "own").code == 0
    assert cli("test", "--ckpt_path", "logs/own/version_0").code == 0
    tested = read_predictions(Path("logs/own/version_0/predictions.parquet"))
    model = load("logs/own/version_0")
    assert isinstance(model.network.classifier.linear, torch.nn.Sequential)  # type: ignore[union-attr]
    order = np.argsort(tested.documents)
    assert np.abs(probabilities(model.predict(texts)) - tested.probabilities[order]).max() < 1e-6


def test_every_option_of_a_model_is_stored_or_needed_in_a_fit_alone() -> None:
    fit = {"init_from", "objective", "optimizer", "schedule", "layer_decay", "backprop_tokens", "remap_vocabulary"}
    measured = {"metrics"}  # for a test: test_own_metrics.py
    assert set(inspect.signature(LitSFT).parameters) == fit | measured | {"encoder"} | set(MODEL_OPTIONS)


def test_what_is_built_without_lightning_has_the_defaults_of_the_module() -> None:
    ours, theirs = inspect.signature(Blueprint).parameters, inspect.signature(LitSFT).parameters
    assert set(ours) - set(theirs) == {"make_encoder"}
    assert all(ours[name].default == theirs[name].default for name in ours if name in theirs)


def test_loading_and_predicting_import_neither_lightning_nor_torchmetrics(workplace: Path, trained: Trained) -> None:
    """Each takes as long to import as torch, which is most of the time that one prediction takes."""
    script = f"""
import sys
from lit_sft.main import main
main(["predict", "--ckpt_path", {str(trained.finetune)!r}, "--input", "rows.txt", "--output", "out.jsonl"])
print(*{{name.partition(".")[0] for name in sys.modules}})
"""
    (workplace / "rows.txt").write_text("the owl\n")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert {"torch", "lit_sft"} <= set(done.stdout.split())
    assert not {"lightning", "torchmetrics", "datasets"} & set(done.stdout.split())
    assert json.loads((workplace / "out.jsonl").read_text())["label"]


def test_what_a_checkpoint_does_not_say_is_as_in_a_new_run_and_float16_is_for_a_gpu(trained: Trained) -> None:
    checkpoint = read_checkpoint(resolve(trained.finetune, "ckpt_path"))
    bare = replace(checkpoint, config={"trainer": {"precision": "16-mixed"}})
    found = Predictor(stored_network(checkpoint, stored_blueprint(checkpoint)), bare, torch.device("cpu"))
    names = {"max_length": "max_length", "truncation": "truncation", "max_new_tokens": "max_response_length"}
    defaults = inspect.signature(TextData).parameters
    assert {own: getattr(found, own) for own in names} == {own: defaults[name].default for own, name in names.items()}
    assert (found.direction, found.num_beams) == ("forward", inspect.signature(LitSFT).parameters["num_beams"].default)
    assert found.autocast_to is None  # the CPU has no LSTM of that


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_named(device: str, trained: Trained) -> None:
    with pytest.raises(UserError, match=f"device {device}"):
        load(trained.finetune, device=device)


# ---- on the command line

INPUTS = {
    "rows.txt": "the whale near the reef\n\nthe owl above the oak\n",
    "rows.csv": 'text,more\n"the whale\nnear the reef",1\n" ",2\nthe owl above the oak,3\n',
    "rows.tsv": "more\ttext\n1\tthe whale near the reef\n2\t\n3\tthe owl above the oak\n",
    "rows.jsonl": '{"text": "the whale near the reef"}\n{"text": null}\n{"text": "the owl above the oak"}\n',
}


@pytest.mark.parametrize("name", INPUTS)
def test_a_file_gives_a_json_line_a_row(name: str, cli: Command, trained: Trained, model: Predictor) -> None:
    Path(name).write_text(INPUTS[name], encoding="utf-8")
    assert cli("predict", "--ckpt_path", trained.finetune, "--input", name, "--output", "out.jsonl").code == 0
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    first = "the whale\nnear the reef" if name == "rows.csv" else "the whale near the reef"
    expected = model.predict([first, "", "the owl above the oak"])
    assert rows[1] is None
    assert [row and row["label"] for row in rows] == [row and row["label"] for row in expected]
    assert np.abs(probabilities(rows) - probabilities(expected)).max() < 1e-6


def test_standard_input_and_output_work_alike(cli: Command, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(INPUTS["rows.csv"].encode())))
    where = ("--ckpt_path", trained.finetune, "--input", "-", "--output", "-", "--format", "csv")
    result = cli("predict", *where)
    assert result.code == 0
    assert [json.loads(line) is None for line in result.out.splitlines()] == [False, True, False]
    assert result.err == ""


class Filter:
    """``predict --input - --output -`` between two pipes, in a thread; ``chunks``: how many texts it took at a time."""

    def __init__(self, run: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
        (stdin, self.to), (answers, stdout) = os.pipe(), os.pipe()
        self.answers = os.fdopen(answers, "rb", buffering=0)
        monkeypatch.setattr(sys, "stdin", os.fdopen(stdin))
        monkeypatch.setattr(sys, "stdout", os.fdopen(stdout, "w"))
        self.chunks: list[int] = []
        predict_iter = predictor.TextClassifier.predict_iter

        def counted(model: Predictor, texts: list[str | None]) -> Any:
            self.chunks.append(len(texts))
            return predict_iter(model, texts)

        monkeypatch.setattr(predictor.TextClassifier, "predict_iter", counted)
        arguments = ["predict", "--ckpt_path", str(run), "--input", "-", "--output", "-", *options]
        self.codes: list[int] = []
        self._thread = threading.Thread(target=lambda: self.codes.append(main(arguments)), daemon=True)
        self._thread.start()

    def write(self, lines: str) -> None:
        os.write(self.to, lines.encode())

    def answer(self) -> dict[str, Any] | None:
        """The line that is there now: this waits for a minute at most, and not for the input's end."""
        assert select.select([self.answers], [], [], 60)[0], "no answer"
        (line,) = self.answers.read(10_000).splitlines()
        return json.loads(line)  # type: ignore[no-any-return]

    def close(self) -> int:
        os.close(self.to)
        self._thread.join(60)
        for stream in (sys.stdin, sys.stdout, self.answers):
            stream.close()
        (code,) = self.codes
        return code


FILTERED = {
    "txt": ("", "{}\n"),
    "jsonl": ("", '{{"text": "{}"}}\n'),
    "csv": ("text,more\n", '"{}",1\n'),
    "tsv": ("more\ttext\n", "1\t{}\n"),
}


@pytest.mark.parametrize("form", FILTERED)
def test_standard_input_is_answered_as_it_comes(
    form: str, trained: Trained, model: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, line = FILTERED[form]
    texts = ["a", "the whale near the reef", "", "the owl above the oak"]
    expected = model.predict(texts)
    asked = Filter(trained.finetune, monkeypatch, "--format", form)
    asked.write(first)
    for text, row in zip(texts, expected, strict=True):
        asked.write(line.format(text))
        found = asked.answer()
        assert (found and found["label"]) == (row and row["label"])
    assert asked.close() == 0


def test_where_the_system_can_not_tell_of_more_input_each_line_is_answered(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(10038, "an operation was attempted on something that is not a socket")  # Windows, of a pipe

    monkeypatch.setattr("lit_sft.predict_command.select", SimpleNamespace(select=refuse))
    asked = Filter(trained.finetune, monkeypatch)
    for _ in range(2):
        asked.write("the oak\n")
        assert asked.answer()
    assert asked.close() == 0


def test_what_comes_through_a_pipe_together_is_predicted_together(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Filter(trained.finetune, monkeypatch, "--output", str(tmp_path / "out.jsonl"))
    asked.write("the oak\n" * 3000)
    assert asked.close() == 0
    assert [size for size in asked.chunks if size] == [2048, 952]
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3000


def test_fewer_of_the_rows_wait_together_where_they_are_long(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_sft.predict_command.CHARACTERS_AT_ONCE", 70)
    asked = Filter(trained.finetune, monkeypatch, "--output", str(tmp_path / "out.jsonl"))
    asked.write("the owl on the oak\n" * 10)
    assert asked.close() == 0
    assert [size for size in asked.chunks if size] == [4, 4, 2]


def test_standard_output_is_utf_8_whatever_the_locale(
    cli: Command, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("rows.txt").write_text("the owl\n")
    label = {"label": "ทะเล", "probabilities": {"ทะเล": 1.0}}
    monkeypatch.setattr(predictor.TextClassifier, "predict_iter", lambda _, texts: [label for _ in texts])
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    arguments = ["predict", "--ckpt_path", str(trained.finetune), "--input", "rows.txt", "--output", "-"]
    assert main(arguments) == 0
    assert json.loads(written.getvalue()) == label


def test_a_filter_whose_answers_nobody_reads_ends_quietly(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = Filter(trained.finetune, monkeypatch)
    asked.write("the owl\n")
    assert asked.answer()
    asked.answers.close()
    asked.write("the owl\n")
    assert asked.close() == 141
    assert capsys.readouterr().err == ""


def test_standard_input_of_labels_and_texts_gives_the_texts(
    cli: Command, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    for form, text in (("txt", "the owl\nthe oak\n"), ("label_text", "bird the owl\ntree the oak\n")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        where = ("--ckpt_path", trained.finetune, "--input", "-", "--output", "-", "--format", form)
        result = cli("predict", *where, *(["--separator", " "] if form == "label_text" else []))
        assert result.code == 0
        rows.append(result.out)
    assert rows[0] == rows[1]


def test_a_file_without_header_and_of_another_encoding_is_read(
    cli: Command, trained: Trained, model: Predictor
) -> None:
    Path("rows.csv").write_bytes("1,der grüne Wal\n".encode("latin-1"))
    where = ("--ckpt_path", trained.finetune, "--input", "rows.csv", "--output", "-")
    result = cli("predict", *where, "--no_header", "--text_column", "1", "--encoding", "latin-1")
    assert [json.loads(line) for line in result.out.splitlines()] == model.predict(["der grüne Wal"])


def test_an_output_is_whole_or_not_there(cli: Command, trained: Trained) -> None:
    Path("rows.jsonl").write_text('{"text": "a"}\n' * 3 + "broken\n")
    Path("out.jsonl").write_text("what was there before\n")
    result = cli("predict", "--ckpt_path", trained.finetune, "--input", "rows.jsonl", "--output", "out.jsonl")
    assert result.code == 2
    assert "rows.jsonl, row 4" in result.err
    assert Path("out.jsonl").read_text() == "what was there before\n"
    assert sorted(path.name for path in Path().iterdir()) == ["out.jsonl", "rows.jsonl"]


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="needs /dev/null")
def test_a_device_file_is_written_to_and_not_replaced(cli: Command, trained: Trained, files: Files) -> None:
    where = ("--ckpt_path", trained.finetune, "--input", files.unlabeled)
    assert cli("predict", *where, "--output", "/dev/null").code == 0
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input", "absent.txt"], "absent.txt: no such file"),
        (["--input", "."], ". is a folder"),
        (["--output", "absent/out.jsonl"], "--output absent/out.jsonl: can't be written"),
        (["--output", "."], "--output .: can't be written"),
        (["--text_column", "body"], "no column 'body'; columns: text, label"),
        (["--encoding", "utf8x"], "unknown encoding 'utf8x'"),
        (["--format", "xml"], "invalid choice: 'xml'"),
        (["--formt", "csv"], "did you mean format?"),
        (["--ckpt_path", "absent"], "absent: no such run or checkpoint (from --ckpt_path)"),
        (["--ckpt_path", "PRETRAIN"], "a pretraining checkpoint can't classify"),
        (["--device", "gpu9"], "device gpu9"),
        (["--model.encoder", "./own.Encoder"], "--model.encoder ./own.Encoder: no such class"),
        (["--input"], "--input: expected one argument"),
    ],
)
def test_a_mistake_is_one_line(options: list[str], message: str, cli: Command, trained: Trained, files: Files) -> None:
    given = ("--ckpt_path", trained.finetune, "--input", files.test, "--output", "out.jsonl")
    result = cli("predict", *given, *(option.replace("PRETRAIN", str(trained.pretrain)) for option in options))
    one_line(result, message)
    assert not Path("out.jsonl").exists()


def test_missing_options_and_help(cli: Command, capsys: pytest.CaptureFixture[str]) -> None:
    result = cli("predict", "--ckpt_path", "run")
    assert result.code == 2
    assert "--input, --output" in result.err
    assert cli("predict", "--help").code == 0


def test_a_reader_that_has_had_enough_ends_it_quietly(trained: Trained, tmp_path: Path) -> None:
    """``predict … --output - | head -n 1``: the pipe is closed while there is more to write."""
    texts = tmp_path / "many.txt"
    texts.write_text("the owl near the oak\n" * 5000)
    command = [sys.executable, "-m", "lit_sft", "predict", "--ckpt_path", str(trained.finetune)]
    command += ["--input", str(texts), "--output", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        limit = threading.Timer(120, process.kill)  # what is read below has no timeout of its own
        limit.start()
        try:
            assert json.loads(process.stdout.readline())
            process.stdout.close()
            assert process.stderr.read() == b""
        finally:
            limit.cancel()
    assert process.returncode == 141
