"""The LightningModule: which step, which optimizer, what is logged, what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric

from lit_sft.building import Blueprint, check_stage_and_labels
from lit_sft.checkpoints import NETWORK, InitFrom, checkpoint_in, contents, read_checkpoint, resolve
from lit_sft.data.adopted import Adopted
from lit_sft.data.datamodule import TextDataModule
from lit_sft.data.extension import EXTEND
from lit_sft.data.tokenization import Tokenizer
from lit_sft.diagnostics import log_measured
from lit_sft.errors import UserError
from lit_sft.evaluation.passes import Evaluation
from lit_sft.evaluation_steps import Batch, EvaluationSteps
from lit_sft.first_look import see_documents, start_network
from lit_sft.models import Encoder, LSTMEncoder, LSTMState, Network
from lit_sft.objectives import MLE, Objective, Supervised
from lit_sft.optim import Schedule, WarmupCosine, build_optimizer, clip_gradients, steps_of_fit, take_options, unscales
from lit_sft.random_states import go_on_drawing, random_states
from lit_sft.ranks import of_all_ranks, of_this_rank, weighted
from lit_sft.starting import adopted_from, read_sources
from lit_sft.step_rates import StepRates
from lit_sft.stored_network import stored_blueprint, stored_network, take_out_lightnings, with_options
from lit_sft.stored_options import objective_of
from lit_sft.trainer_checks import checked_data
from lit_sft.transfer import first_misfit, load_rest
from lit_sft.watch import Watcher, bar_needs_loss

Stage = Literal["pretrain", "finetune"]


class LitSFT(EvaluationSteps, StepRates):
    """An LSTM that is pretrained on unlabeled text, or fine-tuned on labels or responses to prompts, one stage a run.

    The network is built in ``configure_model``, when the data module knows the vocabulary and the labels.

    Args:
        stage: ``pretrain`` (language modelling) or ``finetune`` (classification, or responses to prompts).
        init_from: a run or checkpoint whose weights and tokenizer this run starts from; without it, from scratch.
            For ``TwoWayEncoder`` two, a forward and a backward pretraining. Not for resuming: that is ``--ckpt_path``.
        encoder: the encoder's class and options; called with the vocabulary size.
        pooling: how the classifier makes one vector of a document.
        head_dropout: dropout before the classifier's output layer.
        head_hidden_size: units of a hidden layer in the classifier; 0 for none.
        tie_weights_up_to: the largest vocabulary whose LM head shares the embedding's weights; above, adaptive softmax.
        adaptive_cutoffs: first token id of each of its clusters of rarer tokens (by default by the vocabulary's size).
        loss_chunk: tokens whose LM logits are in memory at once, in the forward and the backward pass; the same loss
            with less memory and more time. None: all of the batch.
        objective: what is minimised; by default ``MLE`` for pretraining, ``Supervised`` for fine-tuning.
        optimizer: the optimizer's class and options; its rate is that of the top layer.
        schedule: factor on the rate by optimizer step.
        layer_decay: rate of a layer as a share of the one above it (discriminative rates).
        backprop_tokens: tokens at a document's end that the classifier's gradient goes through, though it reads all (it
            goes on for up to a quarter more): long documents for the memory of short ones (BPT3C). None: all.
        remap_vocabulary: use ``data.tokenizer`` and not that of ``init_from``: tokens that both have take over their
            vectors, new ones start from the mean. ``data.tokenizer: extend`` implies it.
        num_beams: of the search for responses to prompts (``Completion``), in ``validate``, ``test`` and ``predict``.
        metrics: figures of your own by their names, of validation and test: any torchmetrics metric that takes
            probabilities (documents, classes) and labels, those of all documents at once.
    """

    def __init__(
        self,
        stage: Stage = "pretrain",
        init_from: InitFrom = None,
        encoder: Callable[[int], Encoder] = LSTMEncoder,
        pooling: Literal["last", "mean", "max", "concat", "attention"] = "concat",
        head_dropout: float = 0.4,
        head_hidden_size: int = 0,
        tie_weights_up_to: int = 10_000,
        adaptive_cutoffs: list[int] | None = None,
        loss_chunk: int | None = None,
        objective: Objective | None = None,
        optimizer: OptimizerCallable = AdamW,
        schedule: Schedule | None = None,
        layer_decay: float = 1.0,
        backprop_tokens: int | None = None,
        remap_vocabulary: bool = False,
        num_beams: int = 1,
        metrics: dict[str, Metric] | None = None,
    ) -> None:
        super().__init__()
        if num_beams < 1:
            raise UserError(f"--model.num_beams {num_beams} must be at least 1")
        self.stage, self.num_beams = stage, num_beams
        self.init_from, self.remap_vocabulary = init_from, remap_vocabulary
        head = (pooling, head_dropout, head_hidden_size, backprop_tokens)
        self.blueprint = Blueprint(encoder, *head, tie_weights_up_to, adaptive_cutoffs, loss_chunk)
        self.blueprint.plain()  # now: what a checkpoint can't hold is told before the training
        self.make_optimizer, self.layer_decay, self.metrics = optimizer, layer_decay, metrics or {}
        self.objective: Objective = objective or (MLE() if stage == "pretrain" else Supervised())
        self.schedule: Schedule = schedule or WarmupCosine()
        self.config: dict[str, Any] = {}  # the run's options as plain values, where the command line has filled it
        self.network: Network | None = None
        self.tokenizer: Tokenizer | None = None
        self.label_names, self.multilabel = list[str](), False
        self._own: Adopted | None = None  # of a network that has weights: what its data take over
        self._data: TextDataModule | None = None  # that it was trained on last
        self._state: LSTMState | None = None  # carried from one training batch of the stream to the next
        self._random: dict[str, Any] | None = None  # the states that a resumed run goes on from
        self._initialized = False  # whether init_from was dealt with: it must not undo a training in this process
        self._fresh_groups: list[dict[str, Any]] = []
        self._watcher = Watcher()

    # ---- building

    def build(self, tokenizer: Tokenizer, label_names: list[str], multilabel: bool = False) -> Network:
        """Make the network for a vocabulary and labels, with the heads that the objective needs.

        ``multilabel``: a document may have several labels, or none, in place of exactly one.

        Raises:
            UserError: labels missing, an objective of the other stage, an option of encoder or heads out of range.
        """
        check_stage_and_labels(self.objective, self.stage, len(label_names), multilabel)
        try:
            network = self.blueprint.build(self.objective, tokenizer.vocab_size, len(label_names), multilabel)
        except ValueError as error:
            raise UserError(f"model: {error}") from error
        return self._keep(network, tokenizer, label_names, multilabel)

    def _keep(self, network: Network, tokenizer: Tokenizer, label_names: list[str], multilabel: bool) -> Network:
        self.evaluation = Evaluation(network, label_names, self.metrics, tokenizer.special_ids, self.num_beams)
        self.network, self.tokenizer, self.multilabel, self.label_names = network, tokenizer, multilabel, [*label_names]
        return network

    def configure_model(self) -> None:
        """Build the network for the data's vocabulary; not in ``setup``, before which weight averaging copies it."""
        data = checked_data(self.trainer)
        if self.network is None:
            self.build(data.tokenizer, data.label_names, data.multilabel)
        names = self.label_names if self.stage == "finetune" else None  # of a network that was built by hand, too
        data.serve(self._own or Adopted(self.tokenizer, names, self.multilabel))
        if self._own is None:
            self._own = data.handed_on(with_labels=self.stage == "finetune")

    def adopted(self, tokenizer: str) -> Adopted:
        """What data with this ``data.tokenizer`` take over of a trained network, or of ``init_from``."""
        return self._own or adopted_from(read_sources(self.init_from), tokenizer == EXTEND, self.remap_vocabulary)

    @_restricted_classmethod  # Lightning's own: called on a module, which it would not change, it says so
    def load_from_checkpoint(cls, checkpoint_path: Any, map_location: Any = None, **options: Any) -> Self:  # type: ignore[override]
        """The module of a run or checkpoint, read as data, to measure or train on; data take its tokenizer and labels.

        Args:
            checkpoint_path: the run or checkpoint.
            map_location: a device; by default the CPU. The Trainer moves it to its own in any case.
            options: what the weights don't decide, such as ``optimizer``, ``metrics`` and ``head_dropout``; an
                ``encoder`` of your own as for :func:`lit_sft.load`, whose errors this has, too.
        """
        take_out_lightnings(options)
        checkpoint, encoder = read_checkpoint(resolve(checkpoint_path, "ckpt_path")), options.pop("encoder", None)
        blueprint = with_options(stored_blueprint(checkpoint, encoder), options)
        options = {"objective": objective_of(checkpoint), "num_beams": checkpoint.num_beams, **options}
        module = cls(checkpoint.stage, **options)
        module.blueprint = blueprint
        network = stored_network(checkpoint, module.blueprint, module.objective)
        module._keep(network, checkpoint.tokenizer(), checkpoint.label_names, checkpoint.multilabel)
        module.evaluation.thresholds = checkpoint.thresholds
        module._own, module._initialized = checkpoint.adopted(), True
        load_rest(module, checkpoint)
        return module if map_location is None else module.to(map_location)

    def _start(self) -> None:
        """Load ``init_from``, unless the weights are a checkpoint's (``setup`` can't tell) or were trained already."""
        if not self.trainer.ckpt_path and not self._initialized:
            start_network(self.net, self.text_data, self.init_from, self.remap_vocabulary, self.label_names)
        self._initialized = True

    def on_fit_start(self) -> None:
        """Load ``init_from``, unless the run is resumed; show the objective the documents."""
        self._start()
        with self.trainer.precision_plugin.train_step_context():
            see_documents(self.objective, self.net, self.text_data)

    def on_validation_start(self) -> None:
        """What is measured before a fit is ``init_from``, too."""
        if self.init_from and self.trainer.state.fn != "fit":
            with torch.inference_mode(False):  # a fit may follow
                self._start()

    on_test_start = on_validation_start

    # ---- training

    def training_step(self, batch: Mapping[str, Batch], batch_idx: int) -> Tensor | None:
        """One step of the objective; the stream's hidden state is carried over, without its gradient.

        None, with which Lightning goes on to the next batch, where the watcher refuses this one; its state is kept.
        Of several processes the loss is logged over all of them, its parts as the first one has them.
        """
        self.objective.step = self.trainer.global_step
        loss = self.objective(self.net, batch, self._state)
        self._state = loss.state
        size = sum(b.num_tokens for b in batch.values())
        total, mean = weighted(self.trainer, loss.shares or [(loss.total, loss.weight)])
        self.log("train/loss", mean, batch_size=size, prog_bar=bar_needs_loss(self.trainer))
        if len(loss.parts) > 1:
            self.log_dict({f"train/{name}": value for name, value in loss.parts.items()}, batch_size=size)
        if loss.measured:
            log_measured(self.trainer, {f"train/{name}": value for name, value in loss.measured.items()})
        return total * self.share_of_step(batch_idx) if self._watcher.accepts(self.trainer, mean) else None

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip as the Trainer is told, and log the gradient's norm from before."""
        if unscales(optimizer, self.trainer.precision_plugin):  # only Lightning says why they can't be clipped then
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        norm = clip_gradients(optimizer, gradient_clip_val or 0.0, by_value=gradient_clip_algorithm == "value")
        if norm is not None:
            self.log("train/grad_norm", norm, batch_size=1)
            self._watcher.see_gradient(self.trainer, norm, optimizer)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, a parameter group or two a layer, and the schedule by optimizer step."""
        try:
            optimizer = build_optimizer(self.make_optimizer, self.net.layer_groups(), self.layer_decay)
        except ValueError as error:
            raise UserError(f"model.optimizer: {error}") from error
        total = self.total_steps()
        schedule = LambdaLR(optimizer, lambda step: self.schedule(step, total))
        self._fresh_groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}

    def total_steps(self) -> int:
        """Optimizer steps of the whole fit, 0 where no limit is set; a UserError where the schedule needs one."""
        trainer, batches = self.trainer, self.text_data.train_batches()
        limits = (trainer.limit_train_batches, trainer.accumulate_grad_batches, trainer.max_epochs, trainer.max_steps)
        steps = steps_of_fit(batches, *limits)
        if steps == 0 and self.schedule.needs_total:
            kind = type(self.schedule).__name__
            raise UserError(f"{kind} needs the number of steps: set --trainer.max_epochs or --trainer.max_steps")
        return steps

    def on_train_start(self) -> None:
        """After a resume the config's optimizer options win over the checkpoint's; what changed is printed."""
        self._data = data = self.text_data
        self._own = data.handed_on(with_labels=self.stage == "finetune")  # now they know of init_from and of a resume
        if self._state is not None:
            self._state = tuple(tuple(t.to(self.device) for t in layer) for layer in self._state)
        go_on_drawing(self._random, self.trainer.global_rank)  # only now: building the model has drawn
        self._random = None
        self._watcher = Watcher.among(self.trainer.callbacks)  # type: ignore[attr-defined]
        scheduler = self.lr_schedulers()
        if not isinstance(scheduler, LambdaLR):
            raise UserError("LitSFT resumes and logs the schedule of its own: for another give model.schedule")
        if changed := take_options(scheduler, self._fresh_groups):
            rank_zero_info("resumed with changed options: " + "; ".join(changed))

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_data": None}  # a copy of the module has no copy of its data

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add our part. Outside a fit it describes the data that the module was trained on, whatever is there now."""
        assert self.tokenizer is not None
        assert self._own is not None
        self._watcher.before_saving(self.trainer)
        ranks = of_all_ranks(self.trainer, {"state": self._state, "random": random_states()})
        labels, fed = (self.label_names, self.multilabel, self.evaluation.thresholds), dict(self._own.before)
        data = self.text_data
        if self._data is not None and self.trainer.state.fn != "fit":
            data = self._data
            checkpoint[type(data).__qualname__] = data.state_dict()
        model = {"stage": self.stage, "num_beams": self.num_beams, **self.blueprint.plain()}
        trainer = {"precision": self.trainer.precision}
        config = (self.config or {"model": model, "data": data.plain_options()}) | {"trainer": trainer}
        checkpoint["lit_sft"] = contents(self.stage, self.tokenizer.to_json(), *labels, fed, config, ranks)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the carried state; a checkpoint of another shape is the user's mistake, named here and not by torch."""
        if "lit_sft" not in checkpoint:
            raise UserError("the checkpoint to resume from is not one of lit_sft's")
        if self.trainer.state.fn == "fit":
            own = of_this_rank(self.trainer, checkpoint["lit_sft"]["ranks"])
            self._state, self._random = own["state"], own["random"]
        else:  # evaluation takes no objective's weights; Lightning would ask for these callbacks
            checkpoint["callbacks"], found, own = {}, checkpoint["state_dict"], self.state_dict()
            checkpoint["state_dict"] = {n: w for n, w in found.items() if n.startswith(NETWORK) or n in own}
        if misfit := first_misfit(self.state_dict(), checkpoint["state_dict"]):
            raise UserError(f"the checkpoint doesn't fit the model: {misfit}; give --model the options of its run")
        self._own = checkpoint_in(checkpoint, Path(str(self.trainer.ckpt_path))).adopted()
        self.text_data.serve(self._own)
        self.evaluation.thresholds = checkpoint["lit_sft"].get("thresholds")
