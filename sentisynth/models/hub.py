"""Models of the Hugging Face Hub in its local cache: no pickled weights are fetched."""

from pathlib import Path

from sentisynth.errors import ModelError

_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "tokenizer*"]


def download(reference: str) -> Path:
    """The snapshot of a Hub model in the cache, fetched where it is not there and the Hub answers.

    Raises ModelError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        path = Path(snapshot_download(reference, allow_patterns=_FILES))
        return path if any(path.glob("*.safetensors")) else _conversion(reference) or path
    except (_http_error(), HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"no local directory and no Hub model could be read as {reference!r} ({reason}); "
            f"give a local directory, or check the name and the network"
        ) from None


def _conversion(reference: str) -> Path | None:
    """The Hub's own safetensors conversion of a repository that has pickled weights alone, which is
    a pull request; one that was fetched before if the Hub does not answer.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        found = HfApi().get_repo_discussions(reference, author="SFconvertbot")
        title = "Adding `safetensors` variant of this model"
        revisions = [d.git_reference for d in found if d.is_pull_request and d.title == title]
    except (_http_error(), OSError):
        kept = _cached_conversion(reference)
        if kept is None:
            raise
        return kept
    if not revisions:
        return None
    return Path(snapshot_download(reference, revision=revisions[0], allow_patterns=_FILES))


def _cached_conversion(reference: str) -> Path | None:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=reference, repo_type="model")
    for ref in sorted((Path(constants.HF_HUB_CACHE) / folder / "refs" / "refs" / "pr").glob("*")):
        revision = f"refs/pr/{ref.name}"
        path = Path(snapshot_download(reference, revision=revision, local_files_only=True))
        if any(path.glob("*.safetensors")):
            return path
    return None


def _http_error() -> type[Exception]:
    """What the Hub's HTTP library raises where the network is down, which is no OSError."""
    from huggingface_hub import errors

    found: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]  # httpx's, or httpx2's
    return found
