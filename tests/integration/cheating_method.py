"""A nerfstudio method that trains on held-out photos, to show that the benchmark catches it."""

import copy
from dataclasses import dataclass, field

from nerfstudio.plugins.types import MethodSpecification

from fvgen_nerfstudio.datamanager import FvgenDatamanager, FvgenDatamanagerConfig
from fvgen_nerfstudio.method import fvgen_splat_cpu
from fvgen_recon.io.file import read_json


class CheatingDatamanager(FvgenDatamanager):
    """Looks at a test photo before every step."""

    def next_train(self, step):
        test = read_json(self.config.dataparser.split_file)["test_ids"]
        self.dataparser.source.image(test[step % len(test)])
        return super().next_train(step)


@dataclass
class CheatingDatamanagerConfig(FvgenDatamanagerConfig):
    _target: type = field(default_factory=lambda: CheatingDatamanager)


def cheater() -> MethodSpecification:
    honest = fvgen_splat_cpu().config
    config = copy.deepcopy(honest)
    config.method_name = "cheater"
    config.pipeline.datamanager = CheatingDatamanagerConfig(
        **{name: getattr(honest.pipeline.datamanager, name) for name in ("dataparser",)}
    )
    config.pipeline.densify.generator = "none"
    return MethodSpecification(config=config, description="Cheats.")
