"""The command line: LightningCLI with run folders, one-line errors, and checkpoints that are read as data."""

from __future__ import annotations

import tempfile
from argparse import ArgumentError
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info

from lit_sft.callbacks import BestCheckpoint, EarlyStop, Health, LastCheckpoint, RunRecord
from lit_sft.callbacks.card import ShowData
from lit_sft.callbacks.progress import progress_for
from lit_sft.callbacks.saving import place_saving
from lit_sft.callbacks.stopping import check_monitors, look_after_validations
from lit_sft.checkpoints import Checkpoint, read_checkpoint, resolve
from lit_sft.data.datamodule import TextDataModule
from lit_sft.data.extension import EXTEND
from lit_sft.data.sources import expanded
from lit_sft.errors import SickRun, UserError
from lit_sft.fit_checks import check_fit
from lit_sft.loggers import LoggedRun, place_loggers
from lit_sft.measured_data import check_measured, choose_measured, is_whole
from lit_sft.mistakes import mistake_in, refusal_in
from lit_sft.module import LitSFT
from lit_sft.options import check_trainer, explain, read_config_file, values_of
from lit_sft.processes import check_processes, ending_together
from lit_sft.resume import check_folder, check_resumable, last_checkpoint, read_resumable
from lit_sft.runs import discard_run, held, resume_run, run_folder_of, run_name, start_run
from lit_sft.starting import Source, check_direction, start_from
from lit_sft.stored_options import objective_of, stored_config
from lit_sft.vocabulary import keep_head
from lit_sft.written_results import keep_test, keep_validation

DEFAULTS = Path(__file__).with_name("defaults.yaml")
DEFAULT_ENCODER = "lit_sft.models.LSTMEncoder"


class Checked(Exception):
    """Ends a LitCLI that only checks options; carries the options, and the data that they describe."""

    def __init__(self, config: Namespace, data: TextDataModule) -> None:
        super().__init__("options checked")
        self.config, self.data = config, data


class LitCLI(LightningCLI):
    """``fit``, ``validate`` and ``test`` of one stage.

    The data are prepared before the run's folder is created, so that a mistake in the data leaves no folder behind.
    A checkpoint's options never reach the parser directly, since Lightning would import what they name and let them
    override flags. For ``validate`` and ``test``, their plain values are a config before the user's configs and flags.

    Args:
        args: the command and its options.
        only_check: raise :class:`Checked` after checking the options.
    """

    def __init__(self, args: list[str], only_check: bool = False) -> None:
        self.folder: Path | None = None
        self.made: list[Path] | None = None  # the folders created for a new run; None if none may be discarded
        self.source: Checkpoint | None = None  # the checkpoint whose tokenizer and labels this run takes
        self.own = False  # whether validate or test measure the run's own data
        self.args, self.only_check, self.resumed = args, only_check, False
        self.stack = ExitStack()  # what a fit holds to its end: the run's folder
        try:
            with self.stack:
                self._run()
        except UserError as error:
            if self.folder is not None and self.made is not None and not isinstance(error, SickRun):
                discard_run(self.folder, self.made)
            raise

    def _run(self) -> None:
        super().__init__(
            LitSFT,
            TextDataModule,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults={"callbacks": []},
            parser_kwargs={
                "prog": "python -m lit_sft",
                "exit_on_error": False,
                "allow_abbrev": False,
                self.args[0]: {"default_config_files": [str(DEFAULTS)], "exit_on_error": False},
            },
            args=self.args,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return only the called command, with arguments to skip: building three parsers takes three times as long."""
        arguments = {"model", "datamodule", "train_dataloaders", "val_dataloaders", "dataloaders", "weights_only"}
        return {self.args[0]: arguments}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--seed_everything", type=int, default=0, help="seed of weights, masks, order and subsets")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str | None, default=None, help="logs/NAME/version_K (default: the config's)")
        parser.add_argument("--run_dir", type=str | None, default=None, help="a folder, not logs/NAME/version_K")
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.add_lightning_class_args(EarlyStop, "early_stopping")
        parser.add_lightning_class_args(LastCheckpoint, "saving")
        parser.add_lightning_class_args(Health, "health")
        parser.link_arguments("seed_everything", "data.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; for validate and test, the checkpoint's config comes first, and the user's configs and flags win."""
        arguments = list(self.args)
        for path in values_of(arguments, "--config", "-c"):
            if "stages" in read_config_file(Path(path)):
                raise UserError(f"--config {path} is a recipe: {arguments[0]} takes the config of a stage")
        if arguments[0] == "fit" or {"-h", "--help"} & {*arguments}:
            self.config = self._parse(arguments)  # exits after showing the help, if that is asked for
            return
        paths = values_of(arguments, "--ckpt_path")
        if not paths:
            raise UserError(f"{arguments[0]} needs --ckpt_path RUN_OR_CKPT")
        self.source = read_checkpoint(resolve(paths[-1], "ckpt_path"))
        config = self._stored(self.source, arguments)
        with tempfile.TemporaryDirectory() as folder:  # Windows opens no open temporary file again
            file = Path(folder) / "stored.yaml"  # unsorted: the order of label_names is that of the classes
            file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
            self.config = self._parse([arguments[0], "--config", str(file), *arguments[1:]])

    def _stored(self, source: Checkpoint, arguments: list[str]) -> dict[str, Any]:
        """Return the checkpoint's options; only the user's own config and flags may name code outside this package."""
        asked = [argument for argument in arguments if not argument.startswith("--print_config")]  # it would exit
        try:
            model = self._parse(asked)[arguments[0]].model
        except UserError as mistake:
            try:  # it may be no mistake together with the checkpoint's options; if it is, that parse reports it
                return stored_config(source)
            except UserError:  # it is unknown which encoder the user names
                raise mistake from None
        named = isinstance(model.get("encoder"), Namespace) and model.encoder.class_path != DEFAULT_ENCODER
        return stored_config(source, model.encoder.as_dict() if named else None, metrics=model.metrics is None)

    def _parse(self, arguments: list[str]) -> Namespace:
        try:
            config = self.parser.parse_args(arguments)
        except (ArgumentError, SyntaxError) as error:  # SyntaxError: in a module that an option names
            options = [name.lstrip("-") for name in self._subcommand_parsers[arguments[0]]._option_string_actions]
            raise explain(error, options) from error
        seed = config[arguments[0]].seed_everything
        if not 0 <= seed < 2**32:
            raise UserError(f"--seed_everything {seed} must be at least 0 and less than 2**32")
        return config

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would parse the checkpoint's hyperparameters here (see the class's docstring)."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        check_trainer(config.trainer, str(self.subcommand))
        data = TextDataModule(**config.data.clone(with_meta=False).as_dict())
        check_direction(config.model, config.data.direction, [Source.of(self.source)] if self.source else [])
        if self.source is not None:
            check_measured(self.source, config, str(self.subcommand))
            config.model.objective = None  # only a fit needs it: see after_instantiate_classes
            data.adopt(self.source.adopted())
            self.own = choose_measured(self.source, config, str(self.subcommand), data)
        if self.subcommand == "fit":
            check_fit(config, data)
        if self.only_check:
            raise Checked(config, data)
        data.check_sources()
        if self.subcommand == "fit":
            self._prepare_fit(config, data)
        else:
            assert self.source is not None
            config.ckpt_path = str(self.source.path)
            self.folder = run_folder_of(self.source.path)
            data.prepare_data()
        self.prepared_data, config.data.direction = data, data.direction
        step = self.source.global_step if self.source is not None and config.ckpt_path else 0
        self._dump_config()
        self.given_loggers = self.config_dump["trainer"]["logger"]
        del self.config_dump  # else the next _dump_config does nothing
        place_loggers(config.trainer, self.folder, str(self.subcommand), step if self.resumed else None)
        if self.subcommand != "fit" and not (self.own and is_whole(config.trainer, str(self.subcommand))):
            config.trainer.logger = False  # its figures could be taken for the run's own

    def _prepare_fit(self, config: Namespace, data: TextDataModule) -> None:
        """Find the checkpoint to start from, prepare the data, and only then create the run's folder."""
        name = run_name(next(reversed(values_of(self.args, "--config", "-c")), None), config.name)
        try:
            self._find_source(config, name, data)
        except UserError:
            data.check_documents()  # report a mistake in the data before one in ckpt_path or init_from
            raise
        data.prepare_data()
        data.setup()
        if data.preparation.kind == EXTEND and self.source is not None:
            keep_head(config.model, self.source, data.tokenizer.vocab_size)
        if self.folder is None and not config.trainer.fast_dev_run:
            folder, made = start_run(name, config.run_dir)
            self.made = None if any(folder.glob("*")) else made
            self.folder = self.stack.enter_context(held(folder))
        if self.folder is not None:
            rank_zero_info(f"run folder: {self.folder}")

    def _find_source(self, config: Namespace, name: str, data: TextDataModule) -> None:
        """Find the checkpoint that this run resumes (``ckpt_path``) or starts from (``init_from``); data adopt it."""
        if config.run_dir:
            config.run_dir = str(expanded(config.run_dir))
            writes = config.ckpt_path != "last" and not config.trainer.fast_dev_run
            check_folder(Path(config.run_dir), new=writes)
        if config.ckpt_path == "last":
            self.folder, self.resumed = self.stack.enter_context(held(resume_run(name, config.run_dir))), True
            self.source = last_checkpoint(self.folder)
            if self.source is None and not (self.folder / "config.yaml").is_file():
                raise UserError(f"--ckpt_path last: nothing to resume in {self.folder}")
            config.ckpt_path = None
        elif config.ckpt_path is not None:
            self.source = read_resumable(resolve(config.ckpt_path, "ckpt_path"))
        if self.source is not None:
            config.ckpt_path = str(self.source.path)
            data.adopt(self.source.adopted())
            check_resumable(self.source, config.clone(with_meta=False).as_dict(), data)
            check_direction(config.model, config.data.direction, [Source.of(self.source)])
        else:
            self.source = start_from(config, data)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, MisconfigurationException) as error:  # a class refuses an option's value
            raise refusal_in(error) from error

    def instantiate_trainer(self, **options: Any) -> Trainer:
        self.trainer_defaults["callbacks"] = progress_for(self.config_init[self.subcommand].trainer)
        return super().instantiate_trainer(**options)

    def after_instantiate_classes(self) -> None:
        check_processes(self.trainer, str(self.subcommand))
        self.datamodule = self.prepared_data
        self._dump_config()
        plain = self.config_dump
        plain["trainer"]["logger"] = self.given_loggers  # without this run's folder in it
        self.model.config = {k: plain[k] for k in ("seed_everything", "data", "model")}
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        if not self.trainer.loggers:  # Lightning's own monitor refuses a Trainer that logs nowhere
            callbacks[:] = [c for c in callbacks if not isinstance(c, LearningRateMonitor)]
        if self.folder is not None:
            callbacks.append(LoggedRun(self.folder, self.source.global_step if self.source else 0))
        if self.subcommand == "fit":
            check_monitors(callbacks, self.model.objective.heads, self.prepared_data.multilabel, self.model.metrics)
            look_after_validations(callbacks)
            callbacks.append(ShowData())
            if self.folder is not None:
                callbacks.append(RunRecord(self.folder, plain, self.resumed))
                place_saving(callbacks, self.folder / "checkpoints")
        elif self.source is not None:
            self.model.objective = objective_of(self.source)

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            with ending_together(self.trainer.strategy.launcher):  # type: ignore[attr-defined]
                super()._run_subcommand(subcommand)
        except (Exception, SystemExit) as error:
            if (known := mistake_in(error, self.folder, self.source.path if self.source else None)) is None:
                raise
            raise known from error

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        # Lightning reads this file again, and may find others: no code may be executed, whatever the environment says
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}

    def after_validate(self) -> None:
        """Write the results, unless this is a dry run."""
        keep = keep_test if self.subcommand == "test" else keep_validation
        if self.source is not None and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            keep(self.trainer, self.model, self.source, self.folder, self.config_dump["data"], self.own)  # type: ignore[arg-type]

    after_test = after_validate


def check(arguments: list[str]) -> tuple[Namespace, TextDataModule]:
    """Parse and check the options of a ``fit``; return them, and its data, which haven't been read. Nothing is run.

    Raises:
        UserError: a mistake in an option.
    """
    try:
        LitCLI(arguments, only_check=True)
    except Checked as checked:
        return checked.config, checked.data
    raise AssertionError("a LitCLI that only checks ends by Checked")
