"""The linear probe against logistic regression by hand, on vectors of single documents."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from conftest import Command, Configs, Files, Trained, read
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from refusals import one_line
from test_ddp import exact, train
from torch import Tensor, nn
from toy_network import batch, build
from training import Losses, check_resumes, data_of, equal, module_of, trainer_of, weights

import lit_sft
from lit_sft.data.datamodule import TextDataModule
from lit_sft.models import LSTMEncoder, Network
from lit_sft.module import LitSFT
from lit_sft.objectives import Probe, Supervised

EPOCHS = 3


def vectors_by_hand(network: Network, data: TextDataModule) -> Tensor:
    """[last, max, mean] of each training document's hidden vectors, read alone: (documents, 3 * units)."""
    network.eval()
    rows = []
    with torch.no_grad():
        for place in range(len(data.train)):
            eos = data.tokenizer.eos_id
            ids = torch.tensor([[eos, *data.train.document(place)[: data.max_length].tolist(), eos]])
            x = network.encoder.embedding(ids)
            for layer in network.encoder.layers:  # type: ignore[union-attr]
                x, _ = layer(x)
            rows.append(torch.cat([x[0, -1], x[0].amax(0), x[0].mean(0)]))
    network.train()
    return torch.stack(rows)


def test_a_training_is_logistic_regression_by_hand(files: Files, shared_cache: Path, tmp_path: Path) -> None:
    """Plain SGD in float64, with label smoothing and class weights; the encoder has dropout, which it must not see."""
    smoothing, class_weights, rate = 0.1, torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64), 0.3
    module = module_of(
        "finetune",
        dropout=True,
        head_dropout=0.0,
        objective=Probe(smoothing, class_weights.tolist()),
        optimizer=partial(torch.optim.SGD, lr=rate),
    )
    data = data_of(files, shared_cache)
    trainer = trainer_of(tmp_path, max_epochs=EPOCHS, precision="64-true", gradient_clip_val=None)
    data.prepare_data()
    data.setup()
    network = module.build(data.tokenizer, data.label_names).double()
    before = weights(module)
    linear = network.classifier.linear  # type: ignore[union-attr]
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()  # type: ignore[union-attr]
    vectors = vectors_by_hand(network, data)
    trainer.fit(module, datamodule=data)

    loader = data.document_loader("train")
    for _ in range(EPOCHS):
        for documents in loader:
            x, labels = vectors[documents.indices], documents.labels
            targets = torch.full((len(labels), 3), smoothing / 3, dtype=torch.float64)
            targets[torch.arange(len(labels)), labels] += 1 - smoothing
            share = class_weights[labels] / class_weights[labels].sum()
            error = share[:, None] * ((x @ weight.T + bias).softmax(1) - targets)
            weight, bias = weight - rate * error.T @ x, bias - rate * error.sum(0)
    torch.testing.assert_close(linear.weight.detach(), weight, rtol=0, atol=1e-10)
    torch.testing.assert_close(linear.bias.detach(), bias, rtol=0, atol=1e-10)
    after = weights(module)
    assert {name for name, value in before.items() if not torch.equal(value, after[name])} == {
        "classifier.linear.weight",
        "classifier.linear.bias",
    }


class Counting(LSTMEncoder):
    """Notes every document that it reads, with the gradient mode."""

    read: ClassVar[list[tuple[int, bool]]] = []

    def forward(self, input_ids: Any, attention_mask: Tensor, *rest: Any, **more: Any) -> Any:
        self.read.append((len(attention_mask), torch.is_grad_enabled() or self.training))
        return super().forward(input_ids, attention_mask, *rest, **more)


@pytest.mark.parametrize("options", [{}, {"limit_train_batches": 3}, {"max_steps": 2}], ids=str)
def test_the_encoder_reads_every_document_once(
    options: dict[str, Any], files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    Counting.read.clear()
    encoder = partial(Counting, embedding_size=8, hidden_size=12, num_layers=2)
    module = LitSFT("finetune", encoder=encoder, objective=Probe(), optimizer=partial(torch.optim.AdamW, lr=0.01))
    losses = Losses()
    trainer_of(tmp_path, max_epochs=EPOCHS, callbacks=[losses], **options).fit(module, data_of(files, shared_cache))
    assert sum(documents for documents, _ in Counting.read) == 120
    assert not any(learning for _, learning in Counting.read)
    assert len(losses.values) == {"{}": 24, "{'limit_train_batches': 3}": 9, "{'max_steps': 2}": 2}[str(options)]
    assert module.net.training
    groups = module.trainer.optimizers[0].param_groups
    assert [group["name"] for group in groups] == ["head", "head.bias"]


def test_a_step_is_that_of_supervised_on_an_encoder_without_dropout() -> None:
    """The same head masks; two classes and several labels a document too, and documents without any."""
    several = [[0, 1, 1], [0, 0, 0], [-1, -1, -1], [1, 0, 0]]
    for classes, labels in ((3, [0, 1, 2, 0]), (2, [0, 1, 1, -1]), (3, several)):
        network, example = build(classes, classifier={"dropout": 0.5, "multilabel": labels is several}), batch()
        example.labels = torch.tensor(labels)
        example.indices = torch.tensor([3, 0, 2, 1])  # type: ignore[attr-defined]
        network.eval()
        network.classifier.train()  # type: ignore[union-attr]
        probe = Probe()
        probe.prepare(network)
        with pytest.raises(ValueError, match="see_documents before the first loss"):
            probe(network, {"labeled": example}, None)
        probe.see_documents(network, [example], 4)
        found = []
        for objective in (probe, Supervised()):
            torch.manual_seed(4)
            loss = objective(network, {"labeled": example}, None)
            found.append((loss.total, *torch.autograd.grad(loss.total, list(network.classifier.parameters()))))  # type: ignore[union-attr]
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert not any(parameter.requires_grad for parameter in network.encoder.parameters())


def test_a_resumed_training_ends_as_one_that_was_never_stopped(
    files: Files, shared_cache: Path, tmp_path: Path
) -> None:
    def fit(saving: list[Callback], path: Path | None) -> dict[str, Tensor]:
        module = module_of("finetune", dropout=True, objective=Probe())
        callbacks = [EMAWeightAveraging(decay=0.9), *saving]
        trainer = trainer_of(tmp_path, max_epochs=2, limit_train_batches=5, callbacks=callbacks)
        trainer.fit(module, data_of(files, shared_cache), ckpt_path=path, weights_only=True)
        return weights(module)

    check_resumes(fit, tmp_path, least=8, every=3)


def test_two_processes_train_as_one_does(configs: Configs) -> None:
    config = exact(configs, "finetune")
    options = yaml.safe_load(config.read_text())
    options["model"]["objective"] = {"class_path": "lit_sft.objectives.Probe"}
    config.write_text(yaml.safe_dump(options))
    one, two = train(config, "one", 1), train(config, "two", 2)
    assert len(one) > 10
    assert (one - two).abs().max() < 1e-6
    assert ((one[1:] - one[:-1]) != 0).any(1).sum() > 10


def test_from_a_pretraining_on_the_command_line(cli: Command, configs: Configs, trained: Trained) -> None:
    options = ["--model.objective=Probe", f"--model.init_from={trained.pretrain}", "--trainer.max_epochs=2"]
    done = cli("fit", "--config", configs.finetune, *options, "--run_dir", "probed")
    assert done.code == 0, done.err
    assert read(Path("probed/metrics.json"))["val"]["loss"] < 2
    assert cli("test", "--ckpt_path", "probed").code == 0
    model, source = lit_sft.load("probed"), lit_sft.load(trained.pretrain)
    assert model.predict(["the boat and the sail"])[0] is not None
    encoders: list[nn.Module] = [one.network.encoder for one in (model, source)]
    assert equal(*(encoder.state_dict() for encoder in encoders))
    refused = cli("fit", "--config", configs.finetune, *options, "--model.pooling=attention")
    one_line(refused, "Probe pools once, and pooling=attention learns what to pool")
