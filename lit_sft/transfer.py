"""Copy weights from another run: which ones are taken over, and what is reported if they don't fit."""

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
OBJECTIVE = "objective."  # the prefix of an objective's weights in the LightningModule
HEADS = {  # the name of a head in messages, and the options that decide its shape
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
    """Copy a checkpoint's encoder and those of its heads whose weights all fit by name and shape.

    A classifier with other labels, or the same in another order, is not copied: its outputs mean something else.

    From two checkpoints, one that reads forward and one that reads backward, only the encoders are copied, each into
    its stack of a ``TwoWayEncoder``.

    Args:
        network: receives the weights.
        sources: one or two checkpoints.
        tokenizer: the run's tokenizer.
        remap: if that isn't the checkpoint's tokenizer, copy the rows of the tokens that both have
            (:mod:`lit_sft.vocabulary`).
        label_names: the run's classes.

    Returns:
        The number of tensors that were loaded, and of the network's other tensors, which start fresh.

    Raises:
        UserError: another tokenizer without ``remap`` (rows would belong to other tokens), or an encoder of another
            kind or shape.
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
            if both and (misfit := first_misfit(own, weights, prefix)):  # a part of a head is useless
                rank_zero_warn(f"the {name} of {source.path} starts fresh: {misfit}; give {options} of its run")
                weights = {n: w for n, w in weights.items() if not n.startswith(prefix)}
        kept |= {n: w for n, w in weights.items() if n in own and own[n].shape == w.shape}
    network.load_state_dict(kept, strict=False)
    paths = " and ".join(str(source.path) for source in sources)
    rank_zero_info(f"init_from {paths}: loaded {len(kept)} tensors, {len(own) - len(kept)} start fresh")
    return len(kept), len(own) - len(kept)


def load_rest(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy a module's weights outside its network, such as a subclass's own layers, from a checkpoint.

    An objective with weights may differ from the checkpoint's: if its weights don't all fit, they start fresh.

    Raises:
        UserError: a layer that is missing in the checkpoint or has another shape there.
    """
    own = {name: weight for name, weight in module.state_dict().items() if not name.startswith(NETWORK)}
    theirs = {name: weight for name, weight in checkpoint.state_dict.items() if name in own}
    if first_misfit(own, theirs, OBJECTIVE):
        own, theirs = ({n: w for n, w in one.items() if not n.startswith(OBJECTIVE)} for one in (own, theirs))
    if misfit := first_misfit(own, theirs):
        raise UserError(f"{checkpoint.path} doesn't fit {type(module).__name__}: {misfit}; load it with its own class")
    module.load_state_dict(theirs, strict=False)


def first_misfit(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], prefix: str = "") -> str | None:
    """Describe the first tensor with this name prefix that one side lacks or whose shapes differ; None if all fit."""
    for name in sorted(n for n in {*own, *theirs} if n.startswith(prefix)):
        if _shape(own, name) != _shape(theirs, name):
            return f"{name} is {_shape(own, name)} here and {_shape(theirs, name)} there"
    return None


def _shape(weights: Mapping[str, Tensor], name: str) -> str:
    return str(tuple(weights[name].shape)) if name in weights else "missing"
