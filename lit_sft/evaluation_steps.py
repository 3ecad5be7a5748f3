"""What a LightningModule does in validation and test: which batches are measured, and what is logged."""

from __future__ import annotations

from typing import Literal, NoReturn

import lightning as L

from lit_sft.data.buckets import DocumentBatch
from lit_sft.data.datamodule import TextDataModule
from lit_sft.data.streams import StreamBatch, StreamDataset
from lit_sft.errors import UserError
from lit_sft.evaluation.passes import Evaluation
from lit_sft.evaluation.predictions import Predictions
from lit_sft.evaluation.responses import Responses
from lit_sft.evaluation.tested import Kept, Tested, tested_in
from lit_sft.models import Network

Batch = StreamBatch | DocumentBatch
NO_PREDICT = "Trainer.predict: new text is for lit_sft.load(RUN_OR_CKPT).predict(texts)"


class EvaluationSteps(L.LightningModule):
    """Measures the heads of its network with an :class:`Evaluation`, which is set when the network is built."""

    network: Network | None  # no default here, which torch would find before the one that is set
    evaluation: Evaluation
    label_names: list[str]
    tested: Tested | None = None  # what the last test measured, over all processes
    validated: Predictions | Responses | None = None  # each document's result in the last ``validate`` outside a fit

    @property
    def net(self) -> Network:
        """The network; raises a RuntimeError if it isn't built yet."""
        if self.network is None:
            raise RuntimeError("the network is built in configure_model; without a Trainer, call build()")
        return self.network

    @property
    def text_data(self) -> TextDataModule:
        """The data module that the Trainer reads."""
        data: TextDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    def on_validation_epoch_start(self) -> None:
        self.evaluation.start(keep=self.trainer.state.fn == "validate")

    def on_test_epoch_start(self) -> None:
        self.evaluation.start(keep=True)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluation.add(self.net, batch)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        dataset = self.trainer.test_dataloaders[dataloader_idx].dataset  # type: ignore[index]
        documents = dataset.target_documents(batch_idx) if isinstance(dataset, StreamDataset) else None
        self.evaluation.add(self.net, batch, documents)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> NoReturn:
        """Refuses, as trainer_checks.py does before: it is here since Lightning asks for it earlier still."""
        raise UserError(NO_PREDICT)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self.evaluation.tune()
        self._log_metrics("val")
        if self.trainer.state.fn == "validate":
            self.validated = self._kept().documents("val")
            if isinstance(self.validated, Responses):
                self._log_figures("val", self.validated.scored())

    def on_test_epoch_end(self) -> None:
        figures = self._log_metrics("test")
        own = self.evaluation.own
        self.tested = tested_in(self._kept(), figures, None if own is None else own.of)
        self._log_figures("test", {n: v for n, v in self.tested.figures.items() if n not in figures})
        self._log_figures("test_clean", self.tested.clean_figures)

    def _kept(self) -> Kept:
        return Kept.of(self.trainer, self.evaluation, self.label_names)

    def _log_metrics(self, split: Literal["val", "test"]) -> dict[str, float]:
        figures = self.evaluation.figures(self.text_data.bytes_per_target(split))
        self._log_figures(split, figures)
        return figures

    def _log_figures(self, split: Literal["val", "test", "test_clean"], figures: dict[str, float]) -> None:
        shown, several = {"loss", "perplexity", "accuracy", "macro_f1"}, self.trainer.world_size > 1
        for name, value in figures.items():
            self.log(f"{split}/{name}", value, prog_bar=split == "val" and name in shown, sync_dist=several)
