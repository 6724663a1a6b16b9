"""Configuration of a pretraining: a base model from unlabelled text alone.

References to models are as in `config.types`; texts are files that this machine reads.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from sentisynth.config.base import Config, PositiveInt
from sentisynth.config.types import NamedConfig, TrainConfig

Kind = Literal["encoder", "generator"]


class TextConfig(Config):
    source: str
    """Unlabelled documents: a .parquet, .jsonl or .txt file (a document a line), or a directory of
    one kind of them."""
    text_column: str = "text"
    """Column of the documents in .parquet and .jsonl files."""
    lowercase: bool = True
    """Lower-case every document."""
    split_words: bool = False
    """Set punctuation and contractions apart ("it 's good , but n't long ."), as Penn Treebank text
    is written."""
    max_length: Annotated[int, Field(ge=8, le=512)] = 64
    """Tokens of a row; a longer document becomes several rows, and no row holds two documents."""
    min_length: Annotated[int, Field(ge=3)] = 8
    """Tokens below which what is left of a document is dropped."""
    held_out: Annotated[float, Field(gt=0, le=0.5)] = 0.005
    """Share of the documents to evaluate on, chosen by their text: copies fall on one side."""

    @model_validator(mode="after")
    def _room(self) -> "TextConfig":
        if self.min_length > self.max_length - 2:
            raise ValueError(
                f"min_length is {self.min_length}; it must be at most max_length - 2, which is "
                f"{self.max_length - 2}"
            )
        return self


class TokenizerConfig(Config):
    vocab_size: Annotated[int, Field(ge=64, le=2**20)] = 8192
    """Pieces, special tokens included: WordPiece for an encoder, byte-level BPE for a generator."""
    min_frequency: PositiveInt = 2
    """Times that a piece has to occur in the corpus."""
    model: str | None = None
    """A model whose tokenizer is taken in place of one trained on the corpus."""


class ShapeConfig(Config):
    layers: Annotated[int, Field(ge=1, le=96)] = 6
    """Blocks of attention and multilayer perceptron."""
    width: Annotated[int, Field(ge=8, le=8192)] = 256
    """Of the hidden states; the inner width is four times that."""
    heads: Annotated[int, Field(ge=1, le=128)] = 4
    """Of attention; the width is a multiple of them."""

    @model_validator(mode="after")
    def _divisible(self) -> "ShapeConfig":
        if self.width % self.heads:
            raise ValueError(
                f"width is {self.width} and heads {self.heads}; the width must be a multiple of "
                f"the heads"
            )
        return self


class MaskedConfig(Config):
    """The masked language model that proposes replacements, ELECTRA's generator; of an encoder that
    is trained as a masked model, mask_rate alone is read.
    """

    shape: ShapeConfig = ShapeConfig(layers=2)
    mask_rate: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of a row's tokens, special ones aside, that are masked."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    """Its own peak rate, where optimizer is decoupled; the encoder's, and that of a masked
    model which is trained alone, is train.learning_rate."""
    judge: str | None = None
    """A masked model, trained alone, on whose replacements the encoder is evaluated too: figures of
    different masked models compare no other way."""


class StartConfig(Config):
    """The encoder's start: the encoder itself, trained as a language model first. From random
    weights a small one may never detect more than how many tokens are replaced (Clark et al.,
    ELECTRA, ICLR 2020, section 3.2, where D may start from a trained G).
    """

    objective: Literal["causal", "masked"] = "causal"
    """causal: each token from those before it, with the attention closed to what follows; every
    token is learned from. masked: mask_rate of them."""
    steps: PositiveInt = 4000
    """Optimiser steps."""
    mask_rate: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of a row's tokens that are masked, where the objective is masked."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Peak rate of AdamW."""
    model: str | None = None
    """A language model of the encoder's kind, shape and tokenizer, in place of one trained here."""


class PretrainTrainConfig(TrainConfig):
    """As of any training, counted in steps."""

    without_meaning: ClassVar[tuple[str, ...]] = (
        *("epochs", "metric", "early_stopping"),
        *("zero_stage", "deepspeed", "offload"),
    )

    steps: PositiveInt = 10000
    """Optimiser steps in all; `epochs` has no meaning here."""
    engine: Literal["torch"] = "torch"
    """Two optimisers clip their gradients apart, which DeepSpeed does not."""
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 64
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1.5e-3
    max_grad_norm: Annotated[float, Field(gt=0)] = 2.0
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = 0.98
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-6
    eval_every: PositiveInt | None = 500

    @model_validator(mode="before")
    @classmethod
    def _with_meaning(cls, values: Any) -> Any:
        for key in cls.without_meaning:
            default = TrainConfig.model_fields[key].default
            if isinstance(values, dict) and values.get(key, default) != default:
                raise ValueError(
                    f"{key} is {values[key]!r}, which has no meaning in a pretraining; leave it out"
                )
        return values


class PretrainConfig(NamedConfig):
    kind: Kind
    """`encoder`: a DeBERTa-v2; `generator`: a GPT-2."""
    text: TextConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    shape: ShapeConfig = ShapeConfig()
    positions: Annotated[int, Field(ge=8, le=8192)] = 128
    """Tokens that the finished model takes at most."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """In training; rows that are seen once need none. A finished encoder says 0.1, for
    fine-tuning."""
    objective: Literal["replaced", "masked", "causal"] | None = None
    """What a model of `shape` learns. Null: `replaced` for an encoder, `causal` for a generator.
    `masked`: an encoder that fills masked tokens, for others to be judged by or to start from;
    `causal`: one that tells the next token, its attention closed to what follows until it is
    fine-tuned."""
    embeddings: Literal["random", "cooccurrence"] = "random"
    """What the tables of embeddings begin with; `cooccurrence`: singular vectors of which pieces
    stand near which in the corpus, a minute's work."""
    start: StartConfig | None = None
    """What an encoder that detects begins with; null: random weights."""
    optimizer: Literal["decoupled", "coupled"] = "decoupled"
    """decoupled: an optimiser each for the masked model and the encoder, embeddings apart;
    coupled: ELECTRA's L_G + λ L_D with one optimiser and one table of embeddings."""
    coupling: Annotated[float, Field(gt=0)] = 50.0
    """λ, where optimizer is coupled."""
    masked: MaskedConfig = MaskedConfig()
    weights: Literal["fp16", "fp32"] = "fp16"
    """What the finished model is written in."""
    train: PretrainTrainConfig = PretrainTrainConfig()

    @model_validator(mode="after")
    def _fitting(self) -> "PretrainConfig":
        allowed = ("causal",) if self.kind == "generator" else ("replaced", "masked", "causal")
        if self.chosen_objective not in allowed:
            raise ValueError(
                f"objective is {self.objective!r}; of kind {self.kind!r} it must be "
                f"{', '.join(allowed)}"
            )
        if self.start is not None and self.chosen_objective != "replaced":
            raise ValueError(
                f"start has no meaning with objective={self.chosen_objective}; leave it out "
                f"(start=null)"
            )
        if self.text.max_length > self.positions:
            raise ValueError(
                f"text.max_length is {self.text.max_length}; it must be at most positions, which "
                f"is {self.positions}"
            )
        if self.masked.judge is not None and self.chosen_objective != "replaced":
            raise ValueError(
                f"masked.judge has no meaning with objective={self.chosen_objective}; leave it out"
            )
        trains_pieces = self.tokenizer.model is None  # else their number is not known yet
        is_wide = trains_pieces and self.table_width >= self.tokenizer.vocab_size
        if self.embeddings == "cooccurrence" and is_wide:
            raise ValueError(
                f"tokenizer.vocab_size is {self.tokenizer.vocab_size}; with "
                f"embeddings=cooccurrence it must be above the width, which is {self.table_width}"
            )
        is_coupled = self.chosen_objective == "replaced" and self.optimizer == "coupled"
        if is_coupled and self.masked.shape.width != self.shape.width:
            raise ValueError(
                f"masked.shape.width is {self.masked.shape.width}; with optimizer=coupled the "
                f"embeddings are shared, and it must be shape.width, which is {self.shape.width}"
            )
        return self

    @property
    def chosen_objective(self) -> Literal["replaced", "masked", "causal"]:
        """What is trained."""
        if self.objective is not None:
            return self.objective
        return "replaced" if self.kind == "encoder" else "causal"

    @property
    def table_width(self) -> int:
        """Of the widest table of embeddings that is trained."""
        widths = [self.shape.width]
        if self.chosen_objective == "replaced":
            widths.append(self.masked.shape.width)
        return max(widths)

    @property
    def first(self) -> "PretrainConfig | None":
        """The training of the language model that the encoder starts from, if there is one."""
        if self.start is None or self.start.model is not None:
            return None
        changes = {"mask_rate": self.start.mask_rate, "judge": None}
        rates = {"steps": self.start.steps, "learning_rate": self.start.learning_rate}
        return self.model_copy(
            update={
                "objective": self.start.objective,
                "start": None,
                "weights": "fp32",
                "masked": self.masked.model_copy(update=changes),
                "train": self.train.model_copy(update=rates),
            }
        )
