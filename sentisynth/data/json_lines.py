"""JSON lines: an object a line."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sentisynth.errors import DataError

_HALF_PAIR = re.compile("[\ud800-\udfff]")  # JSON may hold half of a character


def json_lines(path: Path, longest: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers, from 1, and objects; empty lines are skipped. Raises DataError for a line that
    is no object or has more than `longest` characters, and UnicodeDecodeError.
    """
    with path.open(encoding="utf-8-sig") as stream:
        lines = iter(lambda: stream.readline(longest + 1), "")
        for number, line in enumerate(lines, start=1):
            if len(line) > longest:
                told = f"has more than {longest:,} characters; cut it"
                raise DataError(f"{path}, line {number} {told}")
            if line.strip():
                yield number, _object(path, number, line)


def whole(value: Any) -> Any:
    """A text without halves of characters, which no file can hold; any other value as it is."""
    return _HALF_PAIR.sub("\ufffd", value) if isinstance(value, str) else value


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {number} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}, line {number} is no JSON object; give one a line")
    return value
