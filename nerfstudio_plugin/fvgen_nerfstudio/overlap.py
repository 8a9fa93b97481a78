"""What a run says of input photos that the others hardly show."""

from fvgen_nerfstudio.dataparser import FvgenDataParser


def describe_overlap(parser: FvgenDataParser) -> str:
    """Return a sentence on the input photos that the others hardly show; empty where none is so.

    Of several members each photo counts by the one that finds most of it.
    """
    from fvgen_recon.pointcloud import overlap

    if parser.config.estimator == "random":
        return ""  # Nothing was sought in the photos.
    option = "--pipeline.datamanager.dataparser.view-names"
    return overlap.describe_overlap(parser.members, parser.input_names, option)
