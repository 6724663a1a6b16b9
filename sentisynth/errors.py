"""Errors that a user can mend. Each message is one sentence: what was wrong, the value, what to do.

The command line prints the message and exits with status 2; anything else that escapes is our bug.
"""


class SentisynthError(Exception):
    """Base of every error that is not a bug of ours."""


class ConfigError(SentisynthError):
    """A recipe or an override: unknown key, wrong type, value out of bounds."""


class DataError(SentisynthError):
    """A corpus: missing file, empty, one class, labels outside the set, text that is no text."""


class ModelError(SentisynthError):
    """A model directory or Hub name that cannot be loaded, or does not fit its task."""


class QuotaError(SentisynthError):
    """`n_per_class` accepted rows were not reached within `max_candidates_per_class`."""


class RunDirectoryError(SentisynthError):
    """A run directory that is in use, incomplete, damaged, or was made from something else."""


class TrackingError(SentisynthError):
    """An MLflow store that cannot be used."""


class PlacementError(SentisynthError):
    """The cluster can never satisfy what a stage asks for."""


class TrainingError(SentisynthError):
    """A training whose workers keep dying, or that cannot fit."""


class SweepError(SentisynthError):
    """A sweep that has nothing to read, or nothing to show."""


class JobError(SentisynthError):
    """A Ray job: no cluster at the address, a package that cannot be made."""
