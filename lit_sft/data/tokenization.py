"""Text to token ids and back, on top of the ``tokenizers`` library."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from lit_sft.data.sources import expanded
from lit_sft.errors import UserError, first_line

# If this is unset, the library warns in every forked loader worker, though these never tokenise. A fork of the user's
# may tokenise, but without threads: it would wait forever for the library's threads, which don't exist in a fork.
if "TOKENIZERS_PARALLELISM" not in os.environ:
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=lambda: os.environ.update(TOKENIZERS_PARALLELISM="false"))

PAD = "<pad>"
UNK = "<unk>"
EOS = "<eos>"
SPECIAL_TOKENS = (PAD, UNK, EOS)
NO_LIMIT = 1 << 32
_WORD = r"(?<!\S)<({})>(?!\S)"  # a special token that stands alone
# Byte pairs are merged within a piece. The pieces are GPT-2's (Radford et al. 2019), except that marks (the vowel signs
# of Indic scripts, accents without a composed form) and the two joiners belong to their word, which would otherwise be
# split into letters. A run continues in a new piece after 256 characters: the time to learn merges grows with the
# square of a piece's length, and a text without blanks and punctuation could be a single piece.
_PIECES = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}\p{M}\u200C\u200D]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}\u200C\u200D]+|\s+(?!\S)|\s+"
).replace("+", "{1,256}")
TokenizerKind = Literal["bpe", "word", "whitespace"]
KINDS = get_args(TokenizerKind)
RARE = "\U00013080"  # a letter that hardly any training text has: an Egyptian hieroglyph


class Tokenizer:
    """A vocabulary and its rules: byte-level BPE, whole words, or any ``tokenizer.json``.

    A tokenizer that is trained here treats composed and decomposed accents as equal (Unicode's NFC), except
    ``whitespace``.

    ``<eos>`` is the one document boundary: it ends a document and, before the first token, starts it. Text
    that happens to spell a special token is encoded as ordinary characters, so no user text can forge a
    boundary. (``whitespace`` is for text that was tokenised before: there ``<unk>`` is the unknown token, ``<eos>``
    and ``<pad>`` are unknown words, and a newline is an ``<eos>``.)
    Truncation and padding stored in a given file are switched off, since batching decides both, and so is BPE dropout.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if getattr(tokenizer.model, "dropout", None):  # BPE's, for training: a text would have other tokens each time
            tokenizer.model.dropout = None
        tokenizer.encode_special_tokens = True  # not part of the JSON, so it is set here, for every origin
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS))  # keeps the ids of those already there
        self.pad_id, self.unk_id, self.eos_id = (self._id(token) for token in SPECIAL_TOKENS)
        unknown = getattr(tokenizer.model, "unk_token", None)  # a given file's model may have another name for it
        if isinstance(unknown, str) and tokenizer.token_to_id(unknown) is not None:
            self.unk_id = self._id(unknown)
        if isinstance(tokenizer.model, models.Unigram):  # which has an id instead, found only in its JSON
            number = json.loads(tokenizer.to_str())["model"].get("unk_id")
            self.unk_id = self.unk_id if number is None else int(number)
        self.vocab_size: int = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        kind: TokenizerKind,
        vocab_size: int,
        lowercase: bool = False,
        min_frequency: int = 2,
        replace: Mapping[str, str] | None = None,
    ) -> Tokenizer:
        """Learn a vocabulary of at most ``vocab_size`` tokens, the three special ones included.

        Args:
            texts: training text only.
            kind: ``bpe``, byte-level byte-pair encoding (any NFC text round-trips, nothing is unknown; Sennrich
                et al. 2016 on the bytes of Radford et al. 2019), ``word``, split at white space and punctuation, or
                ``whitespace``, split at white space alone, for text that was tokenised before (as WikiText was).
            vocab_size: the upper limit; small corpora give fewer. 0: no limit, for words.
            lowercase: fold case after ``replace`` and before splitting (decoding gives lower case back).
            min_frequency: pairs (bpe) or words rarer than this get no token.
            replace: regular expressions (Oniguruma's) and the replacements of their matches, applied in this order to
                every text, right after NFC, in training and in encoding.

        Raises:
            UserError: an unknown ``kind``, a ``vocab_size`` too small for it, a wrong expression, or no word left to
                learn.
        """
        if kind not in KINDS:
            raise UserError(f"tokenizer kind {kind!r} is unknown: use {', '.join(map(repr, KINDS))}")
        smallest = len(SPECIAL_TOKENS) + (256 if kind == "bpe" else 1)
        if vocab_size < smallest and (kind == "bpe" or vocab_size != 0):
            raise UserError(f"vocab_size {vocab_size} is too small for a {kind} tokenizer: use {smallest} or more")
        tokenizer, trainer = _untrained(kind, vocab_size or NO_LIMIT, min_frequency)
        to_learn, to_encode = _normalizers(kind, lowercase, replace or {})
        tokenizer.normalizer = to_learn
        tokenizer.train_from_iterator(encodable(texts), trainer=trainer)
        tokenizer.normalizer = to_encode
        trained = cls(tokenizer)
        if trained.vocab_size < smallest:
            raise UserError(f"no word occurs {min_frequency} times in the training text: there is no vocabulary")
        return trained

    @classmethod
    def from_json(cls, text: str, source: str = "tokenizer.json") -> Tokenizer:
        """The tokenizer a JSON text describes; ``source`` names it in the error.

        Special tokens it lacks are added behind its own vocabulary.

        Raises:
            UserError: the text is not the JSON of a tokenizer.
        """
        try:
            return cls(tokenizers.Tokenizer.from_str(text))
        except Exception as error:  # the library raises bare Exception here
            raise UserError(f"{source} is not a tokenizer: {first_line(error)}") from error

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """The tokenizer in a ``tokenizer.json``.

        Raises:
            UserError: there is no such file, or it holds something else.
        """
        path = expanded(path)
        if not path.is_file():
            problem = "is not a file" if path.exists() else f"does not exist (nor is it one of {', '.join(KINDS)})"
            raise UserError(f"tokenizer file {path} {problem}")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not a tokenizer: its bytes are not UTF-8") from error
        return cls.from_json(text, source=str(path))

    @classmethod
    def given(cls, path: str | Path) -> Tokenizer:
        """The same, of a file that the user names, which must not lose text silently.

        Raises:
            UserError: as :meth:`from_file`; also if it can't encode characters that it doesn't know, or drops them.
        """
        found = cls.from_file(path)
        try:
            lost = not len(found.encode_batch([RARE])[0])
        except Exception as error:  # the library raises bare Exception here
            raise UserError(f"{path}: it can't encode what it doesn't know: {first_line(error)}") from error
        if lost:
            raise UserError(f"{path}: it drops what it doesn't know without a word: give its model an unk_token")
        return found

    def to_json(self) -> str:
        """The whole tokenizer as JSON, as ``tokenizer.json`` holds it."""
        return str(self._tokenizer.to_str())

    @cached_property
    def entries(self) -> dict[str, int]:
        """Every token and its id, the special ones included."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    @property
    def special_ids(self) -> tuple[int, int, int]:
        """The ids of ``<eos>``, ``<pad>`` and ``<unk>``."""
        return self.eos_id, self.pad_id, self.unk_id

    @property
    def model(self) -> str:
        """What kind of tokens it has, as the library calls it: ``BPE``, ``WordLevel``, ..."""
        return type(self._tokenizer.model).__name__

    @cached_property
    def digest(self) -> str:
        """16 hex digits that differ when the tokenizer does; independent of how its JSON is laid out."""
        canonical = json.dumps(json.loads(self.to_json()), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("utf-8")).hexdigest()[:16]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, int64 of shape (tokens,), without special tokens; uses all cores."""
        return [np.array(encoding.ids, dtype=np.int64) for encoding in self._encode(texts)]

    def encode_packed(self, texts: Sequence[str], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """The same ids, concatenated, (all tokens,), and the number of ids of each text, int64 (texts,)."""
        encodings = self._encode(texts)
        lengths = np.array([len(encoding) for encoding in encodings], dtype=np.int64)
        ids = itertools.chain.from_iterable(encoding.ids for encoding in encodings)
        return np.fromiter(ids, dtype=dtype, count=int(lengths.sum())), lengths

    def _encode(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        encoded: list[tokenizers.Encoding] = self._tokenizer.encode_batch_fast(
            list(encodable(texts)), add_special_tokens=False
        )
        return encoded

    def normalized(self, text: str) -> str:
        """The text as it is split: with the tokenizer's replacements, and in lower case if it folds case."""
        normalizer = self._tokenizer.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(next(encodable([text]))))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``, special tokens left out. For ``bpe`` the exact inverse of encoding (of NFC)."""
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))

    def _id(self, token: str) -> int:
        number = self._tokenizer.token_to_id(token)
        assert number is not None, token
        return int(number)

    def __getstate__(self) -> dict[str, str]:
        return {"json": self.to_json()}

    def __setstate__(self, state: dict[str, str]) -> None:
        self.__init__(tokenizers.Tokenizer.from_str(state["json"]))  # type: ignore[misc]


def shows_progress() -> bool:
    """Whether training a vocabulary may show its progress: standard error is a terminal. It is None if it is closed."""
    return bool(sys.stderr and sys.stderr.isatty())


def _untrained(
    kind: TokenizerKind, vocab_size: int, min_frequency: int
) -> tuple[tokenizers.Tokenizer, trainers.Trainer]:
    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "min_frequency": min_frequency,
        "special_tokens": list(SPECIAL_TOKENS),  # first in the list, so ids 0, 1, 2
        "show_progress": shows_progress(),
    }
    if kind == "bpe":
        tokenizer = tokenizers.Tokenizer(models.BPE())
        pieces = pre_tokenizers.Split(Regex(_PIECES), "isolated")
        as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, as_bytes])
        tokenizer.decoder = decoders.ByteLevel()
        # All 256 bytes, seen or not: otherwise a character missing from the training text would vanish.
        return tokenizer, trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **common)
    tokenizer = tokenizers.Tokenizer(models.WordLevel(unk_token=UNK))
    at_white_space = pre_tokenizers.WhitespaceSplit()
    words = pre_tokenizers.Sequence([at_white_space, pre_tokenizers.Punctuation()])
    tokenizer.pre_tokenizer = words if kind == "word" else at_white_space
    return tokenizer, trainers.WordLevelTrainer(**common)


def _normalizers(kind: TokenizerKind, lowercase: bool, replace: Mapping[str, str]) -> tuple[Any, Any]:
    """Normalizers of the text before it is split: one for learning the vocabulary, and one for encoding."""
    for pattern in replace if kind != "whitespace" else ():
        if (composed := unicodedata.normalize("NFC", pattern)) != pattern:
            raise UserError(
                f"data.replace {pattern!r} has an accent apart from its letter, and texts are composed (NFC) before: "
                f"write {composed!r}"
            )
    first: list[Any] = [_replacement(pattern, by) for pattern, by in replace.items()]
    first += [normalizers.Lowercase()] if lowercase else []
    if kind != "whitespace":
        both = normalizers.Sequence([normalizers.NFC(), *first])
        return both, both
    # The vocabulary has the special tokens already. Afterwards ``<unk>`` and ``<eos>`` are looked up in it as words.
    learn = normalizers.Sequence([*first, normalizers.Replace(Regex(_WORD.format(r"pad|unk|eos")), " ")])
    forged = normalizers.Replace(Regex(_WORD.format(r"pad|eos")), UNK)
    return learn, normalizers.Sequence([*first, forged, normalizers.Replace("\n", f" {EOS} ")])


def _replacement(pattern: str, by: str) -> Any:
    if found := re.search(r"\\\d|\\g<|\$\d|\$\{", by):
        raise UserError(
            f"data.replace {pattern!r}: {found[0]} in {by!r} would stand there as it is, not for a group of the "
            "pattern: write a pattern that leaves the rest alone, such as (?<=a)-(?=b)"
        )
    try:
        return normalizers.Replace(Regex(pattern), by)
    except Exception as error:  # the library raises bare Exception here
        raise UserError(f"data.replace {pattern!r} is not a regular expression: {first_line(error)}") from error


def encodable(texts: Iterable[str]) -> Iterator[str]:
    """The texts, with ``?`` for lone surrogates: JSON can spell them, UTF-8 (and the library) cannot."""
    for text in texts:
        try:
            text.isascii() or text.encode("utf-8")  # isascii takes no time: strings know it
        except UnicodeEncodeError:
            text = text.encode("utf-8", "replace").decode("utf-8")
        yield text
