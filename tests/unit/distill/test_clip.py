import torch
from unit.distill.compact_bank import CPU, make_clips

from fvgen_recon.distill.clip import ClipBank, save_clips


def test_a_bank_with_a_limit_reads_the_same_chunks_for_every_seed(tmp_path):
    for index in range(8):
        save_clips(tmp_path / f"{index}.safetensors", make_clips(num_clips=2, seed=index))
    banks = [ClipBank(tmp_path, CPU, seed, max_clips=5) for seed in (0, 1)]
    for bank in banks:
        bank.refresh()
        bank.refresh()
    assert [len(bank) for bank in banks] == [6, 6]
    assert banks[0].read == banks[1].read
    # Files are named by worker: the first ones alone would be those of one worker.
    assert banks[0].read != set(sorted(tmp_path.glob("*"))[:3])
    draws = [bank.draw(4).target for bank in banks]
    assert not torch.equal(*draws)
    whole = ClipBank(tmp_path, CPU, 0)
    whole.refresh()
    assert len(whole) == 16
