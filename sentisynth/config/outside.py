"""Configuration of what a run stands on: the tracking server, the cluster."""

from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, field_validator

from sentisynth.config.base import Config, PositiveInt

_SECRET_KEYS = {"password", "passwd", "pwd", "token", "access_token", "sslpassword"}


def holds_secret(uri: str) -> bool:
    """Whether a URI has a user, a password or a token in it."""
    parts = urlsplit(uri)
    keys = {key.lower() for key, _ in parse_qsl(parts.query)}
    return "@" in parts.netloc or bool(keys & _SECRET_KEYS)


class TrackingConfig(Config):
    uri: str | None = None
    """MLflow tracking URI; null: MLFLOW_TRACKING_URI, else a sqlite file in the run directory."""
    experiment: str = "sentisynth"

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
