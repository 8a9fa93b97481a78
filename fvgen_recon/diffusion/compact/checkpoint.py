"""Compact models on disk: safetensors (in parts where wanted), a JSON config and a checksum."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from fvgen_recon.diffusion.backbone import VideoModel
from fvgen_recon.diffusion.compact.backbone import CompactBackbone
from fvgen_recon.diffusion.compact.codec import CompactCodec
from fvgen_recon.diffusion.compact.config import CompactConfig
from fvgen_recon.diffusion.schedule import FlowSchedule
from fvgen_recon.errors import WeightsError
from fvgen_recon.io.file import atomic_path
from fvgen_recon.io.weights import Storage, pack_state, unpack_state

_SCHEMA = 1
_CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class CompactCard:
    """What a folder of weights says about itself."""

    config: CompactConfig
    role: str
    """regression, teacher or student."""
    num_steps: int
    """Network evaluations that it was made for."""
    sampler: str
    """`sde` (noise again between steps) or `ode` (DDIM)."""
    sha256: str
    """Over the bytes of all parts, in order."""
    parts: tuple[str, ...]
    """File names of the weights."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what decides the frames: the weights and how detail is mixed, if apart."""
        power, is_nearest = self.config.fine_power, self.config.fine_nearest
        if power == 1 and not is_nearest:
            return self.sha256
        told = f"{self.sha256} fine_power {power:g}" + " nearest" * is_nearest
        return hashlib.sha256(told.encode()).hexdigest()


def _write(path: Path, data: bytes) -> None:
    with atomic_path(path) as partial:
        partial.write_bytes(data)


def _split(state: Mapping[str, Tensor], part_bytes: int) -> list[dict[str, Tensor]]:
    parts: list[dict[str, Tensor]] = [{}]
    filled = 0
    for key, value in state.items():
        size = value.numel() * value.element_size()
        if filled + size > part_bytes and parts[-1]:
            parts.append({})
            filled = 0
        parts[-1][key] = value
        filled += size
    return parts


def save_compact(
    path: Path,
    backbone: CompactBackbone,
    *,
    role: str,
    num_steps: int,
    sampler: str = "sde",
    part_bytes: int = 2**40,
    storage: Storage = "bfloat16",
) -> CompactCard:
    """Write a model as a folder: weights and `config.json`, the latter last.

    Args:
        path: The folder.
        backbone: The network.
        role: What it was trained as.
        num_steps: Steps that it was made for.
        sampler: How it is sampled.
        part_bytes: Largest size of one file of weights.
        storage: How weights are kept.
    """
    path.mkdir(parents=True, exist_ok=True)
    digest, names = hashlib.sha256(), []
    packed = pack_state(backbone.state_dict(), storage)
    for index, part in enumerate(_split(packed, part_bytes)):
        data = save(part)
        digest.update(data)
        names.append(f"weights-{index}.safetensors")
        _write(path / names[-1], data)
    card = CompactCard(
        config=backbone.config,
        role=role,
        num_steps=num_steps,
        sampler=sampler,
        sha256=digest.hexdigest(),
        parts=tuple(names),
    )
    text = json.dumps({"schema": _SCHEMA, **asdict(card)}, indent=2) + "\n"
    _write(path / _CONFIG, text.encode())
    return card


def read_card(path: Path) -> CompactCard:
    """Read what a folder says about itself.

    Raises:
        WeightsError: There is no config, or it is of another version.
    """
    file = path / _CONFIG
    if not file.is_file():
        raise WeightsError(f"No compact model at {path}: a folder with {_CONFIG} was expected.")
    try:
        content = json.loads(file.read_text())
        schema = content.pop("schema")
        shape = content.pop("config")
        for name in ("widths", "num_blocks"):
            shape[name] = tuple(shape[name])
        parts = tuple(content.pop("parts"))
        card = CompactCard(config=CompactConfig(**shape), parts=parts, **content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{file} is not the config of a compact model of this version: {error}."
        ) from error
    if schema != _SCHEMA:
        raise WeightsError(
            f"{file} has schema {schema}, {_SCHEMA} was expected: convert the model."
        )
    return card


def load_compact(
    path: Path, *, dtype: torch.dtype = torch.float32
) -> tuple[VideoModel, CompactCard]:
    """Read a model and check its checksum and shapes.

    Raises:
        WeightsError: A file is missing, damaged or does not fit the config.
    """
    card = read_card(path)
    state: dict[str, Tensor] = {}
    digest, blobs = hashlib.sha256(), []
    for name in card.parts:
        if not (path / name).is_file():
            raise WeightsError(f"The weights {path / name} are missing: copy the whole folder.")
        data = (path / name).read_bytes()
        digest.update(data)
        blobs.append(data)
    if digest.hexdigest() != card.sha256:
        raise WeightsError(f"The weights in {path} are damaged: their checksum does not fit.")
    for data in blobs:
        state |= load(data)
    try:
        state = unpack_state(state)
    except KeyError as error:
        raise WeightsError(
            f"The weights in {path} lack the tensor {error}: fetch them again."
        ) from error
    backbone = CompactBackbone(card.config)
    wanted = {k: tuple(v.shape) for k, v in backbone.state_dict().items()}
    if wanted != {k: tuple(v.shape) for k, v in state.items()}:
        raise WeightsError(f"The weights in {path} do not fit their config: fetch them again.")
    backbone.load_state_dict(state)
    model = VideoModel(
        codec=CompactCodec(config=card.config),
        backbone=backbone.to(dtype).eval(),
        schedule=FlowSchedule(num_timesteps=card.config.num_timesteps),
        name=f"compact-{card.role}",
        weights_hash=card.fingerprint,
    )
    return model, card


def widen(
    backbone: CompactBackbone,
    *,
    gate: bool,
    num_alternatives: int,
    hints: bool = False,
    blend: CompactConfig | None = None,
) -> CompactBackbone:
    """Return the same weights in a network that has or sees more, to be trained.

    With a gate, what it answers to pure noise stays: the gate is closed there, and what it sees and
    says starts at zero. At other times the answer changes at once. Alternatives have a small share
    of the copy at first, where they are given; hints change nothing at first. What the network has
    already it keeps. How it mixes renders is that of `blend` where it is given
    (`CompactConfig.blended_as`).

    Raises:
        WeightsError: It has alternatives but no gate, or some alternatives or hints but fewer
            alternatives; then they cannot be put before or between what it has.
    """
    config = backbone.config
    gate = gate or config.gate
    num_alternatives = max(num_alternatives, config.num_alternatives)
    if gate and not config.gate and config.num_alternatives > 0:
        raise WeightsError(
            "A network without alternatives was expected, to be given a gate: this one has "
            f"{config.num_alternatives}. Train it from weights without them, or without a gate."
        )
    # Channels lie kind by kind: colours of all alternatives, masks of all, offsets of all, hints.
    has_some = config.num_alternatives > 0 or config.hints
    if has_some and num_alternatives > config.num_alternatives:
        raise WeightsError(
            f"A network without alternatives and hints was expected, to be given {num_alternatives}"
            f" alternatives: this one has {config.num_alternatives} and "
            f"{'' if config.hints else 'no '}hints. Train it from weights without them."
        )
    hints = hints or config.hints
    shape = replace(config, gate=gate, num_alternatives=num_alternatives, hints=hints)
    wider = CompactBackbone(shape.blended_as(blend or config))
    wider.to(next(backbone.parameters()))
    state = backbone.state_dict()
    with torch.no_grad():
        for name, value in wider.state_dict().items():
            if not name.endswith("finish.start"):
                value.zero_()
            # What is new lies behind what there was, along every axis.
            value[tuple(slice(size) for size in state[name].shape)] = state[name]
    return wider


def add_change(
    backbone: CompactBackbone, start: CompactBackbone, end: CompactBackbone
) -> CompactBackbone:
    """Return a network's weights plus what another training from a relative of it has changed.

    So a distillation need not be repeated for each further training of what it began from
    (Ilharco et al., "Editing Models with Task Arithmetic", 2023). Measure what comes out.

    Args:
        backbone: The network.
        start: What the other training began from; it may know fewer renders and no hints.
        end: What it ended at.

    Raises:
        WeightsError: The networks differ in more than what can be added to them.
    """
    config = backbone.config
    before, after = (
        widen(
            network,
            gate=config.gate,
            num_alternatives=config.num_alternatives,
            hints=config.hints,
            blend=config,
        )
        for network in (start, end)
    )
    if not before.config == after.config == config:
        raise WeightsError(
            f"Networks of one shape were expected: {config} came with a change from {start.config} "
            f"to {end.config}."
        )
    moved = CompactBackbone(config).to(next(backbone.parameters()))
    old, new = before.state_dict(), after.state_dict()
    moved.load_state_dict({k: v + (new[k] - old[k]) for k, v in backbone.state_dict().items()})
    return moved


def average_compact(networks: Sequence[CompactBackbone]) -> CompactBackbone:
    """Return the mean of the weights of trainings that began at the same weights.

    M. Wortsman et al., "Model soups", ICML 2022. How renders are mixed may differ
    (`CompactConfig.blended_as`); the first network's way counts.

    Raises:
        WeightsError: The networks differ in shape.
    """
    first = networks[0]
    shapes = {network.config.blended_as(first.config) for network in networks}
    if len(shapes) != 1:
        raise WeightsError(
            "Networks of one shape were expected, to take the mean of their weights: "
            f"{len(shapes)} shapes came."
        )
    states = [network.state_dict() for network in networks]
    mean = CompactBackbone(first.config).to(next(first.parameters()))
    mean.load_state_dict({k: torch.stack([s[k] for s in states]).mean(dim=0) for k in states[0]})
    return mean
