"""The pipeline: decides when views are generated and hands them to the datamanager."""

import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from nerfstudio.data.datamanagers.base_datamanager import DataManagerConfig
from nerfstudio.engine.callbacks import (
    TrainingCallback,
    TrainingCallbackAttributes,
    TrainingCallbackLocation,
)
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape

from fvgen_nerfstudio.checkpoint import check_inputs
from fvgen_nerfstudio.datamanager import FvgenDatamanager, FvgenDatamanagerConfig
from fvgen_nerfstudio.failure import one_sentence
from fvgen_nerfstudio.ffmpeg import lend_ffmpeg
from fvgen_nerfstudio.member import check_loaded, choose_members, describe_members
from fvgen_nerfstudio.model import FvgenModel
from fvgen_nerfstudio.overlap import describe_overlap
from fvgen_nerfstudio.refinement import RefineSettings
from fvgen_nerfstudio.rounds import DensifySettings, check_gate, check_rounds, due_round
from fvgen_nerfstudio.settings import FvgenModelConfig, check_model
from fvgen_recon.densify.bank import MANIFEST, Bank
from fvgen_recon.errors import InputError
from fvgen_recon.io.file import read_json, write_json

if TYPE_CHECKING:
    from fvgen_nerfstudio.refiner import Refiner

BANK_FOLDER = "bank"
_VERDICT = "gate_{:02d}.json"


@runtime_checkable
class RunTrainer(Protocol):
    """What the pipeline asks of its trainer."""

    config: TrainerConfig
    """Holds the number of steps."""
    base_dir: Path
    """The run folder."""

    def resumed_run(self) -> Path | None:
        """Return the folder of the run that is resumed, or none."""
        ...


@dataclass
class FvgenPipelineConfig(VanillaPipelineConfig):
    """What is trained on, the splat, and how views are generated."""

    _target: type = field(default_factory=lambda: FvgenPipeline)
    datamanager: DataManagerConfig = field(default_factory=FvgenDatamanagerConfig)
    model: ModelConfig = field(default_factory=FvgenModelConfig)
    densify: DensifySettings = field(default_factory=DensifySettings)
    """How views are generated."""
    refine: RefineSettings = field(default_factory=RefineSettings)
    """What renders are mixed with outside of training."""

    def setup(self, **kwargs: Any) -> "FvgenPipeline":
        """Create the pipeline; a user's mistake ends with one sentence."""
        if kwargs.get("test_mode", "val") != "val":
            lend_ffmpeg()
        with one_sentence():
            return super().setup(**kwargs)


class FvgenPipeline(VanillaPipeline):
    """Generates views in rounds.

    The generator of a round is loaded for it and dropped after it. Only that which refines renders
    stays, outside of all modules, so that no checkpoint meets a generator.
    """

    config: FvgenPipelineConfig
    datamanager: FvgenDatamanager
    model: FvgenModel

    def __init__(self, config: FvgenPipelineConfig, device: str, **kwargs: Any) -> None:
        check_rounds(config.densify.rounds)
        is_new = kwargs.get("test_mode", "val") == "val"
        if is_new and config.densify.active_rounds():
            from fvgen_nerfstudio.generation import check_config, make_config

            check_gate(config.densify)
            data = config.datamanager
            assert isinstance(data, FvgenDatamanagerConfig), "The pipeline draws from a bank."
            check_config(make_config(config.densify, data.dataparser.estimator, device))
        if is_new:
            assert isinstance(config.model, FvgenModelConfig), "It trains this package's splat."
            check_model(config.model)
            choose_members(config.model, config.datamanager)
        # The configuration of a run from before there was such a setting has none.
        refine = getattr(config, "refine", RefineSettings())
        source = None if refine.generator == "none" else self._make_refiner(refine, device)
        super().__init__(config, device, **kwargs)
        if is_new:  # A finished run's file tells how many it was trained with.
            self.model.config.num_members = max(1, len(self.datamanager.dataparser.sources))
        self.num_rounds_done = 0
        self.num_steps = 1
        self._optimizers: dict[str, Any] = {}
        self.model.frame_source = source
        if source is not None and self.test_mode != "val":
            source.prepare()

    def _make_refiner(self, settings: RefineSettings, device: str) -> "Refiner":
        """Return what refines renders; photos and points are those of the rounds."""
        from fvgen_nerfstudio.refiner import Refiner
        from fvgen_recon.densify.densifier import Inputs

        def load_inputs() -> Inputs:
            parser = self.datamanager.dataparser
            return Inputs(scene=parser.scene_at(settings.long_side), points=parser.points)

        return Refiner(settings, load_inputs, str(device))

    def load_pipeline(self, loaded_state: dict[str, Any], step: int) -> None:
        """Load a checkpoint; where a tool has opened a finished run an error ends it.

        Raises:
            WeightsError: It is not a splat's, of another number of members or SH degree, or of
                other input photos.
        """
        with self._told():
            self.check_state(loaded_state)
            super().load_pipeline(loaded_state, step)

    def get_average_eval_image_metrics(self, *args: Any, **kwargs: Any) -> Any:
        """Measure all held-out views; one that cannot be read ends `ns-eval` with one sentence."""
        with self._told():
            return super().get_average_eval_image_metrics(*args, **kwargs)

    def _told(self) -> AbstractContextManager[None]:
        """Return what ends a tool with one sentence; training has its own."""
        return nullcontext() if self.test_mode == "val" else one_sentence()

    def check_state(self, state: dict[str, Any]) -> None:
        """Check that a checkpoint's state is of as many members and of the same photos.

        Raises:
            WeightsError: It is not.
        """
        check_loaded(state.get("_model._extra_state"), self.model.config.num_members)
        parser, known = self.datamanager.dataparser, state.get("_model.exposure.position")
        check_inputs(known, parser.input_cameras, same_names=parser.is_trained_choice)

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Add the rounds in front of the model's own callbacks."""
        trainer = training_callback_attributes.trainer
        CONSOLE.log(describe_members(self.datamanager.dataparser))
        doubt = describe_overlap(self.datamanager.dataparser)
        if doubt:
            CONSOLE.log(f"[yellow]{escape(doubt)}[/yellow]")
        assert isinstance(trainer, RunTrainer), "Rounds need the run's length and folders."
        self._optimizers = trainer.config.optimizers
        self.num_steps = trainer.config.max_num_iterations
        self.model.num_steps = self.num_steps
        self.datamanager.num_steps = self.num_steps
        if self.config.densify.takes_part():
            self.open_bank(trainer.base_dir / BANK_FOLDER, trainer.resumed_run())
        callbacks = super().get_training_callbacks(training_callback_attributes)
        before = [TrainingCallbackLocation.BEFORE_TRAIN_ITERATION]
        # The model's own callback must run first: it hands over the optimizers.
        return [*callbacks, TrainingCallback(before, self.run_due_round)]

    def check_bank(self, folder: Path, resumed_run: Path | None) -> Path | None:
        """Check the banks that a run starts from; nothing is written.

        Returns:
            The bank to take over, of the user's own or of the run that is resumed; none where there
            is none or the run folder has it already.

        Raises:
            InputError: There is none where the user says, one was made from other photos, or
                another one lies in the run folder.
        """
        own, cameras = self.config.densify.bank, self.datamanager.dataparser.input_cameras
        if own is not None and not (len(Bank(own)) and Bank(own).num_rounds):
            raise InputError(
                f"There is no bank with frames of a whole round in {own}: name another folder."
            )
        if folder.exists():
            Bank(folder).require_inputs(cameras)
            if own is not None and not _is_copy(own, folder):
                raise InputError(
                    f"There is another bank in {folder} already: give another --timestamp to train "
                    f"from {own}."
                )
            return None
        source = resumed_run / BANK_FOLDER if own is None and resumed_run is not None else own
        if source is None or not source.is_dir():
            return None
        Bank(source).require_inputs(cameras)
        return source

    def open_bank(self, folder: Path, resumed_run: Path | None) -> None:
        """Open the run's bank; take over the user's own, or that of the run that is resumed.

        Raises:
            InputError: As in `check_bank`.
        """
        source = self.check_bank(folder, resumed_run)
        settings, cameras = self.config.densify, self.datamanager.dataparser.input_cameras
        if source is not None:
            _copy_folder(source, folder)
        bank = Bank(folder)
        if not len(bank):
            bank.start_round(cameras)  # Verdicts of the gate are kept here before any frame is.
        if settings.bank is None and resumed_run is None:
            _forget_verdicts(folder)  # Of an earlier run here, maybe with another generator.
            bank.restart(cameras)
        self.num_rounds_done = max(bank.num_rounds, _last_dropped(folder) + 1)
        self.datamanager.use_bank(bank, settings.use_rounds)

    def run_due_round(self, step: int) -> None:
        """Generate views where a round is due at this step."""
        rounds = self.config.densify.active_rounds()
        index = due_round(rounds, step / self.num_steps, self.num_rounds_done)
        if index is not None and self.datamanager.bank is not None:
            self.run_round(index)
            self.num_rounds_done = index + 1

    def run_round(self, index: int) -> None:
        """Run one round: generate, keep in the bank, add Gaussians, serve the new frames."""
        from fvgen_nerfstudio.generation import add_gaussians, make_config, run_round

        data, bank, settings = self.datamanager, self.datamanager.bank, self.config.densify
        assert bank is not None, "A round needs a bank to write to."
        CONSOLE.log(f"Generating views, round {index + 1} of {len(settings.rounds)}.")
        config = make_config(settings, data.config.dataparser.estimator, str(self.device))
        if not self._passes_gate(index, bank):
            return
        outcome = run_round(config, data.scene, data.dataparser.points, bank, index, self.model)
        # Before any training the splat is the points, only fainter: nothing can be missing from it.
        if settings.add_points and self.model.step > 0:
            CONSOLE.log(f"{add_gaussians(outcome, self.model)} Gaussians added.")
        data.use_bank(bank, settings.use_rounds)

    def _passes_gate(self, index: int, bank: Bank) -> bool:
        """Judge a round before it is generated; say what came of it and keep it beside the bank."""
        if self.config.densify.gate_folds == 0:
            return True
        note = bank.folder / _VERDICT.format(index)
        if note.is_file():
            return read_json(note)["keeps"]
        from fvgen_nerfstudio.gate import Judge

        judge = Judge(
            config=self.config,
            optimizers=self._optimizers,
            num_steps=self.num_steps,
            names=self.datamanager.dataparser.input_names,
            device=str(self.device),
        )
        verdict = judge.judge(index, bank.folder / "gate")
        write_json(note, {**asdict(verdict), "gain": verdict.gain, "keeps": verdict.keeps})
        CONSOLE.log(
            f"Generated views change {len(verdict.folds)} photos that were left out by "
            f"{verdict.gain:+.2f} dB: round {index + 1} is "
            f"{'kept' if verdict.keeps else 'dropped'}."
        )
        return verdict.keeps


def _last_dropped(folder: Path) -> int:
    """Return the number of the last round that the gate has dropped; -1 where there is none."""
    notes = sorted(folder.glob(_VERDICT.format(0).replace("00", "*")))
    return max((int(n.stem[-2:]) for n in notes if not read_json(n)["keeps"]), default=-1)


def _forget_verdicts(folder: Path) -> None:
    """Remove what the gate has found."""
    shutil.rmtree(folder / "gate", ignore_errors=True)
    for note in folder.glob(_VERDICT.format(0).replace("00", "*")):
        note.unlink()


def _is_copy(source: Path, folder: Path) -> bool:
    """Return whether two folders hold the same bank."""
    copy = folder / MANIFEST
    return copy.is_file() and copy.read_bytes() == (source / MANIFEST).read_bytes()


def _copy_folder(source: Path, target: Path) -> None:
    """Copy a folder so that a reader sees all of it or nothing."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    os.replace(partial, target)
