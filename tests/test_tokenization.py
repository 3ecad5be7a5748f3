"""Tokenizers: round trips, boundaries nobody can forge, files that are none."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from lit_sft.data.tokenization import EOS, PAD, UNK, Tokenizer
from lit_sft.errors import UserError

TEXTS = [
    "the cat sat on the mat.",
    "The dog, the cat and the mat",
    "a dog sat; a cat ran",
    "eos eos pad pad unk unk",
]
AWKWARD = [
    "",
    " ",
    "\n\t x  y \r\n",
    "naïve — 漢字 🙂\u200d",
    "a\x00b",
    "<eos><pad> <unk>",
    "ﬁ İ ß",
    "\u00a0x",
]


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return Tokenizer.train(TEXTS, "bpe", vocab_size=300)


@pytest.fixture(scope="module")
def word() -> Tokenizer:
    return Tokenizer.train(TEXTS, "word", vocab_size=300)


@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_special_tokens_have_the_first_ids(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.eos_id) == (0, 1, 2)


@pytest.mark.parametrize("word", ["हिन्दी", "தமிழ்", "ọ̀rọ̀", "می\u200cخواهم", "ไม่ใช่"])
def test_marks_and_joiners_belong_to_their_word(word: str) -> None:
    """One token each, where the vocabulary has room for it: pairs are not merged from one piece to the next."""
    tokenizer = Tokenizer.train([f"{word} {word} {word}."] * 20, "bpe", vocab_size=400)
    assert tokenizer.decode(tokenizer.encode_batch([f"{word}. {word}"])[0]) == f"{word}. {word}"
    assert [len(ids) for ids in tokenizer.encode_batch([word, f"{word} {word}.", f"{word} {word} {word}"])] == [1, 3, 3]


@pytest.mark.parametrize("language", ["english", "german"])
def test_other_pieces_are_those_of_gpt2(language: str) -> None:
    texts = {
        "english": "I'll say: it's 3.14 (or\n\n  not)!  x_y 2²\tthey've   ",
        "german": "Größe, Übermaß\u00a0– 12. „Ja“  straße'n",
    }
    tokenizer = Tokenizer.train(list(texts.values()), "bpe", vocab_size=300)
    expected = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(texts[language])
    ours = tokenizers.Tokenizer.from_str(tokenizer.to_json()).pre_tokenizer
    assert [piece for piece, _ in ours.pre_tokenize_str(texts[language])] == [piece for piece, _ in expected]


def test_a_long_run_is_several_pieces(bpe: Tokenizer) -> None:
    """Merges are learned in time that grows with the square of a piece's length: hours for a long text in one piece."""
    splitter = tokenizers.Tokenizer.from_str(bpe.to_json()).pre_tokenizer
    for run in ("漢" * 600, " " + "a" * 600, "7" * 600, "-" * 600, " " * 600):
        pieces = [end - start for _, (start, end) in splitter.pre_tokenize_str(run)]
        assert pieces == ([257, 256, 88] if run[:2] == " a" else [256, 256, 88])
        assert bpe.decode(bpe.encode_batch([run])[0]) == run
    assert [end - start for _, (start, end) in splitter.pre_tokenize_str(" " * 257 + "word " + "=" * 256)] == [
        *(256, 5, 257)
    ]


def test_a_fork_after_tokenising_can_tokenise() -> None:
    script = """
import os, signal
from lit_sft.data.tokenization import Tokenizer
texts = ["the cat sat on the mat"] * 500
tokenizer = Tokenizer.train(texts, "bpe", vocab_size=300)
tokenizer.encode_batch(texts)
if child := os.fork():
    print(os.waitpid(child, 0)[1])
else:
    signal.alarm(20)  # ends it, where it would wait for threads that it hasn't
    tokenizer.encode_batch(texts)
    os._exit(0)
"""
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"} | {"RAYON_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_composed_and_decomposed_accents_are_the_same(kind: str) -> None:
    tokenizer = Tokenizer.train(["Yorùbá élan"] * 3, kind, vocab_size=300)  # type: ignore[arg-type]
    composed, decomposed = tokenizer.encode_batch(["Yorùbá élan", unicodedata.normalize("NFD", "Yorùbá élan")])
    assert composed.tolist() == decomposed.tolist()
    assert tokenizer.unk_id not in composed


def test_bpe_decodes_to_exactly_the_text_it_encoded(bpe: Tokenizer) -> None:
    texts = TEXTS + AWKWARD
    assert [bpe.decode(ids) for ids in bpe.encode_batch(texts)] == texts


def test_text_that_spells_a_special_token_never_becomes_one(bpe: Tokenizer, word: Tokenizer) -> None:
    text = f"x {PAD}{EOS} {UNK} y"
    assert min(bpe.encode_batch([text])[0]) > 2
    assert not {word.pad_id, word.eos_id} & set(word.encode_batch([text])[0])


def test_training_on_text_that_spells_special_tokens_learns_no_second_one() -> None:
    tokenizer = Tokenizer.train([f"{EOS} {PAD}"] * 5, "word", vocab_size=50)
    assert not {0, 2} & set(tokenizer.encode_batch([f"{EOS} {PAD}"])[0])


def test_encoding_gives_int64_arrays_and_adds_no_boundaries(bpe: Tokenizer) -> None:
    empty, ids = bpe.encode_batch(["", "cat"])
    assert empty.dtype == ids.dtype == np.int64
    assert empty.shape == (0,)
    assert bpe.eos_id not in ids


def test_word_vocabulary_is_the_frequent_words(word: Tokenizer) -> None:
    words = Counter(" ".join(TEXTS).replace(".", " .").replace(",", " ,").replace(";", " ;").split())
    frequent = {w for w, count in words.items() if count >= 2}
    assert set(json.loads(word.to_json())["model"]["vocab"]) == frequent | {PAD, UNK, EOS}
    assert word.decode(word.encode_batch(["the cat"])[0]) == "the cat"


def test_words_outside_the_vocabulary_are_unknown(word: Tokenizer) -> None:
    assert word.encode_batch(["zebra"])[0].tolist() == [word.unk_id]


def test_vocab_size_is_an_upper_limit() -> None:
    assert Tokenizer.train(TEXTS, "bpe", vocab_size=262).vocab_size == 262
    assert Tokenizer.train(TEXTS, "word", vocab_size=6).vocab_size == 6


@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_lowercase_folds_case(kind: str) -> None:
    tokenizer = Tokenizer.train(TEXTS, kind, vocab_size=300, lowercase=True)  # type: ignore[arg-type]
    upper, lower = tokenizer.encode_batch(["THE CAT", "the cat"])
    assert upper.tolist() == lower.tolist()
    assert tokenizer.decode(upper) == "the cat"


@pytest.mark.parametrize("kind", ["bpe", "word", "whitespace"])
def test_replacements_come_before_anything_else_and_go_with_the_tokenizer(kind: str) -> None:
    options = {"lowercase": True, "replace": {r"<br\s*/?>": " ", "[0-9]+": "NUMBER"}}
    texts = ["good.<br /><br />Bad 12 films", "good. bad NUMBER films"] * 2
    tokenizer = Tokenizer.train(texts, kind, vocab_size=300, **options)  # type: ignore[arg-type]
    assert tokenizer.normalized("A<br>B<br />C 1999") == "a b c number"
    again = Tokenizer.from_json(tokenizer.to_json())
    first, second = again.encode_batch(["good.<br/>bad 7 films", "good. bad number films"])
    assert first.tolist() == second.tolist()
    assert tokenizer.unk_id not in first
    assert not {"<br", "br", "12", "/><br"} & set(json.loads(tokenizer.to_json())["model"]["vocab"])


def test_a_tokenizer_without_a_normalizer_leaves_the_text() -> None:
    assert Tokenizer.train(TEXTS, "bpe", vocab_size=300).normalized("The <br />") == "The <br />"


def test_an_expression_sees_composed_accents_and_a_decomposed_one_is_told() -> None:
    marks = {"[\u0300\u0301]": ""}
    tokenizer = Tokenizer.train(TEXTS, "word", vocab_size=0, replace=marks)
    # of the second there is no composed letter
    assert tokenizer.normalized("ka\u0301 k\u0254\u0301") == "k\u00e1 k\u0254"
    with pytest.raises(UserError, match=r"apart from its letter, .*: write '\u00e1'$"):
        Tokenizer.train(TEXTS, "word", vocab_size=0, replace={"a\u0301": "a"})
    Tokenizer.train(TEXTS, "whitespace", vocab_size=0, replace={"a\u0301": "a"})


def test_a_wrong_expression_is_told() -> None:
    with pytest.raises(UserError, match=r"data\.replace '\(' is not a regular expression"):
        Tokenizer.train(TEXTS, "word", vocab_size=300, replace={"(": ""})


@pytest.mark.parametrize("by", [r"\1 \2", r"\g<1>", "$1 $2", "${1}"])
def test_a_replacement_that_would_refer_to_groups_is_told(by: str) -> None:
    """The library would write it into the text."""
    with pytest.raises(UserError, match="would stand there as it is"):
        Tokenizer.train(TEXTS, "word", 100, replace={r"(\w)-(\w)": by})


def test_min_frequency_leaves_rare_words_out() -> None:
    tokenizer = Tokenizer.train(["twice twice once"], "word", vocab_size=10, min_frequency=2)
    assert [ids.tolist() for ids in tokenizer.encode_batch(["once"])] == [[tokenizer.unk_id]]


@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_training_twice_gives_the_same_tokenizer(kind: str) -> None:
    first, second = (Tokenizer.train(TEXTS * 3, kind, vocab_size=290) for _ in range(2))  # type: ignore[arg-type]
    assert first.digest == second.digest


def test_json_and_pickle_keep_everything(bpe: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(bpe.to_json(), encoding="utf-8")
    texts = TEXTS + AWKWARD
    expected = [ids.tolist() for ids in bpe.encode_batch(texts)]
    for copy in (
        Tokenizer.from_json(bpe.to_json()),
        Tokenizer.from_file(path),
        pickle.loads(pickle.dumps(bpe)),
    ):
        assert [ids.tolist() for ids in copy.encode_batch(texts)] == expected
        assert copy.digest == bpe.digest
        assert copy.vocab_size == bpe.vocab_size


def test_digest_ignores_layout_but_not_content(bpe: Tokenizer, word: Tokenizer) -> None:
    relaid = json.dumps(json.loads(bpe.to_json()), indent=4, sort_keys=True)
    assert Tokenizer.from_json(relaid).digest == bpe.digest
    assert len(bpe.digest) == 16
    assert bpe.digest != word.digest


def test_a_foreign_tokenizer_gets_the_special_tokens_and_loses_its_truncation() -> None:
    foreign = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    foreign.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    foreign.enable_truncation(2)
    foreign.enable_padding(length=8)
    tokenizer = Tokenizer.from_json(foreign.to_str())
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.eos_id) == (3, 2, 5)  # its own name for an unknown word
    assert tokenizer.vocab_size == 6
    assert [ids.tolist() for ids in tokenizer.encode_batch(["a b a zzz", "a"])] == [[0, 1, 0, 2], [0]]


def test_a_foreign_tokenizers_dropout_is_switched_off(bpe: Tokenizer) -> None:
    rules = json.loads(bpe.to_json())
    rules["model"]["dropout"] = 0.5
    foreign = Tokenizer.from_json(json.dumps(rules))
    for _ in range(5):
        assert [ids.tolist() for ids in foreign.encode_batch(TEXTS)] == [i.tolist() for i in bpe.encode_batch(TEXTS)]


def test_the_unknown_token_of_a_unigram_model_is_found_by_its_number(tmp_path: Path) -> None:
    model = tokenizers.models.Unigram([("[UNK]", 0.0), ("a", -1.0), ("b", -2.0)], unk_id=0)
    (tmp_path / "uni.json").write_text(tokenizers.Tokenizer(model).to_str())
    tokenizer = Tokenizer.given(tmp_path / "uni.json")
    assert tokenizer.unk_id == 0
    assert tokenizer.encode_batch(["abz"])[0].tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (tokenizers.models.Unigram([("a", -1.0), ("b", -2.0)]), "it can't encode what it doesn't know: "),
        (tokenizers.models.WordLevel({"a": 0}, unk_token="[UNK]"), "it can't encode what it doesn't know: "),
        (tokenizers.models.BPE({"a": 0, "b": 1}, []), "it drops what it doesn't know without a word"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_foreign_tokenizer_that_loses_text_is_refused(model: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(tokenizers.Tokenizer(model).to_str())
    with pytest.raises(UserError, match=rf"own\.json: {message}"):
        Tokenizer.given(tmp_path / "own.json")


def test_lone_surrogates_become_question_marks(bpe: Tokenizer) -> None:
    assert bpe.decode(bpe.encode_batch(["a\ud800b"])[0]) == "a?b"
    Tokenizer.train(["a\ud800b"], "bpe", vocab_size=259)


def test_a_file_may_stand_in_the_home_folder(bpe: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.json").write_text(bpe.to_json(), encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Tokenizer.from_file("~/own.json").digest == bpe.digest


def test_rejects_what_is_no_tokenizer_file(tmp_path: Path) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "other.json").write_text('{"a": 1}')
    for name in ("missing.json", "binary.json", "other.json", "."):
        with pytest.raises(UserError, match=str(tmp_path)) as caught:
            Tokenizer.from_file(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_rejects_options_no_vocabulary_can_be_learned_with() -> None:
    with pytest.raises(UserError, match="259"):
        Tokenizer.train(TEXTS, "bpe", vocab_size=100)
    with pytest.raises(UserError, match="'chars'"):
        Tokenizer.train(TEXTS, "chars", vocab_size=300)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no word occurs 2 times"):
        Tokenizer.train(["all words differ"], "word", vocab_size=300)


# ---------------------------------------------------------------- text that was tokenised before

WIKI = " = Title = \n \n The <unk> @-@ cat , the mat .\n a <unk> b"


def slow_whitespace(text: str, vocabulary: dict[str, int]) -> list[int]:
    """One ``<eos>`` for each newline, a word for each run without white space."""
    words: list[str] = []
    for number, line in enumerate(text.split("\n")):
        words += [EOS] * (number > 0) + [UNK if word in (PAD, EOS) else word for word in line.split()]
    return [vocabulary.get(word, vocabulary[UNK]) for word in words]


def test_whitespace_keeps_words_as_they_are_and_counts_an_end_for_each_line() -> None:
    tokenizer = Tokenizer.train([WIKI, "x y"], "whitespace", vocab_size=0, min_frequency=1)
    vocabulary = json.loads(tokenizer.to_json())["model"]["vocab"]
    words = set(WIKI.split()) | {"x", "y"}
    assert set(vocabulary) == words | {PAD, UNK, EOS}
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.vocab_size == len(vocabulary)
    texts = [
        WIKI,
        "",
        "\n",
        "\n\n a \n",
        f"{EOS} {PAD} {UNK} {EOS}",
        f"x{EOS} <{PAD}> {UNK}{UNK}",
        "\u00a0a\u2003b\tzz\r\n",
        *AWKWARD,
    ]
    for copy in (tokenizer, Tokenizer.from_json(tokenizer.to_json())):
        assert [ids.tolist() for ids in copy.encode_batch(texts)] == [slow_whitespace(t, vocabulary) for t in texts]


def test_whitespace_text_forges_neither_boundary_nor_padding() -> None:
    tokenizer = Tokenizer.train([f"{EOS} {PAD} {UNK} a"] * 3, "whitespace", vocab_size=50)
    assert tokenizer.vocab_size == 4
    assert tokenizer.encode_batch([f"{EOS} a {PAD}"])[0].tolist() == [1, 3, 1]


def test_whitespace_folds_case_where_asked_to() -> None:
    tokenizer = Tokenizer.train(["The the <PAD> <EOS>"] * 2, "whitespace", vocab_size=50, lowercase=True)
    assert tokenizer.vocab_size == 4
    assert tokenizer.encode_batch(["THE <EOS> <PAD> <UNK>\nthe"])[0].tolist() == [3, 1, 1, 1, 2, 3]


@pytest.mark.parametrize("kind", ["word", "whitespace"])
def test_a_vocabulary_without_a_limit_has_every_word(kind: str) -> None:
    text = " ".join(f"w{i}" for i in range(40_000))  # more than the library's own default
    tokenizer = Tokenizer.train([text], kind, vocab_size=0, min_frequency=1)  # type: ignore[arg-type]
    assert tokenizer.vocab_size == 40_003
    with pytest.raises(UserError, match="vocab_size 0 is too small for a bpe"):
        Tokenizer.train([text], "bpe", vocab_size=0)


@pytest.mark.parametrize("kind", ["bpe", "word", "whitespace"])
def test_packed_ids_are_those_of_a_batch(kind: str) -> None:
    tokenizer = Tokenizer.train(TEXTS, kind, vocab_size=300)  # type: ignore[arg-type]
    for texts in (TEXTS + AWKWARD, [], [""]):
        ids, lengths = tokenizer.encode_packed(texts, np.dtype("<u2"))
        expected = tokenizer.encode_batch(texts)
        assert ids.tolist() == [i for document in expected for i in document.tolist()]
        assert lengths.tolist() == [len(document) for document in expected]
        assert (ids.dtype, lengths.dtype) == (np.uint16, np.int64)
