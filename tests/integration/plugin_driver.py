"""Runs nerfstudio's own entry points, one after another, in one process.

Called as a script with a JSON list of commands, each a list of words: the tool's name as on the
command line and its arguments. Importing nerfstudio costs ten seconds; commands share it. The
first command that fails ends it; with `--all` every command runs, and the last line printed is a
JSON list of exit codes and error outputs.
"""

import io
import json
import sys
from contextlib import redirect_stderr
from importlib import import_module

ENTRY_POINTS = {
    "ns-train": "nerfstudio.scripts.train",
    "ns-eval": "nerfstudio.scripts.eval",
    "ns-render": "nerfstudio.scripts.render",
    "ns-export": "nerfstudio.scripts.exporter",
    "ns-viewer": "nerfstudio.scripts.viewer.run_viewer",
    "fvgen-export": "fvgen_nerfstudio.export",
}


def run(command: list[str]) -> int:
    """Run one command and return its exit code."""
    sys.argv = command
    module = import_module(ENTRY_POINTS[command[0]])
    entry = module.main if command[0] == "fvgen-export" else module.entrypoint
    try:
        entry()
    except SystemExit as stop:
        return _code(stop)
    except Exception:
        return _end(*sys.exc_info())
    return 0


def _end(*error) -> int:
    """Do with an error what the interpreter does before it ends."""
    try:
        sys.excepthook(*error)
    except SystemExit as stop:
        return _code(stop)
    return 1


def _code(stop: SystemExit) -> int:
    return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


def run_all(commands: list[list[str]]) -> list[tuple[int, str]]:
    """Run every command and return exit codes and what went to stderr."""
    results = []
    for command in commands:
        with redirect_stderr(io.StringIO()) as errors:
            code = run(command)
        results.append((code, errors.getvalue()))
    return results


if __name__ == "__main__":
    todo, run_every_one = json.loads(sys.argv[1]), "--all" in sys.argv
    if run_every_one:
        print(json.dumps(run_all(todo)))
        sys.exit(0)
    for words in todo:
        code = run(words)
        if code:
            sys.exit(code)
