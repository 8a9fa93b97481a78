"""The sentences that users read.

Every error a user can cause is a subclass of `FvgenError`, raised with one sentence that says what
was expected, what came and what to do. Command lines print it and exit with code 2.
"""


class FvgenError(Exception):
    """Base class of all errors that a user can cause and mend."""


class InputError(FvgenError):
    """The data given do not have the form that was expected."""


class WeightsError(FvgenError):
    """A checkpoint is missing, incomplete, damaged or of another version."""


class MissingDependencyError(FvgenError):
    """An optional package that the chosen option needs is not installed."""


class TrainingError(FvgenError):
    """A training run cannot go on: its numbers stopped being finite or it diverged."""
