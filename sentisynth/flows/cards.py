"""Model cards: what a saved model was made from, how well it does, how to make it again."""

from pathlib import Path
from typing import Any

import yaml

from sentisynth.config.references import portable
from sentisynth.config.types import RunConfig
from sentisynth.data.files import read_json
from sentisynth.data.select import learned_from
from sentisynth.evaluation.evaluate import REAL_SPLITS, predictions
from sentisynth.evaluation.metrics import bootstrap
from sentisynth.seeding import derive_seed
from sentisynth.training.jobs import ARMS

_CARD = """\
---
library_name: transformers
pipeline_tag: {task}
base_model: {start}
tags: [sentisynth, {role}]
---
# {name}: {role}

{what}

| | |
| --- | --- |
{table}

## Use it

{use}

## Make it again

    sentisynth run RECIPE.yaml

with the configuration below as `RECIPE.yaml`; the run's `config.yaml` has the versions of the
software too. On one kind of device, the same seed gives the same weights.

```yaml
{config}```
"""


_GENERATES = """\
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("generator")
    tokenizer = AutoTokenizer.from_pretrained("generator")"""


def model_card(config: RunConfig, name: str, directory: Path) -> str:
    """The card of the model in `directory`: `teacher`, `generator`, or a student's arm."""
    figures = read_json(directory / "metrics.json")
    section = name if name in ("teacher", "generator") else "student"
    settings, values = getattr(config, section), portable(config)
    start = values[section]["model"]
    rows = [
        ("data", f"{config.data.n_seed:,} labelled rows of `{values['data']['source']}`"),
        ("classes", ", ".join(config.data.labels)),
        ("start", f"`{start}`"),
        *(_of_generator(figures) if name == "generator" else _of_classifier(config, name)),
        (
            "steps",
            f"{figures['steps']:,} of {settings.train.batch_size} rows; kept: step "
            f"{figures['best_step']:,}",
        ),
        ("engine", f"{figures['engine']}, {figures['workers']} workers"),
        ("seed", str(config.seed)),
        *(() if name == "generator" else _scores(config, directory)),
    ]
    is_generator = name == "generator"
    return _CARD.format(
        task="text-generation" if is_generator else "text-classification",
        start=start if "/" in start else f'"{start}"',
        role=name,
        name=config.name,
        what=_what(config, name),
        table="\n".join(f"| {key} | {value} |" for key, value in rows),
        use=_GENERATES if is_generator else _classifies(config, name),
        config=yaml.safe_dump(values, sort_keys=False),
    )


def _classifies(config: RunConfig, name: str) -> str:
    lowered = ".lower()" if config.data.lowercase else ""
    return (
        f"    from transformers import pipeline\n"
        f'    classify = pipeline("text-classification", "{name}", truncation=True)\n'
        f'    text = " ".join("A fine film.".split()){lowered}  # as all that it learned from\n'
        f"    classify(text)"
    )


def _what(config: RunConfig, name: str) -> str:
    if name == "generator":
        tokens = ", ".join(config.control_token(k) for k in range(len(config.data.labels)))
        return f"Writes texts of a class after its control token: {tokens}."
    if name == "teacher":
        return "Fine-tuned on the labelled rows; it verifies candidates and gives soft labels."
    return f"A small classifier: {next(a.title for a in ARMS if a.name == name)}."


def _of_generator(figures: dict[str, Any]) -> list[tuple[str, str]]:
    way = "all weights"
    if figures["lora_rank"]:
        way = f"LoRA of rank {figures['lora_rank']}, merged"
    elif figures["frozen_blocks"]:
        way = f"the lower {figures['frozen_blocks']} blocks frozen"
    return [
        ("trained", way),
        ("objective", "negative log-likelihood of control token, text, end"),
        ("validation perplexity", f"{figures['perplexity']:.1f}"),
    ]


def _of_classifier(config: RunConfig, name: str) -> list[tuple[str, str]]:
    if name == "teacher":
        smoothing = config.teacher.label_smoothing
        return [("objective", f"cross-entropy, label smoothing {smoothing:g}")]
    arm = next(a for a in ARMS if a.name == name)
    distil = config.distil
    soft = (
        f"α T² KL + (1 − α) CE, α {distil.alpha:g}, T {distil.temperature:g}, synthetic rows "
        f"weigh {distil.beta:g}"
    )
    told = [("objective", soft if arm.soft else "cross-entropy")]
    if arm.soft:
        start = portable(config)["teacher"]["model"]
        told.append(("teacher", f"`{start}`, fine-tuned (`../teacher`)"))
    if arm.synthetic:
        n, tau = config.synthesis.n_per_class, config.synthesis.tau
        told.append(("synthetic rows", f"{learned_from(n):,} a class, verified at τ {tau}"))
    return told


def _scores(config: RunConfig, directory: Path) -> list[tuple[str, str]]:
    told = []
    for split in REAL_SPLITS:
        labels, predicted = predictions(directory, split)
        seed = derive_seed(config.seed, "bootstrap", split)
        score = bootstrap(labels, predicted, len(config.data.labels), seed)
        told.append(
            (
                f"{split} macro-F1",
                f"{score['macro_f1']:.3f} (95 % of resampled rows: {score['low']:.3f} to "
                f"{score['high']:.3f}; {len(labels):,} real rows)",
            )
        )
    return told
