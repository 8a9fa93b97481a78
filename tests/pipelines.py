"""A small real scene and pipelines on it, without a trainer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from nerfstudio.engine.callbacks import TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.engine.optimizers import Optimizers

from fvgen_nerfstudio.datamanager import FvgenDatamanagerConfig
from fvgen_nerfstudio.dataparser import FvgenDataParserConfig
from fvgen_nerfstudio.method import fvgen_splat_cpu
from fvgen_nerfstudio.model import FvgenModelConfig
from fvgen_nerfstudio.pipeline import FvgenPipeline, FvgenPipelineConfig
from fvgen_nerfstudio.refinement import RefineSettings
from fvgen_nerfstudio.rounds import DensifySettings
from fvgen_nerfstudio.trainer import FvgenTrainerConfig
from fvgen_recon.io.image import write_image
from fvgen_recon.io.scenes import write_transforms
from fvgen_recon.render.procedural import arc_cameras, random_scene, render_procedural

NUM_STEPS = 10
Strategy = Literal["default", "mcmc", "none"]


@dataclass
class RunStub:
    """What a pipeline asks of its trainer, without the training."""

    config: FvgenTrainerConfig
    base_dir: Path
    resumed: Path | None = None

    def resumed_run(self) -> Path | None:
        return self.resumed


def write_room(folder: Path) -> None:
    """Write three photos of a procedural scene."""
    cameras = arc_cameras([-12.0, 0.0, 12.0], radius=3.0, height=32, width=48)
    images = render_procedural(random_scene(3), cameras, supersample=1).images
    names = tuple(f"images/{i}.png" for i in range(3))
    for name, image in zip(names, images, strict=True):
        write_image(folder / name, image)
    write_transforms(folder, cameras, names)


def open_pipeline(
    room: Path,
    *,
    ensemble: tuple[str, ...] = (),
    ensemble_views: int = 3,
    strategy: Strategy = "default",
    estimator: str = "random",
    refine: RefineSettings | None = None,
    views: tuple[str, ...] = (),
    **settings,
) -> FvgenPipeline:
    torch.manual_seed(0)
    parser = FvgenDataParserConfig(
        data=room,
        view_names=views,
        estimator=estimator,
        num_points=300,
        ensemble=ensemble,
        ensemble_views=ensemble_views,
    )
    config = FvgenPipelineConfig(
        datamanager=FvgenDatamanagerConfig(dataparser=parser),
        model=FvgenModelConfig(
            sh_degree=0, num_downscales=0, background_color="black", strategy=strategy
        ),
        densify=DensifySettings(long_side=48, num_frames=4, **settings),
        refine=refine or RefineSettings(),
    )
    pipeline = config.setup(device="cpu")
    assert isinstance(pipeline, FvgenPipeline)
    return pipeline


def start_run(pipeline: FvgenPipeline, folder: Path, resumed: Path | None = None) -> list:
    config = fvgen_splat_cpu().config
    config.max_num_iterations = NUM_STEPS
    attributes = TrainingCallbackAttributes(
        optimizers=Optimizers(config.optimizers.copy(), pipeline.get_param_groups()),
        grad_scaler=None,
        pipeline=pipeline,
        trainer=RunStub(config, folder, resumed),  # pyright: ignore
    )
    return pipeline.get_training_callbacks(attributes)


def advance(pipeline: FvgenPipeline, callbacks: list, steps: range) -> None:
    for step in steps:
        pipeline.train()
        for callback in callbacks:
            callback.run_callback_at_location(step, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
        _, losses, _ = pipeline.get_train_loss_dict(step)
        for optimizer in pipeline.model.optimizers.values():
            optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        for optimizer in pipeline.model.optimizers.values():
            optimizer.step()
