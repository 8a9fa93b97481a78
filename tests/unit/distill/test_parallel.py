"""How a program of several processes ends."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import atexit, os
from fvgen_recon.distill.parallel import end_program
atexit.register(os._exit, 77)  # As a thread of a process group may end it.
print("finished")
end_program({status})
"""


@pytest.mark.parametrize(
    ("launched", "status", "code"), [(True, 0, 0), (False, 0, 77), (True, 2, 77)]
)
def test_a_launched_program_that_went_well_does_not_tear_down_the_interpreter(
    launched: bool, status: int, code: int
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "WORLD_SIZE"}
    if launched:
        environment["WORLD_SIZE"] = "2"
    command = [sys.executable, "-c", PROGRAM.format(status=status)]
    answer = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert answer.returncode == code, answer.stderr
    if code == 0:
        assert answer.stdout == "finished\n"
