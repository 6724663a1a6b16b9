"""Configuration of what a run stands on: the tracking server, the cluster."""

import re
from typing import Annotated

from pydantic import Field, field_validator

from sentisynth.config.base import Config, PositiveInt

# A user, a password or a token in a URI. Passwords may hold any sign, / ? # and @ as well: what
# stands before the last @ is one, but in the URI of a file, which has no user.
_SECRET = re.compile(
    r"(?<!sqlite)(?<!file)(?P<user>://).*(?=@)"
    r"|(?P<key>[?&;](?:odbc_connect|[\w.-]*(?:pass|password|passwd|pwd|token|secret|key))=)[^&;\s]+",
    re.IGNORECASE | re.DOTALL,
)


def holds_secret(uri: str) -> bool:
    """Whether a URI has a user, a password or a token in it."""
    return _SECRET.search(uri) is not None


def without_secrets(text: str) -> str:
    """A URI, or a text with URIs in it, whose users, passwords and tokens are not told."""
    return _SECRET.sub(lambda found: f"{found['user'] or found['key']}***", text)


class TrackingConfig(Config):
    uri: str | None = None
    """MLflow tracking URI; null: MLFLOW_TRACKING_URI, else a sqlite file in the run directory."""
    experiment: str = "sentisynth"
    """Name of the MLflow experiment."""

    @field_validator("uri")
    @classmethod
    def _no_secret(cls, value: str | None) -> str | None:
        if value is not None and holds_secret(value):
            raise ValueError(
                "the URI holds a password, and this configuration is written down; set "
                "MLFLOW_TRACKING_URI in the environment instead"
            )
        return value


class ClusterConfig(Config):
    nodes: PositiveInt = 1
    """Nodes, the head among them, to wait for before anything starts, and before each training and
    the stream: some may have been taken away between."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs to wait for; a cluster that scales itself is asked for them."""
    wait_s: Annotated[float, Field(gt=0)] = 900.0
    """Seconds to wait for them."""
