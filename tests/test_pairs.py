"""Prompts with their responses: what is read, how they are tokenised, and what stands where in a batch."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Files, sentence
from training import data_of

from lit_sft.data import encoding
from lit_sft.data.corpus_config import CorpusConfig
from lit_sft.data.documents import Documents
from lit_sft.data.pairs import PairBatch, PairDataset
from lit_sft.data.readers import iter_rows, read_documents
from lit_sft.data.splits import hold_out
from lit_sft.data.tokenization import Tokenizer
from lit_sft.data.tokens import TokenArray, read_tokens, write_tokens
from lit_sft.errors import UserError

EOS, PAD = 2, 0


WHOLE: dict[str, Any] = {"response_column": "response", "max_length": 200}


def pairs_file(path: Path, count: int = 30, seed: int = 1, **columns: str) -> Path:
    rng = random.Random(seed)
    rows = [{"text": sentence("sea", rng), "response": sentence("sky", rng), **columns} for _ in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def array_of(pairs: list[tuple[list[int], list[int]]]) -> TokenArray:
    """A token array of ready ids."""
    array = TokenArray.from_ids([[*prompt, EOS, *response] for prompt, response in pairs])
    array.prompts = np.array([len(prompt) for prompt, _ in pairs], dtype=np.int64)
    array.response_bytes = np.zeros(len(pairs), dtype=np.int64)
    return array


def drawn(count: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    rng = random.Random(seed)

    def ids(most: int) -> list[int]:
        return [rng.randint(3, 50) for _ in range(rng.randint(1, most))]

    return [(ids(9), ids(7)) for _ in range(count)]


def dataset(pairs: list[tuple[list[int], list[int]]], **options: Any) -> PairDataset:
    given = {"max_length": 100, "truncation": "head", "max_response_length": 100, "max_tokens": 64, "max_documents": 8}
    return PairDataset(array_of(pairs), EOS, PAD, **{**given, "seed": 3, "shuffle": True, **options})


def learned(batch: PairBatch, row: int) -> list[tuple[list[int], int]]:
    """What a row teaches: the ids read before each response token, and that token; from ``response_places`` alone."""
    time = batch.targets.shape[1]
    places = [int(place) - row * time for place in batch.response_places if row * time <= int(place) < (row + 1) * time]
    return [(batch.input_ids[row, : place + 1].tolist(), int(batch.targets[row, place])) for place in places]


def test_a_batch_teaches_every_response_token_given_all_before_it_and_nothing_else() -> None:
    pairs, seen = drawn(40), []
    data = dataset(pairs)
    for batch in (data[i] for i in range(len(data))):
        for row, place in enumerate(batch.indices.tolist()):
            prompt, response = pairs[place]
            whole = [EOS, *prompt, EOS, *response, EOS]
            start = len(prompt) + 2
            assert learned(batch, row) == [(whole[:i], whole[i]) for i in range(start, len(whole))]
            masked = batch.response_targets[row]
            assert masked[masked != -100].tolist() == [*response, EOS]
            everything = batch.targets[row]
            assert everything[everything != -100].tolist() == whole[1:]
            assert int(batch.prompt_lengths[row]) == start
            assert int(batch.lengths[row]) == len(whole)
            seen.append(place)
    assert sorted(seen) == list(range(40))
    assert all(
        batch.input_ids.numel() <= 64 and len(batch.indices) <= 8 for batch in (data[i] for i in range(len(data)))
    )


@pytest.mark.parametrize("how", ["head", "tail", "head_tail"])
def test_a_long_prompt_is_cut_as_documents_are_and_a_cut_response_does_not_end(how: str) -> None:
    prompt, response = list(range(10, 17)), list(range(30, 36))
    batch = dataset([(prompt, response)], max_length=3, truncation=how, max_response_length=4)[0]
    kept = {"head": [10, 11, 12], "tail": [14, 15, 16], "head_tail": [10, 11, 16]}[how]
    assert batch.input_ids[0].tolist() == [EOS, *kept, EOS, 30, 31, 32, 33, EOS]
    assert [target for _, target in learned(batch, 0)] == [30, 31, 32, 33]
    assert batch.targets[0, -2:].tolist() == [-100, -100]
    whole = dataset([(prompt, response)], max_length=3, truncation=how, max_response_length=6)[0]
    assert [target for _, target in learned(whole, 0)] == [*response, EOS]


def test_processes_share_the_rows_of_a_batch_and_an_empty_share_teaches_nothing() -> None:
    pairs = drawn(11)
    one, shares = dataset(pairs), [dataset(pairs) for _ in range(4)]
    for rank, share in enumerate(shares):
        share.shard(rank, 4)
    for index in range(len(one)):
        parts = [share[index] for share in shares]
        places = [place for part in parts if not part.empty for place in part.indices.tolist()]
        assert sorted(places) == sorted(one[index].indices.tolist())
        assert sum(len(part.response_places) for part in parts) == len(one[index].response_places)
        for part in parts:
            assert part.empty == (len(part.response_places) == 0)


def test_batches_move_to_a_device_whole() -> None:
    moved = dataset(drawn(3))[0].to("cpu")
    assert isinstance(moved, PairBatch)
    assert moved.max_response_length == 100


@pytest.mark.parametrize("chunk", [1, 3, 8192])
def test_tokens_of_a_pair_are_those_of_its_two_texts(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "CHUNK_TEXTS", chunk)
    prompts, responses = ["a boat", "", "the tide is à la mer"], ["x", "two words", "three little words"]
    tokenizer = Tokenizer.train([*prompts, *responses], "bpe", 300)
    written = write_tokens(tmp_path / "t", Documents([*prompts, "more text"]), None, tokenizer, responses)
    for array in (written, read_tokens(tmp_path / "t"), written.select([2, 0, 3, 1]).select([1, 3, 0, 2])):
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            first, second = tokenizer.encode_batch([prompt, response])
            assert array.document(i).tolist() == [*first, tokenizer.eos_id, *second]
            assert array.prompts[i] == len(first)
            assert array.num_bytes[i] == len((prompt + response).encode())
            assert array.response_bytes[i] == len(response.encode())
        assert array.document(3).tolist() == tokenizer.encode_batch(["more text"])[0].tolist()
        assert array.prompts[3] == -1
    answered = written.select([0, 1, 2])
    tokens = sum(len(ids) + 1 for ids in tokenizer.encode_batch(responses))
    assert answered.bytes_per_target(responses=True) == sum(len(text.encode()) for text in responses) / tokens


def test_the_data_module_serves_what_the_files_hold(files: Files, shared_cache: Path, tmp_path: Path) -> None:
    paths = {name: pairs_file(tmp_path / f"{name}.jsonl", 30, i) for i, name in enumerate(("labeled", "val", "test"))}
    options: dict[str, Any] = {name: str(path) for name, path in paths.items()}
    data = data_of(files, shared_cache, **options, unlabeled=str(files.unlabeled), **WHOLE)
    data.prepare_data()
    data.setup()
    assert data.label_names == []
    for split, name in (("train", "labeled"), ("val", "val"), ("test", "test")):
        expected = {(row["text"], row["response"]) for row in rows_of(paths[name])}
        found = set()
        for batch in data.pair_loader(split):  # type: ignore[arg-type]
            for row, end in enumerate(batch.prompt_lengths.tolist()):
                prompt = batch.input_ids[row, 1 : end - 1].tolist()
                response = [target for _, target in learned(batch, row)][:-1]
                found.add((data.tokenizer.decode(prompt), data.tokenizer.decode(response)))
        assert found == expected
    assert data.prepared.pair_texts("val") == tuple(
        [row[column] for row in rows_of(paths["val"])] for column in ("text", "response")
    )
    lines = files.unlabeled.read_text().splitlines()  # the language model's text: both texts of each pair, and more
    stream = data.prepared.unlabeled
    assert len(stream) == 30 + len(lines)
    texts = [data.tokenizer.decode(stream.document(i)[stream.prompts[i] + 1 :]) for i in range(30)]
    assert texts == [row["response"] for row in rows_of(paths["labeled"])]


def test_validation_is_held_out_by_prompts_whatever_they_are_answered_with() -> None:
    prompts = [f"prompt {i % 50}" for i in range(200)]
    documents = Documents(prompts, [f"response {i}" for i in range(200)])
    rest, held = hold_out(documents, 0.2, 0, by_label=False)
    assert not set(rest.texts) & set(held.texts)
    assert 10 < len(held) < 80
    assert {*zip(rest.texts, rest.labels or [], strict=True), *zip(held.texts, held.labels or [], strict=True)} == {
        *zip(prompts, documents.labels or [], strict=True)
    }


def test_what_was_prepared_before_there_were_pairs_is_found_again() -> None:
    """The fingerprint is that of the version before ``response_column``, until what is prepared changes (FORMAT)."""
    before = "7dc784a26d25a20181977eb5"
    assert CorpusConfig(labeled=["a.csv"]).fingerprint({}) == before
    assert CorpusConfig(labeled=["a.csv"], response_column="label").fingerprint({}) != before


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "labels": ({"label_column": "label"}, "leave out data.label_column"),
    "names": ({"label_names": {"a": "b"}}, "leave out data.label_names"),
    "pydocs": ({"labeled": "pydocs"}, "pydocs has labels and no responses"),
    "column": ({"response_column": "respnse"}, "did you mean 'response'?"),
    "same": ({"text_column": "response"}, "can't be both the text and the response"),
    "few": ({"labels_per_class": 3}, "prompts with responses have no classes"),
    "length": ({"max_response_length": 0}, "--data.max_response_length 0"),
    "no data": ({"labeled": None, "unlabeled": "{}/more.txt"}, "give --data.labeled a file of prompts and responses"),
    "text": ({"labeled": "{}/more.txt"}, "response_column is for files with columns"),
    "classes": ({"labeled": "{}/classes"}, "response_column is for files with columns"),
    "missing": ({"labeled": "{}/missing.jsonl"}, "all 2 rows are blank, there is no response"),
    "list": ({"labeled": "{}/list.jsonl"}, "list.jsonl, row 1: the response is a list, not text"),
    "backward": ({"direction": "backward"}, "leave out --data.direction backward"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_told(case: str, tmp_path: Path, shared_cache: Path, files: Files) -> None:
    changes, message = MISTAKES[case]
    pairs_file(tmp_path / "train.jsonl")
    (tmp_path / "more.txt").write_text("some text\nmore text\n")
    (tmp_path / "missing.jsonl").write_text('{"text": "a", "response": null}\n{"text": "c", "response": " "}\n')
    (tmp_path / "list.jsonl").write_text('{"text": "a", "response": ["b"]}\n')
    for name in ("a", "b"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        (tmp_path / "classes" / name / "1.txt").write_text("words")
    options = {"labeled": str(tmp_path / "train.jsonl"), "val": None, "test": None, "response_column": "response"}
    options |= {k: v.format(tmp_path) if isinstance(v, str) else v for k, v in changes.items()}

    def serve() -> None:
        data = data_of(files, shared_cache, **options)
        data.prepare_data()
        data.setup()
        data.pair_loader("train")

    with pytest.raises(UserError) as told:
        serve()
    assert message in str(told.value)


def test_a_number_is_a_response(tmp_path: Path, shared_cache: Path, files: Files) -> None:
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps({"text": f"{i} and {i}", "response": 2 * i}) + "\n" for i in range(20)))
    data = data_of(files, shared_cache, labeled=str(path), val=None, test=None, response_column="response")
    data.prepare_data()
    data.setup()
    assert set(data.prepared.pair_texts("val")[1]) < {str(2 * i) for i in range(20)}


def test_the_first_prompt_may_lack_its_response(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b", "response": "c"}, {"response": "d", "prompt": "e", "source": "the web"}]
    (tmp_path / "train.jsonl").write_text("\n" + "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = list(iter_rows(str(tmp_path / "train.jsonl"), response_column="response", labels=True))
    assert found == [(1, None, None), (2, "a", None), (3, "b", "c"), (4, "e", "d")]


def test_a_column_of_responses_that_is_named_is_read_without_labels_being_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,answer\none,1\n")
    assert list(iter_rows(tmp_path / "a.csv", response_column="answer")) == [(2, "one", "1")]
    assert list(iter_rows(tmp_path / "a.csv", response_column="answer", labels=False)) == [(2, "one", None)]


def test_prompts_without_a_response_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    path.write_text("text,answer\none,1\n,2\nthree,\nfour,4\nfive, \n")
    documents, report = read_documents(path, labeled=True, response_column="answer")
    assert (list(documents.texts), documents.labels) == (["one", "four"], ["1", "4"])
    assert (report.rows, report.blank) == (5, 1)
    assert report.notes == [f"{path}: 2 of 5 prompts have no response and were left out"]


def test_pairs_are_for_an_objective_that_reads_them(files: Files, shared_cache: Path) -> None:
    data = data_of(files, shared_cache)
    data.prepare_data()
    data.setup()
    with pytest.raises(UserError, match=r"set --data\.response_column"):
        data.pair_loader("train")
