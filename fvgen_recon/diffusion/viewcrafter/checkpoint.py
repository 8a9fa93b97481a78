"""The original checkpoint to a folder in diffusers' manner, and back, bit for bit."""

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from fvgen_recon.diffusion.viewcrafter.architecture import Architecture, Parts, build_parts
from fvgen_recon.diffusion.viewcrafter.key import KeyRule, plain_clip_name
from fvgen_recon.diffusion.viewcrafter.layout import (
    PREFIXES,
    compare_keys,
    expected_shapes,
    leftover_shapes,
    part_rules,
)
from fvgen_recon.diffusion.viewcrafter.resampler import ImageResampler
from fvgen_recon.diffusion.viewcrafter.tensor_file import (
    TensorEntry,
    TensorFile,
    open_tensors,
    write_tensors,
)
from fvgen_recon.diffusion.viewcrafter.unet import ImageContext, ViewCrafterUNet
from fvgen_recon.errors import InputError, WeightsError
from fvgen_recon.io.file import atomic_path, file_sha256, read_json, write_json

FORMAT_VERSION = 1
"""Version of the folder; raised when its meaning changes."""

RECORD = "conversion.json"
LEFTOVER = "leftover/leftover.safetensors"
FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "image_projector": "image_projector/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "image_encoder": "image_encoder/model.safetensors",
}
"""Weights of each part, in the folder."""

_CLIP_PREFIXES = {"text_encoder": "text_model.", "image_encoder": "vision_model."}
_DEEPSPEED_PREFIX = "_forward_module."


@dataclass(frozen=True, kw_only=True, slots=True)
class OriginalCheckpoint:
    """Tensors of an original checkpoint, mapped from the file."""

    tensors: Mapping[str, Tensor]
    container: str
    """"state_dict", or "module" for a DeepSpeed file."""

    @property
    def base_scale(self) -> float:
        """The dynamic rescale that belongs to these weights."""
        return float(self.tensors["scale_arr"][-1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """What a conversion did."""

    folder: Path
    num_tensors: int
    base_scale: float
    image_context: ImageContext
    sha256: Mapping[str, str]
    """Checksum of each file of weights."""


def read_original(path: Path) -> OriginalCheckpoint:
    """Map an original checkpoint without loading it and without running any code in it.

    Raises:
        WeightsError: The file is missing, is not such a checkpoint, or is of an old format.
    """
    if not path.is_file():
        raise WeightsError(f"A checkpoint was expected at {path} and is not there.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise WeightsError(
            f"{path} cannot be read as a checkpoint of plain tensors: download it again; "
            "pickled code and formats before torch 1.6 are refused."
        ) from error
    container = next((c for c in ("state_dict", "module") if _holds(content, c)), None)
    if container is None:
        raise WeightsError(
            f"{path} holds neither 'state_dict' nor 'module': use an original checkpoint."
        )
    tensors = content[container]
    others = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if others:
        raise WeightsError(
            f"{path} holds '{others[0]}', which is no tensor, in '{container}': use an original "
            "checkpoint."
        )
    if container == "module":
        strays = [name for name in tensors if not name.startswith(_DEEPSPEED_PREFIX)]
        if strays:
            raise WeightsError(
                f"{path} is a DeepSpeed file whose tensor '{strays[0]}' does not start with "
                f"'{_DEEPSPEED_PREFIX}': use an original checkpoint."
            )
        tensors = {name.removeprefix(_DEEPSPEED_PREFIX): t for name, t in tensors.items()}
    return OriginalCheckpoint(tensors=tensors, container=container)


def convert_checkpoint(
    source: Path,
    folder: Path,
    *,
    image_context: ImageContext,
    architecture: Architecture | None = None,
) -> Conversion:
    """Write an original checkpoint as a folder that `ViewCrafterPipeline` loads.

    Args:
        source: The `.ckpt` file.
        folder: A new folder, or one that an interrupted conversion left without its record.
        image_context: Which image tokens a frame sees; the file does not say. Released models of
            25 frames are "shared", the one of 16 frames is "per_frame".
        architecture: Sizes of the model; ViewCrafter's where not given.

    Returns:
        What was done, with checksums.

    Raises:
        WeightsError: The file is not such a checkpoint, or names or shapes are not as expected.
        InputError: The folder holds a model already.
    """
    if (folder / RECORD).exists():
        raise InputError(f"{folder} holds a converted model already: choose another folder.")
    sizes = architecture or Architecture()
    parts = build_parts(sizes, image_context)
    original = read_original(source)
    report = compare_keys(original.tensors, expected_shapes(sizes, parts))
    if not report.is_empty:
        raise WeightsError(f"{source} does not fit the architecture: {report.sentence()}.")
    checksums = {}
    for name, rules in part_rules(parts).items():
        entries = _entries(name, rules, original.tensors)
        checksums[FILES[name]] = write_tensors(folder / FILES[name], entries)
    left = {key: original.tensors[key] for key in leftover_shapes(sizes, parts)}
    checksums[LEFTOVER] = write_tensors(folder / LEFTOVER, [_entry(k, t) for k, t in left.items()])
    _write_configs(folder, parts, original.base_scale)
    record = {
        "format_version": FORMAT_VERSION,
        "source": source.name,
        "container": original.container,
        "base_scale": original.base_scale,
        "image_context": image_context,
        "num_tensors": len(original.tensors),
        "sha256": checksums,
    }
    write_json(folder / RECORD, record)
    return Conversion(
        folder=folder,
        num_tensors=len(original.tensors),
        base_scale=original.base_scale,
        image_context=image_context,
        sha256=checksums,
    )


def export_checkpoint(folder: Path, target: Path, *, leftover: Path | None = None) -> int:
    """Write a folder back as an original checkpoint.

    Args:
        folder: A converted model, or a student saved from one.
        target: The `.ckpt` file to write, in the container that the source had.
        leftover: The converted model that a student came from, for what the networks do not hold.

    Returns:
        The number of tensors.

    Raises:
        WeightsError: A file is missing, damaged or of another version.
    """
    home = leftover or folder
    record = read_record(home)
    check_files(folder)
    left = open_tensors(home / LEFTOVER)
    tensors = {name: left.load(name) for name in left.spans}
    for name, rules in part_rules(read_parts(folder)).items():
        file = open_tensors(folder / FILES[name])
        # Releases of transformers differ in a prefix, so CLIP names are compared without it.
        names = {_canonical(name, key): key for key in file.spans}
        for rule in rules:
            tensors[PREFIXES[name] + rule.source] = _join(file, rule, names, name)
    container = record["container"]
    if container == "module":
        tensors = {_DEEPSPEED_PREFIX + name: tensor for name, tensor in tensors.items()}
    with atomic_path(target) as temporary:
        torch.save({container: tensors}, temporary)
    return len(tensors)


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record of a conversion.

    Raises:
        WeightsError: There is none, or it is of another version.
    """
    if not (folder / RECORD).is_file():
        raise WeightsError(
            f"{folder} lacks {RECORD}: name the folder of a converted original checkpoint."
        )
    record = read_json(folder / RECORD)
    check_version(record.get("format_version"), folder)
    return record


def check_version(version: object, folder: Path) -> None:
    """Refuse a folder of another version.

    Raises:
        WeightsError: It is of another version.
    """
    if version != FORMAT_VERSION:
        raise WeightsError(
            f"{folder} is of format version {version} and this release reads {FORMAT_VERSION}: "
            "convert the original checkpoint again."
        )


def check_files(folder: Path) -> None:
    """Compare the files of a converted folder with their recorded checksums.

    Raises:
        WeightsError: A file is missing or differs.
    """
    if not (folder / RECORD).is_file():
        return
    for name, expected in read_record(folder)["sha256"].items():
        if not (folder / name).is_file():
            raise WeightsError(f"{folder / name} is missing: convert the checkpoint again.")
        if file_sha256(folder / name) != expected:
            raise WeightsError(
                f"{folder / name} is not the file that was written (its SHA-256 differs): convert "
                "the checkpoint again."
            )


def read_parts(folder: Path) -> Parts:
    """Build the networks of a folder from their configs, on the meta device.

    Raises:
        InputError: A config is missing or is not JSON.
    """
    configs = {name: read_json(folder / name / "config.json") for name in FILES}
    with torch.device("meta"):
        return Parts(
            unet=ViewCrafterUNet.from_config(configs["unet"]),  # type: ignore[arg-type]
            image_projector=ImageResampler.from_config(configs["image_projector"]),  # type: ignore[arg-type]
            vae=AutoencoderKL.from_config(configs["vae"]),  # type: ignore[arg-type]
            text_encoder=CLIPTextModel(CLIPTextConfig.from_dict(configs["text_encoder"])),
            image_encoder=CLIPVisionModel(CLIPVisionConfig.from_dict(configs["image_encoder"])),
        )


def _holds(content: object, container: str) -> bool:
    return isinstance(content, dict) and isinstance(content.get(container), dict)


def _canonical(part: str, name: str) -> str:
    return plain_clip_name(name) if part in _CLIP_PREFIXES else name


def _entry(name: str, tensor: Tensor) -> TensorEntry:
    return TensorEntry(
        name=name, shape=tuple(tensor.shape), dtype=tensor.dtype, load=lambda: tensor
    )


def _entries(part: str, rules: list[KeyRule], tensors: Mapping[str, Tensor]) -> list[TensorEntry]:
    entries = []
    for rule in rules:
        pieces = rule.split(tensors[PREFIXES[part] + rule.source])
        for target, piece in zip(rule.targets, pieces, strict=True):
            # Files carry the prefix, which every release of transformers reads.
            name = _CLIP_PREFIXES.get(part, "") + _canonical(part, target)
            entries.append(_entry(name, piece))
    return entries


def _join(file: TensorFile, rule: KeyRule, names: Mapping[str, str], part: str) -> Tensor:
    pieces = []
    for target in rule.targets:
        name = names.get(_canonical(part, target))
        if name is None:
            raise WeightsError(f"{file.path} lacks '{target}': use a complete model.")
        piece = file.load(name)
        if tuple(piece.shape) != rule.target_shape:
            raise WeightsError(
                f"'{name}' in {file.path} has shape {tuple(piece.shape)}, {rule.target_shape} was "
                "expected from the config: use weights and config of one model."
            )
        pieces.append(piece)
    return rule.join(pieces)


def _write_configs(folder: Path, parts: Parts, base_scale: float) -> None:
    parts.unet.save_config(folder / "unet")
    parts.image_projector.save_config(folder / "image_projector")
    parts.vae.save_config(folder / "vae")
    parts.text_encoder.config.save_pretrained(folder / "text_encoder")
    parts.image_encoder.config.save_pretrained(folder / "image_encoder")
    modules = {
        "unet": parts.unet,
        "image_projector": parts.image_projector,
        "vae": parts.vae,
        "text_encoder": parts.text_encoder,
        "image_encoder": parts.image_encoder,
    }
    index: dict[str, object] = {
        "_class_name": "ViewCrafterPipeline",
        "_diffusers_version": diffusers.__version__,
        "base_scale": base_scale,
        "format_version": FORMAT_VERSION,
    }
    for name, module in modules.items():
        kind = type(module)
        library = kind.__module__
        if not library.startswith("fvgen_recon"):
            library = library.partition(".")[0]
        index[name] = [library, kind.__name__]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
