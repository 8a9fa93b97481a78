"""Names of parameters in the original checkpoint and here, both ways.

Nothing is listed: the names and shapes that a checkpoint must have are derived from the modules, so
any size of network has its own. Each rule joins one original tensor to one or several of ours.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from fvgen_recon.diffusion.viewcrafter.unet import ViewCrafterUNet
from fvgen_recon.errors import WeightsError

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_CLIP_PREFIXES = ("text_model.", "vision_model.")


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyRule:
    """One original tensor and what it is here.

    Several targets are equal parts of the original along its first axis (the fused query, key and
    value projections of CLIP).
    """

    source: str
    """Name in the original."""
    source_shape: tuple[int, ...]
    """Shape in the original."""
    targets: tuple[str, ...]
    """Names here."""
    target_shape: tuple[int, ...]
    """Shape of each target; as many elements as its part of the source."""

    def split(self, source: Tensor) -> tuple[Tensor, ...]:
        """Return our tensors, as views of the original one."""
        parts = source.chunk(len(self.targets)) if len(self.targets) > 1 else (source,)
        return tuple(part.reshape(self.target_shape) for part in parts)

    def join(self, targets: Iterable[Tensor]) -> Tensor:
        """Return the original tensor."""
        parts = list(targets)
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        return whole.reshape(self.source_shape)


def unet_rules(unet: ViewCrafterUNet) -> list[KeyRule]:
    """Return the rules of the UNet; original names are those inside `diffusion_model`."""
    modules = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "fps_embedding.linear_1": "fps_embedding.0",
        "fps_embedding.linear_2": "fps_embedding.2",
        "conv_in": "input_blocks.0.0",
        "transformer_in": "init_attn.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    modules |= _down_modules(unet) | _mid_modules() | _up_modules(unet)
    # The very first transformer projects with 1D convolutions, all others with linear maps.
    convolutions = {f"transformer_in.proj_{side}.weight" for side in ("in", "out")}
    rules = []
    for name, tensor in unet.state_dict().items():
        shape = tuple(tensor.shape)
        rules.append(
            KeyRule(
                source=_rename(name, modules).replace(".processor.", "."),
                source_shape=(*shape, 1) if name in convolutions else shape,
                targets=(name,),
                target_shape=shape,
            )
        )
    return rules


def same_name_rules(module: nn.Module) -> list[KeyRule]:
    """Return the rules of a module whose names are the original's."""
    return [
        KeyRule(
            source=name,
            source_shape=tuple(tensor.shape),
            targets=(name,),
            target_shape=tuple(tensor.shape),
        )
        for name, tensor in module.state_dict().items()
    ]


def vae_rules(vae: AutoencoderKL) -> list[KeyRule]:
    """Return the rules of the autoencoder; original names are those inside `first_stage_model`."""
    modules = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    num_levels = len(vae.config["block_out_channels"])
    num_layers = vae.config["layers_per_block"]
    for side in ("encoder", "decoder"):
        modules |= {f"{side}.{name}": f"{side}.{name}" for name in ("conv_in", "conv_out")}
        modules[f"{side}.conv_norm_out"] = f"{side}.norm_out"
        for i in range(2):
            modules |= _vae_resnet(f"{side}.mid_block.resnets.{i}", f"{side}.mid.block_{i + 1}")
        for ours, theirs in _VAE_ATTENTION.items():
            modules[f"{side}.mid_block.attentions.0.{ours}"] = f"{side}.mid.attn_1.{theirs}"
    for i in range(num_levels):
        down, up = f"encoder.down.{i}", f"decoder.up.{num_levels - 1 - i}"
        for j in range(num_layers + 1):
            modules |= _vae_resnet(f"encoder.down_blocks.{i}.resnets.{j}", f"{down}.block.{j}")
            modules |= _vae_resnet(f"decoder.up_blocks.{i}.resnets.{j}", f"{up}.block.{j}")
        modules[f"encoder.down_blocks.{i}.downsamplers.0.conv"] = f"{down}.downsample.conv"
        modules[f"decoder.up_blocks.{i}.upsamplers.0.conv"] = f"{up}.upsample.conv"
    rules = []
    for name, tensor in vae.state_dict().items():
        shape = tuple(tensor.shape)
        # The original's attention projects with 1x1 convolutions.
        is_linear = ".attentions." in name and len(shape) == 2
        rules.append(
            KeyRule(
                source=_rename(name, modules),
                source_shape=(*shape, 1, 1) if is_linear else shape,
                targets=(name,),
                target_shape=shape,
            )
        )
    return rules


def text_rules(text: nn.Module) -> list[KeyRule]:
    """Return the rules of the text tower; original names are those inside its `model`."""
    modules = {
        "embeddings.token_embedding": "token_embedding",
        "final_layer_norm": "ln_final",
    }
    whole = {"embeddings.position_embedding.weight": "positional_embedding"}
    return _clip_rules(text, modules, whole, "transformer.resblocks.")


def vision_rules(vision: nn.Module) -> list[KeyRule]:
    """Return the rules of the image tower; original names are those inside its `visual`."""
    modules = {
        "embeddings.patch_embedding": "conv1",
        "pre_layrnorm": "ln_pre",
        "post_layernorm": "ln_post",
    }
    whole = {
        "embeddings.class_embedding": "class_embedding",
        "embeddings.position_embedding.weight": "positional_embedding",
    }
    return _clip_rules(vision, modules, whole, "transformer.resblocks.")


def load_original(
    module: nn.Module, rules: Iterable[KeyRule], tensors: Mapping[str, Tensor], prefix: str = ""
) -> None:
    """Load original tensors into a module; all of its parameters must be there.

    Args:
        module: What to fill.
        rules: The rules of that module.
        tensors: Original tensors by name; others than the module's are left alone.
        prefix: What stands before the names of `rules` in `tensors`.

    Raises:
        WeightsError: A tensor is missing or has another shape.
    """
    state = {}
    for rule in rules:
        source = tensors.get(prefix + rule.source)
        if source is None:
            raise WeightsError(
                f"The weights lack '{prefix + rule.source}' of shape {rule.source_shape}: use a "
                "complete checkpoint of the architecture given."
            )
        if tuple(source.shape) != rule.source_shape:
            raise WeightsError(
                f"'{prefix + rule.source}' should have shape {rule.source_shape}, "
                f"{tuple(source.shape)} came: use a checkpoint of the architecture given."
            )
        state |= dict(zip(rule.targets, rule.split(source), strict=True))
    module.load_state_dict(state, strict=True)


def plain_clip_name(name: str) -> str:
    """Return a CLIP parameter's name without the prefix that older transformers releases use."""
    for prefix in _CLIP_PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _rename(name: str, modules: Mapping[str, str]) -> str:
    """Replace the longest known leading part of a parameter's name."""
    head, tail = name, ""
    while head not in modules:
        head, _, last = head.rpartition(".")
        assert head, f"no rule for {name}"
        tail = f".{last}{tail}"
    return modules[head] + tail


def _layer_modules(block: str, index: int, source: str) -> dict[str, str]:
    """Names of a residual block with its temporal convolution and transformers."""
    resnet = f"{block}.resnets.{index}"
    modules = {f"{resnet}.{ours}": f"{source}.0.{theirs}" for ours, theirs in _RESNET.items()}
    modules[f"{block}.temp_convs.{index}"] = f"{source}.0.temopral_conv"
    modules[f"{block}.attentions.{index}"] = f"{source}.1"
    modules[f"{block}.temp_attentions.{index}"] = f"{source}.2"
    return modules


def _down_modules(unet: ViewCrafterUNet) -> dict[str, str]:
    modules, count = {}, 1
    num_levels = len(unet.config["block_out_channels"])
    for i in range(num_levels):
        for j in range(unet.config["layers_per_block"]):
            modules |= _layer_modules(f"down_blocks.{i}", j, f"input_blocks.{count}")
            count += 1
        if i + 1 < num_levels:
            modules[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{count}.0.op"
            count += 1
    return modules


def _mid_modules() -> dict[str, str]:
    modules = _layer_modules("mid_block", 0, "middle_block")
    second = _layer_modules("mid_block", 1, "middle_block")
    # The second residual block of the middle is entry 3 and has no transformers.
    return modules | {
        ours: theirs.replace("middle_block.0", "middle_block.3")
        for ours, theirs in second.items()
        if ".attentions." not in ours and ".temp_attentions." not in ours
    }


def _up_modules(unet: ViewCrafterUNet) -> dict[str, str]:
    modules, count = {}, 0
    attention = list(unet.config["attention_levels"])[::-1]
    for i, attended in enumerate(attention):
        for j in range(unet.config["layers_per_block"] + 1):
            modules |= _layer_modules(f"up_blocks.{i}", j, f"output_blocks.{count}")
            count += 1
        entry = 3 if attended else 1
        modules[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{count - 1}.{entry}.conv"
    return modules


def _vae_resnet(ours: str, theirs: str) -> dict[str, str]:
    names = {name: name for name in ("norm1", "conv1", "norm2", "conv2")}
    names["conv_shortcut"] = "nin_shortcut"
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in names.items()}


def _clip_rules(
    tower: nn.Module, modules: dict[str, str], whole: dict[str, str], layers: str
) -> list[KeyRule]:
    rules = []
    for name, tensor in tower.state_dict().items():
        plain, shape = plain_clip_name(name), tuple(tensor.shape)
        targets, source_shape = (name,), shape
        if plain in whole:
            source = whole[plain]
        elif not plain.startswith("encoder.layers."):
            source = _rename(plain, modules)
        elif ".self_attn.out_proj." in plain or ".self_attn." not in plain:
            source = layers + _clip_layer(plain)
        elif ".q_proj." in plain:
            index, kind = plain.split(".")[2], plain.rpartition(".")[2]
            source = f"{layers}{index}.attn.in_proj_{kind}"
            targets = tuple(name.replace(".q_proj.", f".{x}_proj.") for x in "qkv")
            source_shape = (3 * shape[0], *shape[1:])
        else:
            continue  # keys and values came with their query
        rules.append(
            KeyRule(source=source, source_shape=source_shape, targets=targets, target_shape=shape)
        )
    return rules


def _clip_layer(plain: str) -> str:
    index, _, rest = plain.removeprefix("encoder.layers.").partition(".")
    return f"{index}.{_rename(rest, _CLIP_LAYER)}"
