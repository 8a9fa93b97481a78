"""Low-rank adapters (LoRA, Hu et al. 2021) for students and critics on small cards, with peft."""

import torch
from torch import nn

from fvgen_recon.distill.config import LoraSettings
from fvgen_recon.errors import InputError, MissingDependencyError


def add_lora(module: nn.Module, settings: LoraSettings) -> nn.Module:
    """Freeze a network and add trainable adapters to its layers, in place.

    The frozen weights keep their precision (bfloat16 saves most of the memory); adapters train in
    float32. An untrained adapter changes nothing.

    Raises:
        MissingDependencyError: peft is not installed.
        InputError: No layer has a matching name.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingDependencyError(
            "LoRA needs peft: pip install 'fvgen-recon[distill]'."
        ) from error
    names = [n for n, m in module.named_modules() if isinstance(m, nn.Linear)]
    if settings.targets != ("all-linear",):
        names = [n for n, _ in module.named_modules() if n.endswith(settings.targets)]
    if not names:
        raise InputError(f"No layer's name ends with any of {settings.targets}: nothing to adapt.")
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=names)
    module.requires_grad_(False)
    inject_adapter_in_model(config, module)
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    return module


@torch.no_grad()
def merge_lora(module: nn.Module) -> nn.Module:
    """Add the adapters to the weights and remove them, in place."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(module.named_modules()):
        if not isinstance(layer, LoraLayer):
            continue
        layer.merge()
        parent_name, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent_name), child, layer.get_base_layer())
    return module
