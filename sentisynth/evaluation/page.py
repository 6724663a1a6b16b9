"""HTML pages from templates: every value escaped, every name known."""

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sentisynth import schema


def render_page(template: str, values: Mapping[str, Any]) -> str:
    """A template of this package, filled."""
    environment = Environment(
        loader=PackageLoader("sentisynth", "evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "figure": lambda value: "–" if value is None else f"{value:.3f}",
        "percent": lambda share: f"{share:.0%}",
        "count": lambda n: f"{n:,}",
        "size": told_size,
        "duration": _duration,
        "words": lambda name: "below τ" if name == schema.BELOW_TAU else name.replace("_", " "),
    }
    environment.filters.update(filters)
    return environment.get_template(template).render(values)


def told_size(n: int) -> str:
    """A number of parameters."""
    for unit, divisor in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= divisor:
            return f"{n / divisor:.1f} {unit}"
    return str(n)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
