import torch
from unit.diffusion.viewcrafter.small import original_tensors, small_architecture

from scripts.convert_viewcrafter import ToCheckpoint, ToFolder, main


def test_command_says_in_one_sentence_what_is_wrong(tmp_path, capsys):
    source, folder = tmp_path / "model.ckpt", tmp_path / "folder"
    assert main(ToFolder(source=source, folder=folder, image_context="shared")) == 2
    assert "model.ckpt and is not there" in capsys.readouterr().err
    # The command knows the released size only, so a small checkpoint is a misfit.
    torch.save({"state_dict": original_tensors(small_architecture())}, source)
    assert main(ToFolder(source=source, folder=folder, image_context="shared")) == 2
    error = capsys.readouterr().err
    assert "does not fit the architecture" in error
    assert error.count("\n") == 1
    assert main(ToCheckpoint(folder=folder, target=tmp_path / "back.ckpt")) == 2
    assert "lacks conversion.json" in capsys.readouterr().err
