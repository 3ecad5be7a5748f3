"""A word-level vocabulary that grows: known words keep their ids, the words of new training text come behind them."""

from __future__ import annotations

import json
from collections.abc import Iterable

import tokenizers
from tokenizers import trainers

from lit_sft.data.tokenization import NO_LIMIT, Tokenizer, encodable, shows_progress
from lit_sft.errors import UserError

EXTEND = "extend"  # the value of data.tokenizer
NO_BASE = f"--data.tokenizer {EXTEND} needs --model.init_from, the run whose tokenizer is extended"


def check_extendable(tokens: str, source: str) -> None:
    """Raise a UserError if ``tokens`` (see :attr:`Tokenizer.model`) are not words; ``source`` names their origin."""
    if tokens != "WordLevel":
        raise UserError(
            f"--data.tokenizer extend is for word-level tokenizers, and that of {source} is {tokens}, which "
            "spells every word with the tokens that it has: leave out --data.tokenizer"
        )


def extended(base: Tokenizer, texts: Iterable[str], vocab_size: int, min_frequency: int) -> Tokenizer:
    """Extend ``base``: its ids, normalisation and splitting stay; new words of ``texts`` get the ids after its own.

    Args:
        base: a word-level tokenizer.
        texts: training text only.
        vocab_size: maximum size of the extended vocabulary; the most frequent new words are taken. 0: no limit.
        min_frequency: a new word rarer than this gets no entry.

    Raises:
        UserError: another kind of tokenizer, a limit below the size of ``base``, or special tokens that change ids.
    """
    check_extendable(base.model, "the checkpoint")
    room = (vocab_size or NO_LIMIT) - base.vocab_size
    if room < 0:
        raise UserError(
            f"--data.vocab_size {vocab_size} is below the {base.vocab_size} entries of the tokenizer to extend: it is "
            "the limit of both together; 0 is none"
        )
    rules = json.loads(base.to_json())
    empty = {**rules, "added_tokens": [], "model": {**rules["model"], "vocab": {}}}
    learner = tokenizers.Tokenizer.from_str(json.dumps(empty))
    trainer = trainers.WordLevelTrainer(
        vocab_size=NO_LIMIT, min_frequency=min_frequency, special_tokens=[], show_progress=shows_progress()
    )
    learner.train_from_iterator(encodable(texts), trainer=trainer)
    found = learner.get_vocab()
    new = [word for word in sorted(found, key=found.__getitem__) if word not in base.entries][:room]
    rules["model"]["vocab"] |= {word: base.vocab_size + place for place, word in enumerate(new)}
    grown = Tokenizer.from_json(json.dumps(rules))
    if not base.entries.items() <= grown.entries.items():
        raise UserError(
            "--data.tokenizer extend: this tokenizer's special tokens would get other ids; give another one"
        )
    return grown
