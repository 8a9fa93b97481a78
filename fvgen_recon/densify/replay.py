"""A generator without a model: it plays frames back from a bank."""

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.densify.bank import Bank, BankEntry, hash_guidance
from fvgen_recon.errors import InputError
from fvgen_recon.types import Guidance


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayGenerator:
    """Returns the frames that a bank holds for the same conditioning."""

    bank: Bank
    """Where the frames come from."""
    num_frames: int
    """Length of the clips in the bank."""
    name: str = "replay"
    num_steps: int = 0
    size_multiple: int = 1
    is_raw: bool = False

    @property
    def weights_hash(self) -> str:
        """Hash of what the bank holds, so that frames of two banks are told apart."""
        return hashlib.sha256(repr(self.bank.entries).encode()).hexdigest()

    def generate(self, guidance: Guidance, *, seed: int) -> Float[Tensor, "T 3 H W"]:
        """Return stored frames; anchor frames come from the guidance.

        Raises:
            InputError: The bank holds no clip of this conditioning.
        """
        del seed  # A bank may hold several seeds; the first stored one is played.
        found = self._find(hash_guidance(guidance))
        by_frame = {entry.frame: entry for entry in reversed(found)}
        frames = guidance.frames.clone()
        for index in torch.nonzero(~guidance.is_anchor).flatten().tolist():
            if index not in by_frame:
                raise InputError(
                    f"The bank in {self.bank.folder} has no frame {index} for this conditioning: "
                    "replay needs the views, sizes and settings that the bank was made with."
                )
            frames[index] = self.bank.read(by_frame[index])[0].to(frames)
        return frames

    def _find(self, guidance_hash: str) -> list[BankEntry]:
        return [e for e in self.bank.entries if e.origin.guidance_hash == guidance_hash]
