import imageio.v2 as imageio
import torch

from fvgen_recon.io.video import write_video


def test_frames_come_back_in_order_at_an_even_size(tmp_path):
    levels = torch.tensor([0.1, 0.5, 0.9])
    write_video(tmp_path / "x.mp4", levels[:, None, None, None].expand(3, 3, 49, 65), fps=8.0)
    with imageio.get_reader(tmp_path / "x.mp4") as reader:
        frames = [frame for frame in reader.iter_data()]
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 3
    for frame, level in zip(frames, levels, strict=True):
        assert abs(float(frame.mean()) / 255 - float(level)) < 0.02
    assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]
