"""The configuration of a run: frozen, keyword-only, each field with its meaning, unit and bounds.

The text under a field is its documentation; bounds are enforced when a recipe is loaded.
A model or data reference is one of
    package:NAME     shipped inside sentisynth
    ./DIR, /DIR      a local path
    org/name         a Hugging Face Hub name (data: `org/name:split`)
    fresh:SHAPE      student only: untrained weights of a known shape (see models.classifier.SHAPES)
    teacher:N        student only: the teacher's embedding and its first N layers
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from sentisynth.config import deepspeed_keys
from sentisynth.config.base import Config, PositiveInt
from sentisynth.config.checks import as_weights
from sentisynth.config.outside import ClusterConfig, TrackingConfig
from sentisynth.config.synthesis import SynthesisConfig

Precision = Literal["auto", "fp32", "bf16", "fp16"]
SweepKind = Literal["alpha-beta", "alpha", "beta", "tau", "temperature", "size", "arms"]


class DataConfig(Config):
    source: str
    """Labelled rows to draw the seed from: a reference, or a .parquet, .csv, .tsv, .jsonl file."""
    validation: str | PositiveInt
    """Real rows for early stopping: a reference, or how many rows to hold out of the source."""
    test: str | PositiveInt
    """Real rows to report on: a reference, or how many rows to hold out of the source."""
    text_column: str = "text"
    """Column of the texts."""
    label_column: str = "label"
    """Column of the labels."""
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    """Names of the classes; a label in a file is one of these names or its position, from 0."""
    n_seed: PositiveInt = 1000
    """Labelled rows that may be learned from, drawn with the class ratio kept."""
    lowercase: bool = True
    """Lower-case every text, real and synthetic."""

    @field_validator("validation", "test", mode="before")
    @classmethod
    def _at_least_one(cls, value: object) -> object:
        if isinstance(value, bool | float) or (isinstance(value, int) and value < 1):
            raise ValueError(
                f"{value} is no number of rows to hold out; it must be a whole number of at least "
                f"1, or a file"
            )
        return value

    @model_validator(mode="after")
    def _distinct(self) -> "DataConfig":
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("data.labels names a class twice; give each class one name")
        return self


class TrainConfig(Config):
    engine: Literal["auto", "torch", "deepspeed"] = "auto"
    """What makes optimiser steps: torch (DDP with several workers) or DeepSpeed. auto: DeepSpeed
    with several workers or where one of the three keys below is given, else torch."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] | None = None
    """What DeepSpeed shares out among the workers: 0 nothing, 1 the optimiser's state, 2 gradients
    too, 3 weights too. Null: what `deepspeed` says, else 0, the fastest (2 with offload)."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What DeepSpeed keeps in the CPU's memory: the optimiser's state, or (stage 3) weights too."""
    deepspeed: Annotated[dict[str, Any], AfterValidator(deepspeed_keys.known)] | None = None
    """More settings for DeepSpeed: a mapping, or a path to its JSON file."""
    workers: Annotated[int, Field(ge=1, le=4096)] = 1
    """Training processes; the batch is shared out among them."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=1)] | None = None
    """GPUs of a worker; null takes one where the cluster has any."""
    micro_batch_size: PositiveInt | None = None
    """Rows of a worker's forward pass, the rest of its share is accumulated; null: all at once."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third more work."""
    epochs: Annotated[int, Field(ge=1, le=1000)] = 3
    """Passes over the rows."""
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 32
    """Rows of one optimiser step, over all workers."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-5
    """Peak rate of AdamW."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls to zero after the warm-up."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.06
    """Share of all steps over which the rate rises from zero."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    """AdamW's decoupled decay, on matrices only."""
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """Decay of AdamW's mean of squared gradients."""
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """What AdamW adds to the root of that mean."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this 2-norm."""
    precision: Precision = "auto"
    """Arithmetic of the forward pass; auto is bf16 where the hardware multiplies it fast."""
    eval_every: PositiveInt | None = None
    """Optimiser steps between evaluations; null evaluates after each epoch."""
    metric: Literal["macro_f1", "accuracy", "validation_loss", "perplexity"] | None = None
    """Figure on the validation rows that chooses the weights to keep; null: perplexity of a
    generator, macro-F1 of a classifier."""
    early_stopping: Annotated[int, Field(ge=0, le=1000)] = 0
    """Evaluations without a better metric before training stops; 0 never stops early."""
    checkpoint_every: PositiveInt | None = None
    """Optimiser steps between checkpoints; null: at evaluations, when 20 seconds have passed, and
    every five minutes between."""
    max_restarts: Annotated[int, Field(ge=0, le=1000)] = 3
    """Deaths of workers in a row, without a checkpoint between, after which the training ends."""

    @model_validator(mode="after")
    def _one_engine(self) -> "TrainConfig":
        wants = [
            k
            for k in ("zero_stage", "deepspeed", "offload")
            if getattr(self, k) not in (None, "none")
        ]
        if self.engine == "torch" and wants:
            raise ValueError(
                f"{wants[0]} is for DeepSpeed, and engine is torch; set train.engine=deepspeed, or "
                f"leave {wants[0]} out"
            )
        if self.offload == "optimizer" and self.zero_stage == 0:
            raise ValueError(
                "offload=optimizer with zero_stage=0 offloads nothing; leave zero_stage out, or "
                "set it to 1, 2 or 3"
            )
        if self.offload == "parameters" and self.zero_stage != 3:
            raise ValueError(
                f"offload=parameters needs zero_stage=3, and that is {self.zero_stage}; set it, or "
                f"offload=optimizer"
            )
        return self


class TeacherConfig(Config):
    model: str
    """Start of the verifier: a sequence classifier, or any encoder or decoder to put a head on."""
    max_length: Annotated[int, Field(ge=4, le=8192)] = 128
    """Tokens of a text; what lies beyond is cut off."""
    class_weights: Annotated[
        Literal["balanced"] | tuple[float, ...] | None, AfterValidator(as_weights)
    ] = None
    """Weight of a row by its class, in the order of the labels; balanced: N / (K · rows of it)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a label that is spread over all classes."""
    train: TrainConfig = TrainConfig()


class GeneratorConfig(Config):
    model: str
    """Start of the generator: a causal language model."""
    max_length: Annotated[int, Field(ge=4, le=8192)] = 64
    """Tokens of a training text, control token and end included."""
    control_tokens: dict[str, str] | None = None
    """Class name to control token; null makes `<NAME>` of each class name."""
    prompts: dict[str, tuple[str, ...]] | None = None
    """Class name to texts that follow the control token; units take turns. Null: none."""
    frozen_blocks: Annotated[int, Field(ge=0)] | None = None
    """Lower blocks that are not trained; null freezes the lower two thirds, or none with LoRA."""
    lora_rank: Annotated[int, Field(ge=0, le=1024)] = 0
    """Train low-rank adapters of all blocks, and the control tokens, in place of the weights; they
    are merged into the weights at the end. 0: train the weights."""
    train: TrainConfig = TrainConfig(learning_rate=3e-5, schedule="cosine", early_stopping=1)

    @model_validator(mode="after")
    def _one_way(self) -> "GeneratorConfig":
        if self.lora_rank and self.frozen_blocks:
            raise ValueError(
                f"frozen_blocks is {self.frozen_blocks} and lora_rank is {self.lora_rank}; LoRA "
                f"trains adapters of all blocks: set one of the two to 0"
            )
        return self


class StudentConfig(Config):
    model: str
    """Start of the student; `fresh:bert-tiny` is untrained, `teacher:2` has the teacher's first two
    layers; both take the teacher's tokenizer."""
    max_length: Annotated[int, Field(ge=4, le=8192)] = 128
    """Tokens of a text; what lies beyond is cut off."""
    train: TrainConfig = TrainConfig(learning_rate=3e-5, epochs=10, early_stopping=3)


class DistilConfig(Config):
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Share of the soft-label term: α T² KL + (1 − α) CE."""
    beta: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Weight of a synthetic row; a real row weighs 1."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 2.0
    """T of the soft labels and of the student's side of the KL term."""


class NamedConfig(Config):
    """What every recipe has, whatever it makes."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the run directory and the MLflow run."""
    description: str = ""
    """One line for `sentisynth recipes`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 41
    """Everything that is drawn at random follows from it."""
    tracking: TrackingConfig = TrackingConfig()
    cluster: ClusterConfig = ClusterConfig()


class RunConfig(NamedConfig):
    data: DataConfig
    teacher: TeacherConfig
    generator: GeneratorConfig
    synthesis: SynthesisConfig = SynthesisConfig()
    student: StudentConfig
    distil: DistilConfig = DistilConfig()

    @model_validator(mode="after")
    def _named_classes(self) -> "RunConfig":
        for key in ("control_tokens", "prompts"):
            given = getattr(self.generator, key)
            if given is not None and set(given) != set(self.data.labels):
                raise ValueError(
                    f"generator.{key} has entries for {', '.join(sorted(given))}; it must have "
                    f"one for each of data.labels: {', '.join(self.data.labels)}"
                )
        return self

    @model_validator(mode="after")
    def _known_metrics(self) -> "RunConfig":
        for section in ("teacher", "generator", "student"):
            metric = getattr(self, section).train.metric
            known = ["perplexity", "validation_loss"]
            if section != "generator":
                known = ["macro_f1", "accuracy", "validation_loss"]
            if metric is not None and metric not in known:
                raise ValueError(
                    f"{section}.train.metric is {metric!r}; it must be one of {', '.join(known)}"
                )
        return self

    @model_validator(mode="after")
    def _a_weight_a_class(self) -> "RunConfig":
        weights = self.teacher.class_weights
        if isinstance(weights, tuple) and len(weights) != len(self.data.labels):
            raise ValueError(
                f"teacher.class_weights has {len(weights)} entries; it must have one for each of "
                f"data.labels: {', '.join(self.data.labels)}"
            )
        return self

    @model_validator(mode="after")
    def _distinct_control_tokens(self) -> "RunConfig":
        tokens = [self.control_token(label) for label in range(len(self.data.labels))]
        if len(set(tokens)) < len(tokens) or not all(token.strip() for token in tokens):
            raise ValueError(
                f"the control tokens are {', '.join(map(repr, tokens))}; each class needs one of "
                f"its own: set generator.control_tokens"
            )
        return self

    def control_token(self, label: int) -> str:
        """The control token of class `label`."""
        name = self.data.labels[label]
        if self.generator.control_tokens is not None:
            return self.generator.control_tokens[name]
        return f"<{name.upper()}>"

    def prompts(self, label: int) -> tuple[str, ...]:
        """Texts to follow the control token of class `label`, in lower case where all texts are; at
        least one, perhaps empty.
        """
        if self.generator.prompts is None:
            return ("",)
        found = self.generator.prompts[self.data.labels[label]] or ("",)
        return tuple(prompt.lower() for prompt in found) if self.data.lowercase else found
