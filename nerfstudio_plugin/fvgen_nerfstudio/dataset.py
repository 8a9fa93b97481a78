"""Photos as nerfstudio wants them: one at a time, opened when they are asked for."""

import numpy as np
import numpy.typing as npt
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset

from fvgen_nerfstudio.camera import to_nerfstudio
from fvgen_nerfstudio.source import SceneSource


class SceneDataset(InputDataset):
    """Photos undistorted and sized by a `SceneSource`, with the cameras that go with them."""

    def __init__(
        self, outputs: DataparserOutputs, source: SceneSource, views: tuple[int, ...]
    ) -> None:
        super().__init__(outputs)
        self.source = source
        self.views = views
        self.cameras = to_nerfstudio(source.cameras(views))

    def get_numpy_image(self, image_idx: int) -> npt.NDArray[np.uint8]:
        """Return a photo as 8-bit `H W 3`; its file is opened now."""
        image = self.source.image(self.views[image_idx])
        return (image * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
