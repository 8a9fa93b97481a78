"""Between frames and latents, and from guidance to what conditions the network."""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPVisionModel

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.diffusion.viewcrafter.clip import (
    NULL_PROMPT_IDS,
    NUM_TEXT_TOKENS,
    PROMPT_IDS,
    image_tokens,
    text_tokens,
)
from fvgen_recon.diffusion.viewcrafter.resampler import ImageResampler
from fvgen_recon.diffusion.viewcrafter.vae import decode_latents, encode_images, posterior_noise
from fvgen_recon.errors import InputError
from fvgen_recon.types import Guidance

_CHUNK_PIXELS = 16 * 320 * 512
"""Pixels that the autoencoder works on at once: one small clip, or a few large frames."""

_LATENT_SIZE_MULTIPLE = 8
"""The UNet halves latents three times."""


class ViewCrafterCodec:
    """A `Codec`: the autoencoder and the towers, frozen.

    Renders condition the network through their latents, which are concatenated with the noisy ones;
    photos are already pasted into the frames of the anchors. The clean photo of the first anchor
    gives the image tokens. The unconditional branch sees the same renders, the empty prompt and the
    tokens of a grey image.

    The prompt is a constant, so text tokens and the grey image's tokens are computed once.
    """

    def __init__(
        self,
        *,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        image_encoder: CLIPVisionModel,
        image_projector: ImageResampler,
        size_multiple: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Bind the networks.

        Args:
            vae: The autoencoder.
            text_encoder: The text tower; used once.
            image_encoder: The image tower.
            image_projector: The resampler.
            size_multiple: Image sizes must be multiples of this; 64 for the full-size UNet.
            device: Where to compute; the autoencoder's device where not given.
        """
        self.vae = vae
        self.text_encoder = text_encoder
        self.image_encoder = image_encoder
        self.image_projector = image_projector
        self.device = device or vae.device
        self.frames_at_once: int | None = None
        self._size_multiple = size_multiple or _LATENT_SIZE_MULTIPLE * self.vae_factor
        self._texts: Tensor | None = None
        self._grey: Tensor | None = None

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.vae.config["latent_channels"]

    @property
    def vae_factor(self) -> int:
        """Pixels along the side of a latent pixel."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def size_multiple(self) -> int:
        """Image heights and widths must be multiples of this number of pixels."""
        return self._size_multiple

    @torch.no_grad()
    def encode(
        self, frames: Float[Tensor, "B T 3 H W"], rng: torch.Generator | None = None
    ) -> Float[Tensor, "B C T h w"]:
        """Encode frames in [0, 1] frame by frame.

        Args:
            frames: The frames.
            rng: Draws a sample of the posterior, as the original does; none takes its mean.

        Returns:
            Scaled latents in float32.

        Raises:
            InputError: The size is not a multiple of `size_multiple`.
        """
        self.check_size(*frames.shape[-2:])
        images = 2 * frames.flatten(0, 1).to(self.device) - 1
        noise = None if rng is None else posterior_noise(self.vae, images, rng)
        latents = encode_images(self.vae, images, noise, chunk=self._chunk(frames))
        return latents.unflatten(0, frames.shape[:2]).transpose(1, 2)

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "B C T h w"]) -> Float[Tensor, "B T 3 H W"]:
        """Decode scaled latents to frames in [0, 1]."""
        flat = z.transpose(1, 2).flatten(0, 1).to(self.device)
        height, width = (size * self.vae_factor for size in z.shape[-2:])
        chunk = self.frames_at_once or max(1, _CHUNK_PIXELS // (height * width))
        images = decode_latents(self.vae, flat, chunk=chunk)
        return ((images + 1) / 2).clamp(0, 1).unflatten(0, (z.shape[0], z.shape[2]))

    @torch.no_grad()
    def condition(
        self, guidance: Sequence[Guidance], rng: torch.Generator | None = None
    ) -> Condition:
        """Return the condition of a batch of clips.

        Args:
            guidance: Renders, one for each clip, of one size and length.
            rng: Draws samples of the posterior; none takes its mean.

        Raises:
            InputError: The clips differ in length or size, or the size does not suit.
        """
        shapes = {tuple(g.frames.shape) for g in guidance}
        if len(shapes) != 1:
            raise InputError(
                "Clips of one batch need guidance of one length and size (frames, 3, height, "
                f"width): {', '.join(map(str, sorted(shapes))) or 'none'} came."
            )
        frames = torch.stack([g.frames for g in guidance])
        # First, because it keeps a GPU busy while the towers' many small kernels are queued.
        concat = self.encode(frames, rng)
        reference = torch.stack([g.reference for g in guidance]).to(self.device)
        text, null_text = self._text_tokens().expand(len(guidance), -1, -1, -1).unbind(1)
        image = self._image_tokens(2 * reference - 1)
        null_image = self._grey_tokens(reference).expand_as(image)
        return Condition(
            concat=concat,
            context=torch.cat([text, image], dim=1),
            null_context=torch.cat([null_text, null_image], dim=1),
        )

    def check_size(self, height: int, width: int) -> None:
        """Refuse image sizes that the networks cannot halve often enough.

        Raises:
            InputError: A side is not a multiple of `size_multiple`.
        """
        multiple = self.size_multiple
        if height % multiple or width % multiple:
            raise InputError(
                f"Frames of {height}x{width} (height x width) came: both must be multiples of "
                f"{multiple}; resize or crop the cameras first, for example to "
                f"{max(1, round(height / multiple)) * multiple}x"
                f"{max(1, round(width / multiple)) * multiple}."
            )

    def _chunk(self, frames: Tensor) -> int:
        return self.frames_at_once or max(1, _CHUNK_PIXELS // (frames.shape[-1] * frames.shape[-2]))

    def _text_tokens(self) -> Tensor:
        """Tokens of the prompt and of the empty prompt, [2, L, D]."""
        if self._texts is None:
            ids = torch.zeros(2, NUM_TEXT_TOKENS, dtype=torch.long, device=self.device)
            for row, prompt in zip(ids, (PROMPT_IDS, NULL_PROMPT_IDS), strict=True):
                row[: len(prompt)] = torch.tensor(prompt, device=self.device)
            self._texts = text_tokens(self.text_encoder, ids).float()
        return self._texts

    def _grey_tokens(self, like: Tensor) -> Tensor:
        """Tokens of a grey image, [1, L, D]; the same for every size of image."""
        if self._grey is None:
            self._grey = self._image_tokens(torch.zeros_like(like[:1]))
        return self._grey

    def _image_tokens(self, images: Tensor) -> Tensor:
        tokens = image_tokens(self.image_encoder, images)
        return self.image_projector(tokens.to(self.image_projector.dtype)).float()
