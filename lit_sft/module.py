"""The LightningModule: the training step, the optimizer, logging, and this package's part of a checkpoint."""

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
from lit_sft.diagnostics import log_parts
from lit_sft.errors import UserError
from lit_sft.evaluation.passes import Evaluation
from lit_sft.evaluation_steps import Batch, EvaluationSteps
from lit_sft.first_look import see_documents, start_network
from lit_sft.models import Encoder, LSTMEncoder, LSTMState, Network
from lit_sft.objectives import MLE, Objective, Supervised
from lit_sft.optim import Schedule, WarmupCosine, build_optimizer, clip_gradients, steps_of_fit, unscales
from lit_sft.random_states import go_on_drawing, random_states
from lit_sft.ranks import of_all_ranks, of_this_rank, weighted
from lit_sft.resumed_optimizer import take_options
from lit_sft.starting import adopted_from, read_sources
from lit_sft.step_rates import StepRates
from lit_sft.stored_network import stored_blueprint, stored_network, take_out_lightnings, with_options
from lit_sft.stored_options import objective_of
from lit_sft.trainer_checks import checked_data
from lit_sft.transfer import first_misfit, load_rest
from lit_sft.watch import Watcher, bar_needs_loss

Stage = Literal["pretrain", "finetune"]


class LitSFT(EvaluationSteps, StepRates):
    """An LSTM that is pretrained on unlabeled text, or fine-tuned on labels or responses to prompts; one stage per run.

    The network is built in ``configure_model``, when the data module knows the vocabulary and the labels.

    Args:
        stage: ``pretrain`` (language modelling) or ``finetune`` (classification, or responses to prompts).
        init_from: a run or checkpoint whose weights and tokenizer this run starts from; by default from scratch.
            ``TwoWayEncoder`` takes two, a forward and a backward pretraining. To resume a run, use ``--ckpt_path``.
        encoder: the encoder's class and options; called with the vocabulary size.
        pooling: how the classifier combines the vectors of a document's tokens into one.
        head_dropout: dropout before the classifier's output layer.
        head_hidden_size: units of a hidden layer in the classifier; 0 for none.
        tie_weights_up_to: largest vocabulary with an LM head tied to the embedding; above it, an adaptive softmax.
        adaptive_cutoffs: first token id of each adaptive-softmax cluster of rare tokens (default: by vocabulary size).
        loss_chunk: number of tokens whose LM logits are in memory at once, in the forward and the backward pass; the
            loss is the same, with less memory and more time. None: the whole batch.
        objective: what is minimised; by default ``MLE`` for pretraining, ``Supervised`` for fine-tuning.
        optimizer: the optimizer's class and options; its learning rate is that of the top layer.
        schedule: factor on the learning rate at each optimizer step.
        layer_decay: learning rate of a layer divided by that of the layer above it (discriminative rates).
        backprop_tokens: number of tokens at a document's end that get a gradient from the classifier (up to a quarter
            more); it still reads all tokens. Saves memory for long documents (BPT3C). None: all tokens.
        remap_vocabulary: use ``data.tokenizer`` instead of the tokenizer of ``init_from``: tokens in both keep their
            vectors, new ones start from the mean vector. ``data.tokenizer: extend`` implies it.
        num_beams: beams of the search for responses (``Completion``) in ``validate``, ``test`` and ``predict``.
        metrics: your own figures of validation and test, by name: torchmetrics metrics of probabilities (documents,
            classes) and labels. Each gets all documents at once.
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
        self.blueprint.plain()  # now, so that options that a checkpoint can't hold fail before training
        self.make_optimizer, self.layer_decay, self.metrics = optimizer, layer_decay, metrics or {}
        self.objective: Objective = objective or (MLE() if stage == "pretrain" else Supervised())
        self.schedule: Schedule = schedule or WarmupCosine()
        self.config: dict[str, Any] = {}  # the run's options as plain values, set by the command line only
        self.network: Network | None = None
        self.tokenizer: Tokenizer | None = None
        self.label_names, self.multilabel = list[str](), False
        self._own: Adopted | None = None  # what data take over from the network, once it has weights
        self._data: TextDataModule | None = None  # the data of the last training
        self._state: LSTMState | None = None  # carried from one training batch of the stream to the next
        self._random: dict[str, Any] | None = None  # random states to restore in a resumed run
        self._initialized = False  # whether init_from was handled: loading it again would undo a training
        self._fresh_groups: list[dict[str, Any]] = []
        self._watcher = Watcher()

    # ---- building

    def build(self, tokenizer: Tokenizer, label_names: list[str], multilabel: bool = False) -> Network:
        """Build the network for a vocabulary and labels, with the heads that the objective needs.

        ``multilabel``: whether a document may have any number of labels instead of exactly one.

        Raises:
            UserError: too few labels, an objective of the other stage, or an encoder or head option out of range.
        """
        check_stage_and_labels(self.objective, self.stage, len(label_names), multilabel)
        try:
            network = self.blueprint.build(self.objective, tokenizer.vocab_size, len(label_names), multilabel)
        except ValueError as error:
            raise UserError(f"model: {error}") from error
        return self._keep(network, tokenizer, label_names, multilabel)

    def _keep(self, network: Network, tokenizer: Tokenizer, label_names: list[str], multilabel: bool) -> Network:
        self.evaluation = Evaluation(network, label_names, self.metrics, tokenizer.special_ids, self.num_beams)
        self.objective.special_ids = tokenizer.special_ids
        self.network, self.tokenizer, self.multilabel, self.label_names = network, tokenizer, multilabel, [*label_names]
        return network

    def configure_model(self) -> None:
        """Build the network for the data's vocabulary. (Before ``setup``, weight averaging copies the module.)"""
        data = checked_data(self.trainer)
        if self.network is None:
            self.build(data.tokenizer, data.label_names, data.multilabel)
        names = self.label_names if self.stage == "finetune" else None  # also for a network built by hand
        data.serve(self._own or Adopted(self.tokenizer, names, self.multilabel))
        if self._own is None:
            self._own = data.handed_on(with_labels=self.stage == "finetune")

    def adopted(self, tokenizer: str) -> Adopted:
        """Return what data with this ``data.tokenizer`` take over from the trained network, or from ``init_from``."""
        return self._own or adopted_from(read_sources(self.init_from), tokenizer == EXTEND, self.remap_vocabulary)

    @_restricted_classmethod  # as in Lightning: an error if called on an instance, which would stay unchanged
    def load_from_checkpoint(cls, checkpoint_path: Any, map_location: Any = None, **options: Any) -> Self:  # type: ignore[override]
        """Load a module to evaluate or train further; data that are used with it take over its tokenizer and labels.

        Args:
            checkpoint_path: the run or checkpoint; it is read as data, and no code in it is executed.
            map_location: a device; by default the CPU. A Trainer moves the module to its own device anyway.
            options: options that the weights don't decide, such as ``optimizer``, ``metrics`` and ``head_dropout``;
                ``encoder`` as for :func:`lit_sft.load`, which raises the same errors.
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
        """Load ``init_from``, unless weights are restored (unknown in ``setup``) or were trained in this process."""
        if not self.trainer.ckpt_path and not self._initialized:
            start_network(self.net, self.text_data, self.init_from, self.remap_vocabulary, self.label_names)
        self._initialized = True

    def on_fit_start(self) -> None:
        """Load ``init_from``, unless the run is resumed; show the objective the documents."""
        self._start()
        with self.trainer.precision_plugin.train_step_context():
            see_documents(self.objective, self.net, self.text_data)

    def on_validation_start(self) -> None:
        """Load ``init_from``, so that a validation or test before any fit measures it."""
        if self.init_from and self.trainer.state.fn != "fit":
            with torch.inference_mode(False):  # a fit may follow
                self._start()

    on_test_start = on_validation_start

    # ---- training

    def training_step(self, batch: Mapping[str, Batch], batch_idx: int) -> Tensor | None:
        """Return the objective's loss; the stream's hidden state is carried to the next batch, without its gradient.

        If the watcher refuses the batch, return None: Lightning skips it, but its hidden state is carried over.
        With several processes, the logged loss is the mean over all, and its parts are those of the first process.
        """
        self.objective.step = self.trainer.global_step
        loss = self.objective(self.net, batch, self._state)
        self._state = loss.state
        size = sum(b.num_tokens for b in batch.values())
        total, mean = weighted(self.trainer, loss.shares or [(loss.total, loss.weight)])
        self.log("train/loss", mean, batch_size=size, prog_bar=bar_needs_loss(self.trainer))
        log_parts(self, loss, size)
        return total * self.share_of_step(batch_idx) if self._watcher.accepts(self.trainer, mean) else None

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip as the Trainer's options say, and log the gradient's norm before clipping."""
        if unscales(optimizer, self.trainer.precision_plugin):  # Lightning says why these can't be clipped
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        norm = clip_gradients(optimizer, gradient_clip_val or 0.0, by_value=gradient_clip_algorithm == "value")
        if norm is not None:
            self.log("train/grad_norm", norm, batch_size=1)
            self._watcher.see_gradient(self.trainer, norm, optimizer)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer, with one or two parameter groups per layer, and the schedule by optimizer step."""
        try:
            layers = self.net.layer_groups()
            layers[-1] = layers[-1] + [p for name, p in self.named_parameters() if not name.startswith(NETWORK)]
            optimizer = build_optimizer(self.make_optimizer, layers, self.layer_decay)
        except ValueError as error:
            raise UserError(f"model.optimizer: {error}") from error
        total = self.total_steps()
        schedule = LambdaLR(optimizer, lambda step: self.schedule(step, total))
        self._fresh_groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}

    def total_steps(self) -> int:
        """Return the optimizer steps of a fit, 0 without a limit; raise a UserError if the schedule needs a limit."""
        trainer, batches = self.trainer, self.text_data.train_batches()
        limits = (trainer.limit_train_batches, trainer.accumulate_grad_batches, trainer.max_epochs, trainer.max_steps)
        steps = steps_of_fit(batches, *limits)
        if steps == 0 and self.schedule.needs_total:
            kind = type(self.schedule).__name__
            raise UserError(f"{kind} needs a number of steps above 0: set --trainer.max_epochs or --trainer.max_steps")
        return steps

    def on_train_start(self) -> None:
        """After a resume, replace the checkpoint's optimizer options by the config's, and print the changes."""
        self._data = data = self.text_data
        self._own = data.handed_on(with_labels=self.stage == "finetune")  # now with what init_from has seen
        if self._state is not None:
            self._state = tuple(tuple(t.to(self.device) for t in layer) for layer in self._state)
        go_on_drawing(self._random, self.trainer.global_rank)  # only now, since building the model draws
        self._random = None
        self._watcher = next((c for c in self.trainer.callbacks if isinstance(c, Watcher)), Watcher())  # type: ignore[attr-defined]
        scheduler = self.lr_schedulers()
        if not isinstance(scheduler, LambdaLR):
            raise UserError("LitSFT resumes and logs the schedule of its own: for another give model.schedule")
        if changed := take_options(scheduler, self._fresh_groups):
            rank_zero_info("resumed with changed options: " + "; ".join(changed))

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_data": None}  # a copy of the module doesn't copy its data

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add this package's part. Outside a fit, it describes the data of the last training, not the present data."""
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
        """Restore the hidden and random states of a fit; raise a UserError if the weights don't fit the model."""
        if "lit_sft" not in checkpoint:
            raise UserError("the checkpoint to resume from is not one of lit_sft's")
        if self.trainer.state.fn == "fit":
            own = of_this_rank(self.trainer, checkpoint["lit_sft"]["ranks"])
            self._state, self._random = own["state"], own["random"]
        else:  # an evaluation needs no weights of an objective; Lightning would ask for the callbacks of the fit
            checkpoint["callbacks"], found, own = {}, checkpoint["state_dict"], self.state_dict()
            checkpoint["state_dict"] = {n: w for n, w in found.items() if n.startswith(NETWORK) or n in own}
        if misfit := first_misfit(self.state_dict(), checkpoint["state_dict"]):
            raise UserError(f"the checkpoint doesn't fit the model: {misfit}; give --model the options of its run")
        self._own = checkpoint_in(checkpoint, Path(str(self.trainer.ckpt_path))).adopted()
        self.text_data.serve(self._own)
        self.evaluation.thresholds = checkpoint["lit_sft"].get("thresholds")
