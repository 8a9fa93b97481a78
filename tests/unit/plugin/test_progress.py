"""What a user reads while the library works."""

import logging

from fvgen_nerfstudio import progress
from fvgen_nerfstudio.progress import shown_progress


def test_messages_are_shown_while_something_runs_and_not_afterwards(capsys):
    logger = logging.getLogger("fvgen_recon.somewhere")
    level = logging.getLogger("fvgen_recon").level
    with shown_progress("fvgen_recon"):
        logger.info("poses: 2 of 3 in /data/[b]scene[/b]")
    logger.info("unheard")
    shown = "".join(capsys.readouterr().out.split())
    assert "poses:2of3in/data/[b]scene[/b]" in shown
    assert "unheard" not in shown
    assert logging.getLogger("fvgen_recon").level == level
    assert not any(
        isinstance(h, progress._ConsoleHandler) for h in logging.getLogger("fvgen_recon").handlers
    )
