"""Cards of base models: corpus, tokens seen, hours, hardware, losses, how to make them again."""

from pathlib import Path

import yaml

from sentisynth.config.pretrain import PretrainConfig
from sentisynth.config.references import portable
from sentisynth.data.files import read_json

_CARD = """\
---
library_name: transformers
pipeline_tag: {task}
tags: [sentisynth, {kind}]
---
# {name}

{what}

| | |
| --- | --- |
{table}

## Make it again

    sentisynth pretrain {kind} RECIPE.yaml

with the configuration below as `RECIPE.yaml`.

```yaml
{config}```
"""
_TASKS = {
    "replaced": (
        "feature-extraction",
        "A DeBERTa-v2 encoder that learned to tell which tokens of a text were replaced (ELECTRA) "
        "by a masked language model trained beside it, {optimizer}. For fine-tuning as a "
        "classifier.",
    ),
    "masked": ("fill-mask", "A DeBERTa-v2 that fills masked tokens."),
    "one-way": (
        "feature-extraction",
        "A DeBERTa-v2 that learned to tell the next token, its attention closed to what follows. "
        "For an encoder to start from, or for fine-tuning as a classifier.",
    ),
    "causal": (
        "text-generation",
        "A GPT-2 that continues texts. For fine-tuning as a class-conditional generator.",
    ),
}
_FIGURES = (
    "masked_loss",
    "detection_loss",
    "detection_f1",
    "detection_ap",
    "judged_detection_f1",
    "judged_detection_ap",
    "validation_loss",
    "perplexity",
)


def base_model_card(config: PretrainConfig, directory: Path) -> str:
    """The card of a model made by `sentisynth pretrain`."""
    figures = read_json(directory / "metrics.json")
    train, text = config.train, config.text
    kind: str = config.chosen_objective
    shape = config.shape
    if config.kind == "encoder" and kind == "causal":
        kind = "one-way"
    task, what = _TASKS[kind]
    begun = []
    if "start_seconds" in figures and config.start is not None:
        how = f"as a masked language model ({config.start.mask_rate:.0%} masked): "
        if config.start.objective == "causal":
            how = "as a causal language model: "
        if config.start.model is not None:  # made elsewhere: `objective` does not tell of it
            how = ""
        tokens, hours = figures["start_tokens_seen"], figures["start_seconds"] / 3600
        begun = [("start", f"{how}{tokens:,} tokens, {hours:.2f} hours")]
    rows = [
        ("corpus", f"`{Path(text.source).name}`: {figures['corpus_tokens']:,} tokens"),
        *begun,
        ("tokens seen", f"{figures['tokens_seen']:,}"),
        ("size", f"{shape.layers} layers of {shape.width}, {figures['parameters']:,} parameters"),
        (
            "training",
            f"{figures['steps']:,} steps of {train.batch_size} rows of at most {text.max_length} "
            f"tokens, AdamW (0.9, {train.adam_beta2:g}), peak rate {train.learning_rate:g}, "
            f"{train.schedule}, {train.precision}",
        ),
        ("time", f"{figures['seconds'] / 3600:.2f} hours on {figures['hardware']}"),
        *((name.replace("_", " "), f"{figures[name]:.4g}") for name in _FIGURES if name in figures),
        ("seed", str(config.seed)),
    ]
    return _CARD.format(
        task=task,
        kind=config.kind,
        name=config.name,
        what=what.format(optimizer=config.optimizer),
        table="\n".join(f"| {key} | {value} |" for key, value in rows),
        config=yaml.safe_dump(portable(config), sort_keys=False),
    )
