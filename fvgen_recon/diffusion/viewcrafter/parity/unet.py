"""The UNet against fixtures of the original."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fvgen_recon.diffusion.viewcrafter.key import load_original, unet_rules
from fvgen_recon.diffusion.viewcrafter.parity.fixture import Fixture, difference, read_fixture
from fvgen_recon.diffusion.viewcrafter.unet import ViewCrafterUNet
from fvgen_recon.errors import InputError
from fvgen_recon.types import Difference

TOLERANCE = 5e-5
_NUM_TEXT_TOKENS = 77
_TOKENS_PER_FRAME = 16

_FIXED = {
    "use_linear": True,
    "temporal_conv": True,
    "temporal_attention": True,
    "temporal_selfatt_only": True,
    "use_relative_position": False,
    "use_causal_attention": False,
    "addition_attention": True,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "conv_resample": True,
    "dims": 2,
}
"""Settings of the original that every released model shares; others are not built."""

_VARIANTS = {
    "default_fs": {},
    "no_fs_condition": {"fs_condition": False},
    "no_image_cross_attention": {"image_cross_attention": False},
}
"""Parts of an output's name, and the settings they change."""


@torch.no_grad()
def compare_unet(path: Path) -> tuple[Difference, ...]:
    """Compare the UNet with every output and intermediate of a fixture.

    Raises:
        InputError: The fixture is of another layout or of a network that is not built here.
    """
    fixture = read_fixture(path)
    parameters = fixture.fact("unet_params")
    outputs = sorted(k for k in fixture.tensors if k == "y" or k.startswith("y_"))
    if not outputs:
        raise InputError(f"{path} holds no output 'y': use a fixture of the UNet.")
    rows = [_compare_output(fixture, parameters, name) for name in outputs]
    return (*rows, *_compare_activations(fixture, parameters))


def _compare_output(fixture: Fixture, parameters: dict[str, Any], name: str) -> Difference:
    rest, changes = name[1:], {}
    default_fps = "_default_fs" in rest
    for variant, change in _VARIANTS.items():
        if f"_{variant}" in rest:
            rest = rest.replace(f"_{variant}", "")
            changes |= change
    context = fixture.tensor(f"context{rest}")
    unet = _build(fixture, parameters | changes, context)
    sample, timesteps, fps = _inputs(fixture)
    output, _ = unet(sample, timesteps, context, None if default_fps else fps)
    return difference(name, output, fixture.tensor(name), TOLERANCE)


def _compare_activations(fixture: Fixture, parameters: dict[str, Any]) -> list[Difference]:
    names = sorted(k for k in fixture.tensors if k.startswith("act."))
    if not names:
        return []
    context = fixture.tensor("context")
    unet = _build(fixture, parameters, context)
    ours = _activations(unet, fixture, context)
    unknown = [name for name in names if name.removeprefix("act.") not in ours]
    if unknown:
        raise InputError(
            f"{fixture.path} holds the intermediate '{unknown[0]}', which is none of the blocks: "
            f"use names out of {', '.join(sorted(ours))}."
        )
    return [
        difference(name, ours[name.removeprefix("act.")], fixture.tensor(name), TOLERANCE)
        for name in names
    ]


def _activations(unet: ViewCrafterUNet, fixture: Fixture, context: Tensor) -> dict[str, Tensor]:
    sample, timesteps, fps = _inputs(fixture)
    downs = [f"down.{i}" for i in range(unet.num_down_features)]
    ups = [f"up.{i}" for i in range(unet.num_up_features)]
    unet.select_features(["mid", *downs, *ups])
    _, features = unet(sample, timesteps, context, fps, return_mid=True)
    found = dict(
        zip(
            ["middle_block", "init_attn", *(f"input_blocks.{i}" for i in range(1, len(downs)))],
            features,
            strict=False,
        )
    )
    found |= {f"output_blocks.{i}": f for i, f in enumerate(features[1 + len(downs) :])}
    flat = {name: f.transpose(1, 2).flatten(0, 1) for name, f in found.items()}
    flat["input_blocks.0"] = unet.conv_in(sample.transpose(1, 2).flatten(0, 1))
    flat["time_embed"] = unet.time_embedding(unet.time_proj(timesteps))
    if unet.fps_embedding is not None and fps is not None:
        flat["fps_embedding"] = unet.fps_embedding(unet.time_proj(fps))
    return flat


def _inputs(fixture: Fixture) -> tuple[Tensor, Tensor, Tensor | None]:
    return fixture.tensor("x").float(), fixture.tensor("timesteps"), fixture.tensors.get("fs")


def _build(fixture: Fixture, parameters: dict[str, Any], context: Tensor) -> ViewCrafterUNet:
    other = [k for k, v in _FIXED.items() if parameters.get(k, v) != v]
    if other:
        raise InputError(
            f"{fixture.path} is of a network with {other[0]}={parameters[other[0]]}, which no "
            f"released model has: use one with {other[0]}={_FIXED[other[0]]}."
        )
    num_frames = fixture.tensor("x").shape[2]
    split = context.shape[1] == _NUM_TEXT_TOKENS + _TOKENS_PER_FRAME * num_frames
    try:
        unet = ViewCrafterUNet(
            # The original's own rule, which released models follow at run time.
            image_context="per_frame" if split else "shared",
            **unet_config(parameters),
        )
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{fixture.path.with_suffix('.json')} does not describe a UNet: {error!r}."
        ) from error
    load_original(unet, unet_rules(unet), fixture.weights)
    return unet.eval()


def unet_config(parameters: dict[str, Any]) -> dict[str, Any]:
    """Translate the original's settings of the UNet to ours, all but the image context."""
    width, mult = parameters["model_channels"], parameters["channel_mult"]
    return {
        "in_channels": parameters["in_channels"],
        "out_channels": parameters["out_channels"],
        "block_out_channels": tuple(width * m for m in mult),
        "layers_per_block": parameters["num_res_blocks"],
        "attention_levels": tuple(
            2**i in parameters["attention_resolutions"] for i in range(len(mult))
        ),
        "attention_head_dim": parameters["num_head_channels"],
        "transformer_depth": parameters.get("transformer_depth", 1),
        "cross_attention_dim": parameters["context_dim"],
        "image_cross_attention": parameters.get("image_cross_attention", False),
        "fps_condition": parameters.get("fs_condition", False),
        "default_fps": parameters.get("default_fs", 4),
    }
