"""How many members a splat has, which follows from the settings and the number of input photos."""

from dataclasses import replace
from pathlib import Path

from nerfstudio.data.datamanagers.base_datamanager import DataManagerConfig
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from fvgen_nerfstudio.datamanager import FvgenDatamanagerConfig
from fvgen_nerfstudio.dataparser import FvgenDataParser, FvgenDataParserConfig
from fvgen_nerfstudio.settings import FvgenModelConfig
from fvgen_recon.errors import InputError, WeightsError

_OPTIONS = "--pipeline.datamanager.dataparser"


def choose_members(model: ModelConfig, data: DataManagerConfig) -> None:
    """Take the ensemble out of the settings of a new run where there can be none.

    The method's own ensemble gives way to whatever a user has chosen beside it.

    Raises:
        InputError: The user has asked both for members and for what they cannot have.
    """
    if not isinstance(model, FvgenModelConfig) or not isinstance(data, FvgenDatamanagerConfig):
        return
    parser = data.dataparser
    obstacle = _obstacle(model) if len(parser.ensemble) > 1 else ""
    if parser.ensemble == parser.method_ensemble:
        if parser.ensemble and not obstacle and parser.estimator not in parser.ensemble:
            obstacle = f"the points are to be those of `{parser.estimator}`"
        if obstacle:
            CONSOLE.log(f"No ensemble, as {obstacle}.")
            parser.ensemble = ()
    elif obstacle and _located(parser, data).setup().wanted_sources:
        raise InputError(
            f"There cannot be an ensemble, as {obstacle}: change that, or give no "
            f"{_OPTIONS}.ensemble."
        )


def _located(parser: FvgenDataParserConfig, data: FvgenDatamanagerConfig) -> FvgenDataParserConfig:
    """Return the parser's settings with the folder that `--data` names, as managers hand it on."""
    return parser if data.data is None else replace(parser, data=Path(data.data))


def _obstacle(model: FvgenModelConfig) -> str:
    """Return what a splat has that several members cannot; nothing where there is no such thing."""
    if model.strategy != "none":
        return (
            "its members keep their Gaussians, which "
            f"--pipeline.model.strategy {model.strategy} does not"
        )
    if model.random_init:
        return "its members start from points, which --pipeline.model.random-init does without"
    return ""


def describe_members(parser: FvgenDataParser) -> str:
    """Return one line on the members of a run, and where there are fewer than named, why."""
    config, sources = parser.config, parser.sources or (parser.config.estimator,)
    num_inputs = len(parser.source.split.inputs)
    line = f"{len(sources)} member{'s' * (len(sources) > 1)}: {', '.join(sources)}."
    if len(sources) >= len(config.ensemble):
        return line
    if num_inputs > config.ensemble_views:
        return (
            f"{line} An ensemble is for up to {config.ensemble_views} input photos "
            f"({_OPTIONS}.ensemble-views), {num_inputs} came."
        )
    missing = [name for name in parser.wanted_sources if name not in parser.sources]
    return f"{line} Too few trusted points came from {', '.join(missing)}."


def check_loaded(member: Tensor | None, num_members: int) -> None:
    """Refuse a checkpoint of another number of members, which would be shown wrong.

    Args:
        member: The member of each Gaussian in the checkpoint; none in one from before members.
        num_members: Number of members of the run that it is loaded into.

    Raises:
        WeightsError: The numbers differ.
    """
    found = 1 if member is None else int(member.max()) + 1
    if found != num_members:
        raise WeightsError(
            f"The checkpoint holds {found} members and this run has {num_members}: give the "
            f"{_OPTIONS}.ensemble and .ensemble-views that it was trained with (0 for one member)."
        )
