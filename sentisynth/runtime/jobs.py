"""Ray's Jobs API: a command runs on a cluster, and this process follows it."""

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sentisynth.config.outside import without_secrets
from sentisynth.data.text import shown
from sentisynth.errors import JobError

FINGERPRINT = "sentisynth"
_PATIENCE_S = 600.0  # that a cluster may be unreachable while its job is followed
_RETRY_S = 2.0
_MOST_WORDS = 1000  # characters of what Ray says of a job's end
_ENDS = {"STOPPED": 130, "FAILED": 1, "SUCCEEDED": 0}
_TALKATIVE = (  # of uploads, on standard error
    "dashboard.modules.dashboard_sdk",
    "dashboard.modules.job.sdk",
    "_private.runtime_env.packaging",
)
_ASKS = (
    "the cluster at {address} asks for a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN, "
    "RAY_AUTH_TOKEN_PATH or the file ~/.ray/auth_token to its token"
)
_INSIDE_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # what Ray sets for the driver of a job


def is_job() -> bool:
    """Whether this process is the driver of a Ray job."""
    return _INSIDE_A_JOB in os.environ


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """These variables for the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


class _UnwrittenError(Exception):
    """What the job says cannot be written here, which is no fault of the cluster."""


class Cluster:
    """The Jobs API at an address such as http://127.0.0.1:8265. Raises JobError.

    Where the cluster asks for a token, Ray takes it from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or
    ~/.ray/auth_token, with RAY_AUTH_MODE=token.
    """

    def __init__(self, address: str) -> None:
        from ray.exceptions import AuthenticationError, RayError
        from ray.job_submission import JobSubmissionClient

        for name in _TALKATIVE:
            logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)
        self.address, self._printed = without_secrets(address), 0
        if not address.startswith(("http://", "https://")):
            raise JobError(
                f"--address is {self.address}; give the dashboard's address, such as "
                f"http://HOST:8265"
            )
        try:
            with _environment(RAY_API_SERVER_ADDRESS=address):  # it comes before the argument
                self._client = JobSubmissionClient(address)
        except AuthenticationError:
            raise JobError(_ASKS.format(address=self.address)) from None
        except (RuntimeError, ValueError, OSError, RayError) as error:
            raise JobError(
                f"no Ray Jobs API answers at {self.address} ({_short(error)}); give the "
                f"dashboard's address as --address http://HOST:8265, and a token if the cluster "
                f"asks for one"
            ) from None

    def running(self, fingerprint: str) -> str | None:
        """The id of a job with this fingerprint that has not ended."""
        try:
            jobs = self._client.list_jobs()
        except (RuntimeError, OSError) as error:
            raise JobError(f"{self.address} lists no jobs ({_short(error)})") from None
        for job in jobs:
            known = (job.metadata or {}).get(FINGERPRINT)
            if known == fingerprint and not job.status.is_terminal():
                return job.submission_id
        return None

    def submit(
        self, entrypoint: str, package: Path, variables: Mapping[str, str], fingerprint: str
    ) -> str:
        """Upload a directory, run a command in it on the head; returns the job's id."""
        try:
            job: str = self._client.submit_job(
                entrypoint=entrypoint,
                runtime_env={"working_dir": str(package), "env_vars": dict(variables)},
                metadata={FINGERPRINT: fingerprint},
                submission_id=f"sentisynth-{fingerprint[:8]}-{int(time.time())}",
            )
        except (RuntimeError, OSError) as error:
            raise JobError(f"{self.address} took no job ({_short(error)})") from None
        return job

    def follow(self, job: str) -> int:
        """Print what the job says until it ends; returns its exit status.

        A connection that is lost is made again, for ten minutes; the job goes on meanwhile.
        """
        from aiohttp import ClientError

        self._printed, lost = 0, 0.0
        while True:
            try:
                asyncio.run(self._print_rest(job))
                info = self._client.get_job_info(job)
                lost = 0.0
            except _UnwrittenError as error:
                raise error.args[0] from None
            except (RuntimeError, OSError, ClientError) as error:
                lost = lost or time.monotonic()
                if time.monotonic() - lost > _PATIENCE_S:
                    raise JobError(
                        f"{self.address} does not answer any more ({_short(error)}); the job "
                        f"{job} may be at work: the same command follows it again"
                    ) from None
                time.sleep(_RETRY_S)
                continue
            if info.status.is_terminal():
                return self._status_of(job, info)
            time.sleep(_RETRY_S / 4)

    async def _print_rest(self, job: str) -> None:
        """Print what the job said and was not printed yet, until it ends."""
        passed = 0
        async with contextlib.aclosing(self._client.tail_job_logs(job)) as parts:
            async for part in parts:
                new = part[max(0, self._printed - passed) :]
                passed += len(part)
                self._printed = max(self._printed, passed)
                try:
                    sys.stdout.write(shown(new))
                    sys.stdout.flush()
                except OSError as error:
                    raise _UnwrittenError(error) from None

    def _status_of(self, job: str, info: Any) -> int:
        """The driver's status, which says itself what went wrong, unless a signal ended it."""
        code = info.driver_exit_code
        if code and 0 < code < 128:
            return int(code)
        status = 128 - code if code and code < 0 else code or _ENDS[info.status.value]
        if status and info.message:
            words = shown(" ".join(info.message.split()))
            if len(words) > _MOST_WORDS:
                words = f"{words[: _MOST_WORDS // 2]} … {words[-_MOST_WORDS // 2 :]}"
            sys.stderr.write(f"sentisynth: job {job}: {words}\n")
        return int(status)


def _short(error: BaseException) -> str:
    return without_secrets(" ".join(str(error).split()))[:200]
