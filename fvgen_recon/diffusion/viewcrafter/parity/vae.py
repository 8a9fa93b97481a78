"""The autoencoder against fixtures of the original."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from fvgen_recon.diffusion.viewcrafter.architecture import vae_config
from fvgen_recon.diffusion.viewcrafter.key import load_original, vae_rules
from fvgen_recon.diffusion.viewcrafter.parity.fixture import Fixture, difference, read_fixture
from fvgen_recon.diffusion.viewcrafter.vae import decode_latents, encode_images, posterior
from fvgen_recon.errors import InputError
from fvgen_recon.types import Difference

TOLERANCE = 1e-5


@torch.no_grad()
def compare_vae(path: Path) -> tuple[Difference, ...]:
    """Compare encoding, sampling and decoding with a fixture's outputs.

    Raises:
        InputError: The fixture is of another layout or of an autoencoder that is not built here.
    """
    fixture = read_fixture(path)
    vae = _build(fixture)
    ours = _encoded(fixture, vae) if "x" in fixture.tensors else {}
    if "decoded" in fixture.tensors:
        z = fixture.tensor("z").float() * vae.config["scaling_factor"]
        # One image at a time, so that the comparison covers the chunking.
        ours["decoded"] = decode_latents(vae, z, chunk=1)
    rows = tuple(
        difference(name, value, fixture.tensor(name), TOLERANCE)
        for name, value in ours.items()
        if name in fixture.tensors
    )
    if not rows:
        raise InputError(f"{path} holds no output: use a fixture of the autoencoder.")
    return rows


def _encoded(fixture: Fixture, vae: AutoencoderKL) -> dict[str, Tensor]:
    images = fixture.tensor("x").float()
    mean, logvar = posterior(vae, images)
    ours = {"moments": torch.cat([mean, logvar], dim=1), "mean": mean, "logvar": logvar}
    if "noise" in fixture.tensors:
        scaled = encode_images(vae, images, fixture.tensor("noise").float(), chunk=1)
        ours |= {"sample": scaled / vae.config["scaling_factor"], "latent_scaled": scaled}
    return ours


def _build(fixture: Fixture) -> AutoencoderKL:
    parameters = fixture.fact("ddconfig")
    embed_dim = fixture.facts.get("embed_dim", parameters.get("z_channels"))
    if parameters.get("attn_resolutions") or embed_dim != parameters.get("z_channels"):
        raise InputError(
            f"{fixture.path} is of an autoencoder with attention at some resolution or with "
            "latents of another width than its bottleneck, which no released model has."
        )
    try:
        vae = AutoencoderKL(**_config(parameters))
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{fixture.path.with_suffix('.json')} does not describe an autoencoder: {error!r}."
        ) from error
    load_original(vae, vae_rules(vae), fixture.weights)
    return vae.eval()


def _config(parameters: dict[str, Any]) -> dict[str, Any]:
    return vae_config(
        block_out_channels=tuple(parameters["ch"] * m for m in parameters["ch_mult"]),
        layers_per_block=parameters["num_res_blocks"],
        latent_channels=parameters["z_channels"],
        in_channels=parameters["in_channels"],
        out_channels=parameters["out_ch"],
    )
