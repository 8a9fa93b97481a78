"""Point clouds as PLY files, ascii or binary, without a heavy reader."""

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
        raise InputError(f"{path} ends before its {count} vertices do: copy it again.") from error
    xyz = np.stack([table[name].astype(np.float32) for name in "xyz"], axis=-1)
    confidence = table["confidence"] if "confidence" in names else np.ones(count)
    return PointCloud(
        xyz=torch.from_numpy(xyz),
        rgb=_colours(table, names, count),
        confidence=torch.from_numpy(np.asarray(confidence, dtype=np.float32).copy()),
        view=torch.full((count,), -1, dtype=torch.long),
    )


def _parse_header(path: Path, content: bytes) -> tuple[str, int, list[tuple[str, str]], bytes]:
    """Return the format, the number of vertices, their properties and what follows the header."""
    end = content.find(b"end_header\n")
    lines = content[: max(end, 0)].decode("ascii", "replace").split("\n")
    if end < 0 or lines[0].strip() != "ply":
        raise InputError(
            f"{path} is not a PLY file: a header from `ply` to `end_header` is missing."
        )
    words = [line.split() for line in lines if line.strip()]
    form = next((w[1] for w in words if w[0] == "format"), "")
    elements = [w for w in words if w[0] == "element"]
    if form not in _FORMATS or not elements or elements[0][1] != "vertex":
        raise InputError(f"{path} has format `{form}` or does not begin with vertices: convert it.")
    after = words[words.index(elements[0]) + 1 :]
    stop = next((i for i, w in enumerate(after) if w[0] == "element"), len(after))
    rows = [w for w in after[:stop] if w[0] == "property"]
    if any(w[1] not in _TYPES for w in rows):
        raise InputError(f"{path} has vertex properties of unknown type: convert it.")
    properties = [(w[2], _FORMATS[form] + _TYPES[w[1]]) for w in rows]
    return form, int(elements[0][2]), properties, content[end + len(b"end_header\n") :]


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
    scale = 255.0 if columns[0].dtype.kind in "iu" else 1.0
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
