"""Weights from another run: what is taken over, and what is said where it doesn't fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lit_sft.checkpoints import NETWORK, Checkpoint
from lit_sft.data.tokenization import Tokenizer
from lit_sft.errors import UserError
from lit_sft.models import Network
from lit_sft.models.normalised import folded
from lit_sft.starting import Source, check_start
from lit_sft.vocabulary import remapped

ENCODER, CLASSIFIER, LM_HEAD = "encoder.", "classifier.", "lm_head."
OBJECTIVE = "objective."  # where the LightningModule keeps one that has weights
HEADS = {  # what to call a head, and the options that decide its shape
    LM_HEAD: ("LM head", "model.tie_weights_up_to and model.adaptive_cutoffs"),
    CLASSIFIER: ("classifier", "model.pooling and model.head_hidden_size"),
}


def load_pretrained(
    network: Network,
    sources: Sequence[Checkpoint],
    tokenizer: Tokenizer,
    remap: bool = False,
    label_names: Sequence[str] = (),
) -> tuple[int, int]:
    """Copy a checkpoint's whole encoder, and those heads that fit as a whole by name and shape; others are left behind.

    A classifier of other labels, or of the same in another order, is: its outputs mean something else.

    Of two checkpoints, the one that reads forward and the one that reads backward, the encoders alone, each into its
    stack of a ``TwoWayEncoder``.

    Args:
        network: takes the weights.
        sources: one checkpoint, or two.
        tokenizer: of the run.
        remap: where it isn't the checkpoint's, take over the rows of the tokens that both have
            (:mod:`lit_sft.vocabulary`).
        label_names: of the run.

    Returns:
        How many tensors were loaded, and how many of the network's own start fresh.

    Raises:
        UserError: another tokenizer and no ``remap`` (its rows would mean other tokens), or an encoder of another kind
            or shape.
    """
    check_start(type(network.encoder), [Source.of(source) for source in sources])
    own = network.state_dict()
    kept: dict[str, Tensor] = {}
    for source in sources:
        weights, place = source.network_weights(), ENCODER
        if len(sources) > 1:
            place = f"{ENCODER}{source.direction}_stack."
            weights = {place + n.removeprefix(ENCODER): w for n, w in weights.items() if n.startswith(ENCODER)}
        if source.tokenizer().digest != tokenizer.digest:
            if not remap:
                raise UserError(
                    f"the tokenizer doesn't fit {source.path}: fine-tuning takes the tokenizer of its init_from; leave "
                    "out --data.tokenizer, or take over what both have: --model.remap_vocabulary true"
                )
            weights = remapped(weights, network, tokenizer, source)
        weights = folded(weights, network)
        if (source.label_names, source.multilabel) != ([*label_names], network.multilabel):
            weights = {name: w for name, w in weights.items() if not name.startswith(CLASSIFIER)}
        if misfit := first_misfit(own, weights, place):
            raise UserError(
                f"the encoder doesn't fit {source.path}: {misfit}; give model.encoder the options of the pretraining"
            )
        for prefix, (name, options) in HEADS.items():
            both = all(any(n.startswith(prefix) for n in names) for names in (own, weights))
            if both and (misfit := first_misfit(own, weights, prefix)):  # half a head says nothing
                rank_zero_warn(f"the {name} of {source.path} starts fresh: {misfit}; give {options} of its run")
                weights = {n: w for n, w in weights.items() if not n.startswith(prefix)}
        kept |= {n: w for n, w in weights.items() if n in own and own[n].shape == w.shape}
    network.load_state_dict(kept, strict=False)
    paths = " and ".join(str(source.path) for source in sources)
    rank_zero_info(f"init_from {paths}: loaded {len(kept)} tensors, {len(own) - len(kept)} start fresh")
    return len(kept), len(own) - len(kept)


def load_rest(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy what a module has beside its network, layers of a subclass's own, from a checkpoint.

    An objective with weights may be another one than the checkpoint's: its weights start fresh where these don't fit.

    Raises:
        UserError: a layer that isn't the same in the checkpoint.
    """
    own = {name: weight for name, weight in module.state_dict().items() if not name.startswith(NETWORK)}
    theirs = {name: weight for name, weight in checkpoint.state_dict.items() if name in own}
    if first_misfit(own, theirs, OBJECTIVE):
        own, theirs = ({n: w for n, w in one.items() if not n.startswith(OBJECTIVE)} for one in (own, theirs))
    if misfit := first_misfit(own, theirs):
        raise UserError(f"{checkpoint.path} doesn't fit {type(module).__name__}: {misfit}; load it with its own class")
    module.load_state_dict(theirs, strict=False)


def first_misfit(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], prefix: str = "") -> str | None:
    """The first tensor (of those whose names start with ``prefix``) that isn't the same shape in both, in words."""
    for name in sorted(n for n in {*own, *theirs} if n.startswith(prefix)):
        if _shape(own, name) != _shape(theirs, name):
            return f"{name} is {_shape(own, name)} here and {_shape(theirs, name)} there"
    return None


def _shape(weights: Mapping[str, Tensor], name: str) -> str:
    return str(tuple(weights[name].shape)) if name in weights else "missing"
