import numpy as np
import pytest
import torch
from factories import make_cloud

from fvgen_recon.errors import InputError
from fvgen_recon.io.ply import read_points, write_points

ASCII = """ply
format ascii 1.0
comment made by hand
element vertex 2
property double x
property double y
property double z
property uchar red
property uchar green
property uchar blue
element face 1
property list uchar int vertex_indices
end_header
1.5 -2 3 255 51 0
0 0 7 0 0 255
3 0 1 1
"""


def test_hand_written_ascii(tmp_path):
    (tmp_path / "x.ply").write_text(ASCII)
    cloud = read_points(tmp_path / "x.ply")
    torch.testing.assert_close(cloud.xyz, torch.tensor([[1.5, -2, 3], [0, 0, 7]]))
    torch.testing.assert_close(cloud.rgb, torch.tensor([[1.0, 0.2, 0], [0, 0, 1]]))
    assert cloud.confidence.tolist() == [1, 1]
    assert cloud.view.tolist() == [-1, -1]


def test_windows_line_ends(tmp_path):
    (tmp_path / "x.ply").write_bytes(ASCII.replace("\n", "\r\n").encode())
    assert read_points(tmp_path / "x.ply").xyz[0].tolist() == [1.5, -2, 3]


@pytest.mark.parametrize(("order", "name"), [("<", "little"), (">", "big")])
def test_hand_written_binary_with_further_properties(tmp_path, order, name):
    kinds = [("x", "f4"), ("nx", "f8"), ("y", "f4"), ("z", "f4"), ("red", "u2"), ("green", "u2"),
             ("blue", "u2")]  # fmt: skip
    table = np.array([(1.5, 9, -2, 3, 65535, 0, 13107)], dtype=[(n, order + k) for n, k in kinds])
    words = {"f4": "float", "f8": "double", "u2": "ushort"}
    rows = "".join(f"property {words[k]} {n}\n" for n, k in kinds)
    header = f"ply\nformat binary_{name}_endian 1.0\nelement vertex 1\n{rows}end_header\n"
    (tmp_path / "x.ply").write_bytes(header.encode() + table.tobytes())
    cloud = read_points(tmp_path / "x.ply")
    assert cloud.xyz.tolist() == [[1.5, -2.0, 3.0]]
    torch.testing.assert_close(cloud.rgb, torch.tensor([[1.0, 0.0, 0.2]]))


@pytest.mark.parametrize("count", [0, 1, 500])
def test_clouds_come_back(tmp_path, count):
    cloud = make_cloud(count)
    write_points(tmp_path / "x.ply", cloud)
    again = read_points(tmp_path / "x.ply")
    torch.testing.assert_close(again.xyz, cloud.xyz)
    torch.testing.assert_close(again.rgb, cloud.rgb, atol=0.5 / 255 + 1e-6, rtol=0)
    torch.testing.assert_close(again.confidence, cloud.confidence)


def test_points_without_colour_are_grey(tmp_path):
    lines = [line for line in ASCII.splitlines() if "uchar" not in line and "face" not in line]
    (tmp_path / "x.ply").write_text("\n".join(lines[:7]) + "\nend_header\n1 2 3\n4 5 6\n")
    assert read_points(tmp_path / "x.ply").rgb.tolist() == [[0.5] * 3] * 2


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("not a ply", "is not a PLY file"),
        ("", "is not a PLY file"),
        (ASCII.replace("double x", "double u"), "without x, y, z"),
        (ASCII.replace("vertex 2", "vertex 20"), "does not hold the 20 vertices"),
        (ASCII.replace("1.5", "one"), "does not hold the 2 vertices"),
        (ASCII.replace("1.5", "nan"), "Points must be finite"),
        (ASCII.replace("ascii", "utf8"), "has format `utf8`"),
        (ASCII.replace("double y", "decimal y"), "unknown type"),
        (ASCII.replace("element vertex 2", "element camera 2"), "does not begin with vertices"),
    ],
)
def test_bad_files_get_one_sentence_with_their_name(tmp_path, content, sentence):
    (tmp_path / "x.ply").write_text(content)
    with pytest.raises(InputError, match=rf"x\.ply.*{sentence}"):
        read_points(tmp_path / "x.ply")


def test_truncated_binary(tmp_path):
    write_points(tmp_path / "x.ply", make_cloud(10))
    content = (tmp_path / "x.ply").read_bytes()
    (tmp_path / "x.ply").write_bytes(content[:-5])
    with pytest.raises(InputError, match=r"x\.ply does not hold the 10 vertices"):
        read_points(tmp_path / "x.ply")


def test_a_missing_cloud_is_named(tmp_path):
    with pytest.raises(InputError, match=r"x\.ply was expected"):
        read_points(tmp_path / "x.ply")
