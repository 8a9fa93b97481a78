"""Point clouds as PLY files, ascii or binary, without a heavy reader."""

import re
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.errors import InputError
from fvgen_recon.io.file import atomic_path
from fvgen_recon.types import PointCloud

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2",
    "ushort": "u2", "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}


def read_points(path: Path) -> PointCloud:
    """Read the vertices of a PLY file as points of confidence 1 (or as stored) and no view.

    Colours are `red green blue`, bytes or floats in [0, 1]; grey where there are none.

    Raises:
        InputError: The file is missing, not a PLY, truncated or without x, y, z.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"The point cloud {path} was expected and is not there.") from error
    form, count, properties, body = _parse_header(path, content)
    names = [name for name, _ in properties]
    if not {"x", "y", "z"} <= set(names):
        raise InputError(f"{path} has vertices without x, y, z: export the point cloud again.")
    try:
        table = _read_table(form, count, properties, body)
    except ValueError as error:
        raise InputError(
            f"{path} does not hold the {count} vertices that its header promises: copy it again."
        ) from error
    xyz = np.stack([table[name].astype(np.float32) for name in "xyz"], axis=-1)
    confidence = table["confidence"] if "confidence" in names else np.ones(count)
    try:
        return PointCloud(
            xyz=torch.from_numpy(xyz),
            rgb=_colours(table, names, count),
            confidence=torch.from_numpy(np.asarray(confidence, dtype=np.float32).copy()),
            view=torch.full((count,), -1, dtype=torch.long),
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _parse_header(path: Path, content: bytes) -> tuple[str, int, list[tuple[str, str]], bytes]:
    """Return the format, the number of vertices, their properties and what follows the header."""
    end = re.search(rb"end_header\r?\n", content)
    if end is None or content[:3] != b"ply":
        raise InputError(
            f"{path} is not a PLY file: a header from `ply` to `end_header` is missing."
        )
    lines = content[: end.start()].decode("ascii", "replace").splitlines()
    words = [line.split() for line in lines if line.strip()]
    form = next((w[1] for w in words if len(w) > 1 and w[0] == "format"), "")
    starts = [i for i, w in enumerate(words) if w[0] == "element"]
    first = words[starts[0]] if starts else []
    if form not in _FORMATS or len(first) != 3 or first[1] != "vertex" or not first[2].isdigit():
        raise InputError(f"{path} has format `{form}` or does not begin with vertices: convert it.")
    rows = [w for w in words[starts[0] : (*starts, None)[1]] if w[0] == "property"]
    if any(len(w) != 3 or w[1] not in _TYPES for w in rows):
        raise InputError(f"{path} has vertex properties of unknown type: convert it.")
    properties = [(w[2], _FORMATS[form] + _TYPES[w[1]]) for w in rows]
    return form, int(first[2]), properties, content[end.end() :]


def _read_table(
    form: str, count: int, properties: list[tuple[str, str]], body: bytes
) -> np.ndarray:
    dtype = np.dtype(properties)
    if form != "ascii":
        return np.frombuffer(body, dtype=dtype, count=count)
    numbers = np.array(body.split()[: count * len(properties)], dtype=np.float64)
    columns = numbers.reshape(count, len(properties)).T
    return np.rec.fromarrays(list(columns), dtype=dtype)


def _colours(table: np.ndarray, names: list[str], count: int) -> Float[Tensor, "N 3"]:
    if not {"red", "green", "blue"} <= set(names):
        return torch.full((count, 3), 0.5)
    columns = [table[name] for name in ("red", "green", "blue")]
    kind = columns[0].dtype
    scale = float(np.iinfo(kind).max) if kind.kind in "iu" else 1.0
    rgb = np.stack([column.astype(np.float32) / scale for column in columns], axis=-1)
    return torch.from_numpy(rgb).clamp(0, 1)


def write_points(path: Path, cloud: PointCloud) -> None:
    """Write a point cloud as binary PLY: float positions, byte colours, float confidence."""
    dtype = np.dtype(
        [(n, "<f4") for n in "xyz"] + [(n, "u1") for n in ("red", "green", "blue")]
        + [("confidence", "<f4")]
    )  # fmt: skip
    table = np.empty(len(cloud), dtype=dtype)
    rgb = (cloud.rgb.cpu() * 255).round().to(torch.uint8).numpy()
    for axis, name in enumerate("xyz"):
        table[name] = cloud.xyz[:, axis].cpu().numpy()
    for axis, name in enumerate(("red", "green", "blue")):
        table[name] = rgb[:, axis]
    table["confidence"] = cloud.confidence.cpu().numpy()
    kinds = {"<f4": "float", "|u1": "uchar"}
    rows = [f"property {kinds[dtype[n].str]} {n}" for n in dtype.names or ()]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(cloud)}", *rows]
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes("\n".join([*header, "end_header\n"]).encode() + table.tobytes())
