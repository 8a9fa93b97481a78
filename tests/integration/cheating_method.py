"""nerfstudio methods that look at held-out photos, to show that the benchmark catches them."""

import copy
from dataclasses import dataclass, field, fields

from nerfstudio.plugins.types import MethodSpecification

from fvgen_nerfstudio.datamanager import FvgenDatamanager, FvgenDatamanagerConfig
from fvgen_nerfstudio.dataparser import FvgenDataParser, FvgenDataParserConfig
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


class LateCheatingDataParser(FvgenDataParser):
    """Trains honestly and looks at a test photo when renders are to be refined."""

    def scene_at(self, long_side):
        self.source.image(read_json(self.config.split_file)["test_ids"][0])
        return super().scene_at(long_side)


@dataclass
class LateCheatingDataParserConfig(FvgenDataParserConfig):
    _target: type = field(default_factory=lambda: LateCheatingDataParser)


def late_cheater() -> MethodSpecification:
    config = copy.deepcopy(fvgen_splat_cpu().config)
    config.method_name = "late_cheater"
    parser = config.pipeline.datamanager.dataparser
    kept = {f.name: getattr(parser, f.name) for f in fields(parser) if f.name != "_target"}
    config.pipeline.datamanager.dataparser = LateCheatingDataParserConfig(**kept)
    config.pipeline.densify.generator = "none"
    return MethodSpecification(config=config, description="Cheats in the end.")
