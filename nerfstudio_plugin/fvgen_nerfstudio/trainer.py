"""Training that resumes where it stopped and leaves nothing behind when the data are bad."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils.rich_utils import CONSOLE

from fvgen_nerfstudio.checkpoint import (
    EXTRA_KEY,
    find_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from fvgen_nerfstudio.choice import INPUTS_KEY, trained_views
from fvgen_nerfstudio.datamanager import FvgenDatamanagerConfig
from fvgen_nerfstudio.failure import one_sentence
from fvgen_nerfstudio.pipeline import BANK_FOLDER, FvgenPipeline
from fvgen_nerfstudio.progress import shown_progress
from fvgen_nerfstudio.stretch import stretch_model, stretch_optimizers
from fvgen_recon.errors import InputError
from fvgen_recon.io.file import require_folder

_LAST_SETTING = "vis"
"""The last of the settings of a run in the order of their names."""


@dataclass
class FvgenTrainerConfig(TrainerConfig):
    """nerfstudio's training options with `--views` for the number of input photos."""

    _target: type = field(default_factory=lambda: FvgenTrainer)
    views: int | None = None
    """Alias for --pipeline.datamanager.dataparser.views"""
    schedule_steps: int = 0
    """Length of the run that step numbers of the model and of the schedulers are meant for. A run
    of another length stretches them; 0 takes them as they are."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take settings that were written to a `config.yml`, whose keys are sorted by name.

        Raises:
            InputError: The last is missing: the others after the cut would be silently replaced.
        """
        if _LAST_SETTING not in state:
            raise InputError(
                "The config.yml of this run is cut short: put it back as training wrote it, or go "
                "on from the checkpoints beside it in a new run (ns-train ... --load-dir)."
            )
        vars(self).update(state)

    def save_config(self) -> None:
        """Apply aliases and choose the device; the file is written once the data are known good."""
        self._stretch_schedule()
        data = self.pipeline.datamanager
        if self.views is not None and isinstance(data, FvgenDatamanagerConfig):
            data.dataparser.views = self.views
        if self.machine.device_type == "cuda" and not torch.cuda.is_available():
            CONSOLE.print("There is no CUDA device: training on the CPU.")
            self.machine.device_type = "cpu"

    def _stretch_schedule(self) -> None:
        """Bring step numbers to the length of this run; a second call changes nothing."""
        if self.schedule_steps in {0, self.max_num_iterations}:
            return
        factor = self.max_num_iterations / self.schedule_steps
        self.schedule_steps = self.max_num_iterations
        stretch_model(self.pipeline.model, factor)
        stretch_optimizers(self.optimizers, factor)

    def write_config(self) -> None:
        """Write `config.yml` into the run folder."""
        super().save_config()


class FvgenTrainer(Trainer):
    """nerfstudio's trainer with checkpoints that can be resumed from."""

    config: FvgenTrainerConfig
    pipeline: FvgenPipeline
    _resumed: dict[str, Any] | None = None

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """Set up the pipeline, then the run folder; a user's mistake ends with one sentence."""
        with one_sentence(), shown_progress("fvgen_recon"):
            require_folder(self.base_dir)
            if self.config.max_num_iterations < 1:
                raise InputError(
                    "Training needs at least one step: --max-num-iterations "
                    f"{self.config.max_num_iterations} came."
                )
            path = self._checkpoint_to_load()
            self._resumed = None if path is None else read_checkpoint(path)
            self._recall_views()
            super().setup(test_mode)

    def setup_optimizers(self) -> Optimizers:
        """Create the optimizers. The pipeline stands by now, so a run folder is worth having.

        A checkpoint is looked at before: a run folder that is used again keeps its `config.yml`
        where it cannot be resumed from.
        """
        if self._resumed is not None:
            self._check_resumed(self._resumed)
        if self.pipeline.config.densify.takes_part():
            self.pipeline.check_bank(self.base_dir / BANK_FOLDER, self.resumed_run())
        parser = self.pipeline.datamanager.dataparser
        parser.config.trained_views = parser.input_names
        self.config.write_config()
        return super().setup_optimizers()

    def _recall_views(self) -> None:
        """Go on with the photos that a checkpoint was trained on, where a user names no others."""
        data = self.config.pipeline.datamanager
        names = () if self._resumed is None else trained_views(self._resumed)
        if names and isinstance(data, FvgenDatamanagerConfig):
            data.dataparser.trained_views = names

    def _check_resumed(self, state: dict[str, Any]) -> None:
        """Raise a `FvgenError` where a checkpoint cannot be resumed from."""
        self.pipeline.check_state(state["pipeline"])
        num_done, total = state["step"] + 1, self.config.max_num_iterations
        if num_done >= total:
            raise InputError(
                f"The checkpoint already has {num_done} steps of {total}: ask for more with "
                "--max-num-iterations."
            )

    def train(self) -> None:
        """Train up to `max_num_iterations` steps in all, those before a resume included."""
        total = self.config.max_num_iterations
        with one_sentence():
            # nerfstudio 1.1.5 counts from the step that it resumes at.
            self.config.max_num_iterations = total - self._start_step
            try:
                super().train()
            finally:
                self.config.max_num_iterations = total

    def save_checkpoint(self, step: int) -> None:
        """Write a checkpoint that stock tools load, with the strategy's statistics beside it."""
        path = self.checkpoint_dir / f"step-{step:09d}.ckpt"
        optimizers = self.optimizers
        state = {
            "step": step,
            "pipeline": self.pipeline.state_dict(),
            "optimizers": {k: v.state_dict() for k, v in optimizers.optimizers.items()},
            "schedulers": {k: v.state_dict() for k, v in optimizers.schedulers.items()},
            "scalers": self.grad_scaler.state_dict(),
            EXTRA_KEY: {
                "strategy_state": self.pipeline.model.strategy_state,
                INPUTS_KEY: list(self.pipeline.datamanager.dataparser.input_names),
            },
        }
        write_checkpoint(state, path)
        if self.config.save_only_latest_checkpoint:
            for other in self.checkpoint_dir.glob("step-*.ckpt"):
                if other != path:
                    other.unlink()

    def _load_checkpoint(self) -> None:
        state, self._resumed = self._resumed, None
        if state is None:
            return
        self._start_step = state["step"] + 1
        self.pipeline.load_pipeline(state["pipeline"], state["step"])
        self.optimizers.load_optimizers(state["optimizers"])
        if self.config.load_scheduler:
            self.optimizers.load_schedulers(state.get("schedulers", {}))
        self.grad_scaler.load_state_dict(state["scalers"])
        model = self.pipeline.model
        for key, value in state.get(EXTRA_KEY, {}).get("strategy_state", {}).items():
            is_tensor = isinstance(value, torch.Tensor)
            model.strategy_state[key] = value.to(model.device) if is_tensor else value
        CONSOLE.print(f"Resuming after step {state['step']} from {self._checkpoint_to_load()}")

    def resumed_run(self) -> Path | None:
        """Return the folder of the run that is resumed, or none."""
        path = self._checkpoint_to_load()
        return None if path is None else path.resolve().parent.parent

    def _checkpoint_to_load(self) -> Path | None:
        """Return the checkpoint that the command line names, or none."""
        if self.config.load_dir is not None:
            return find_checkpoint(self.config.load_dir, self.config.load_step)
        return self.config.load_checkpoint
