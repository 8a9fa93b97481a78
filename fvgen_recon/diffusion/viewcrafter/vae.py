"""Frames to latents and back with Stable Diffusion's autoencoder, frame by frame.

The original samples the posterior when it encodes, both for training targets and for the renders
that condition the network; so does this. Frames are processed in chunks, which bounds memory and
changes no value: the noise of all frames is drawn at once.
"""

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

LOGVAR_RANGE = (-30.0, 20.0)


def posterior(
    vae: AutoencoderKL, images: Float[Tensor, "N 3 H W"]
) -> tuple[Float[Tensor, "N C h w"], Float[Tensor, "N C h w"]]:
    """Return mean and log-variance of the latents of images in [-1, 1], not scaled."""
    distribution = vae.encode(images).latent_dist  # type: ignore[union-attr]
    return distribution.mean, distribution.logvar


def encode_images(
    vae: AutoencoderKL,
    images: Float[Tensor, "N 3 H W"],
    noise: Float[Tensor, "N C h w"] | None,
    *,
    chunk: int = 8,
) -> Float[Tensor, "N C h w"]:
    """Encode images to latents of about unit scale.

    Args:
        vae: The autoencoder.
        images: Images in [-1, 1].
        noise: Standard normal noise that picks the sample; none takes the mean.
        chunk: Images at a time.

    Returns:
        Scaled latents in float32.
    """
    factor, latents = vae.config["scaling_factor"], []
    for start in range(0, images.shape[0], chunk):
        part = slice(start, start + chunk)
        mean, logvar = posterior(vae, images[part].to(vae.dtype))
        z = mean.float()
        if noise is not None:
            z = z + (0.5 * logvar.float()).exp() * noise[part].to(z.device)
        latents.append(factor * z)
    return torch.cat(latents)


def decode_latents(
    vae: AutoencoderKL, z: Float[Tensor, "N C h w"], *, chunk: int = 8
) -> Float[Tensor, "N 3 H W"]:
    """Decode scaled latents to images of about [-1, 1], not clamped, in float32."""
    factor, images = vae.config["scaling_factor"], []
    for start in range(0, z.shape[0], chunk):
        part = (z[start : start + chunk] / factor).to(vae.dtype)
        images.append(vae.decode(part).sample.float())  # type: ignore[union-attr]
    return torch.cat(images)


def posterior_noise(
    vae: AutoencoderKL, images: Float[Tensor, "N 3 H W"], rng: torch.Generator
) -> Float[Tensor, "N C h w"]:
    """Draw the noise that `encode_images` needs, on the generator's device."""
    factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
    height, width = (size // factor for size in images.shape[-2:])
    shape = (images.shape[0], vae.config["latent_channels"], height, width)
    return torch.randn(shape, generator=rng, device=rng.device)
