"""References to local directories, and Hugging Face models loaded safely.

Weights come from safetensors alone, and no code of a model's repository is ever run.
"""

import hashlib
import os
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from sentisynth.errors import ModelError
from sentisynth.models.hub import download

_UNREADABLE = (OSError, ValueError, KeyError, StrictDataclassError)
_PACKAGE = resources.files("sentisynth") / "resources"
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer")


def resolve_model(reference: str) -> Path:
    """The local directory of a model reference; a Hub name is downloaded into the Hub's cache.

    Raises ModelError if there is none, or if it has no config.json or no safetensors weights.
    """
    if reference.startswith("package:"):
        path = Path(str(_PACKAGE / reference.removeprefix("package:")))
        if not os.path.isfile(path / "config.json"):  # no error where a name is too long
            known = sorted(p.parent.name for p in Path(str(_PACKAGE)).glob("*/config.json"))
            raise ModelError(f"there is no model {reference!r}; shipped are {', '.join(known)}")
    elif reference.startswith((".", "/", "~")) or os.path.isdir(reference):
        path = Path(os.path.expanduser(reference))
        if not os.path.isdir(path):
            raise ModelError(f"there is no model directory {reference}; check the path")
    else:
        path = download(reference)
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} has no config.json; give a directory made by save_pretrained")
    if not any(path.glob("*.safetensors")):
        raise ModelError(
            f"{path} has no weights (*.safetensors); give a directory made by save_pretrained"
        )
    for file in path.glob("*.safetensors"):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} is damaged ({error}); fetch or make it again") from None
    return path


def resolve_config(reference: str) -> Any:
    """The configuration of a model reference; of a Hub model nothing else is downloaded.

    Raises ModelError.
    """
    local = reference.startswith(("package:", ".", "/", "~")) or os.path.isdir(reference)
    if local:
        return read_config(resolve_model(reference))
    try:
        return AutoConfig.from_pretrained(reference, trust_remote_code=False)
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"the configuration of {reference!r} could not be read ({reason}); check the name and "
            f"the network"
        ) from None


def read_config(path: Path) -> Any:
    """A model directory's configuration. Raises ModelError."""
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path} has a config.json that does not load: {reason}") from None


def model_digest(path: Path) -> str:
    """sha256 over names and bytes of everything in a model directory that decides what it does.

    A command asks several times: weights are read again where a file has changed since.
    """
    kept, ours = (".safetensors", ".model", ".txt", ".json"), ("metrics.json", "stage.json")
    files = sorted(p for p in path.iterdir() if p.suffix in kept and p.name not in ours)
    digest = hashlib.sha256()
    for file in files:
        facts = file.stat()
        digest.update(file.name.encode())
        digest.update(_digest(file.resolve(), facts.st_ino, facts.st_size, facts.st_mtime_ns))
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _digest(file: Path, *_: int) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def load_pretrained(
    auto_class: Any, path: Path, dtype: torch.dtype = torch.float32, **options: Any
) -> Any:
    """`auto_class.from_pretrained` from safetensors. Raises ModelError."""
    try:
        return auto_class.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            **options,
        )
    except (*_UNREADABLE, RuntimeError) as error:
        raise ModelError(f"{path} cannot be loaded: {' '.join(str(error).split())[:300]}") from None


def empty_model(auto_class: Any, config: Any) -> Any:
    """A model so configured on the meta device: nothing is allocated. Raises ModelError."""
    try:
        with torch.device("meta"):
            return auto_class.from_config(config, trust_remote_code=False)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"no model of type {config.model_type} can be made: {reason}") from None


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """A directory that `from_pretrained` loads: safetensors, configuration, tokenizer."""
    # transformers imports DeepSpeed to look whether the model is wrapped in it, and DeepSpeed says
    # aloud which device it found, unless it is told.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """A model directory's tokenizer, with a pad token (the end-of-text token if it has none)."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # noqa: BLE001  tokenizers raise bare Exceptions
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{path} has no tokenizer that loads: {reason}") from None
    if not tokenizer("a good film", add_special_tokens=False)["input_ids"]:
        raise ModelError(f"{path} has no tokenizer files; give a directory with the tokenizer")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"{path}: the tokenizer has neither a pad nor an end-of-text token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_length(config: Any, max_length: int, key: str) -> None:
    """Raise ModelError unless a model of this configuration takes so many tokens."""
    most = getattr(config, "max_position_embeddings", None) or max_length
    if config.model_type in _OFFSET_POSITIONS:  # positions are counted from the pad token's id on
        most -= (config.pad_token_id or 0) + 1
    if max_length > most:
        name = config.name_or_path
        raise ModelError(f"{key} is {max_length}; the model in {name} takes {most} tokens at most")
