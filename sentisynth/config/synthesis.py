"""The settings of synthesis: sampling, screens, the pools of actors, quotas."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sentisynth.config.base import Config, PositiveInt


class SamplingConfig(Config):
    max_new_tokens: Annotated[int, Field(ge=1, le=8192)] = 64
    """Tokens after which a text is cut off."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 0.8
    """Divides the logits: above 1 more varied, below more likely texts."""
    top_k: Annotated[int, Field(ge=0)] = 50
    """Most likely tokens kept at a step; 0 keeps all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Smallest set of tokens whose probabilities reach this share; 1 keeps all."""
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.2
    """Divides positive and multiplies negative logits of tokens seen before; 1 is none."""


class ScreensConfig(Config):
    min_tokens: Annotated[int, Field(ge=1)] = 7
    """Fewest tokens of the generator that a candidate may have (the method: more than 6)."""
    charset: Literal["ascii", "latin", "any"] = "ascii"
    """Printable characters allowed: ASCII, Latin scripts, or all but U+FFFD."""
    max_repetition: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Largest share of word pairs that repeat an earlier pair of the same text. A Han character or
    kana is a word; other scripts without spaces, as Thai, are told apart at spaces alone."""
    near_duplicates: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Jaccard similarity of word 3-shingles from which two texts are the same, exact for the pairs
    that MinHash proposes; words as for repetition. 1 compares normalised texts only."""


class PoolConfig(Config):
    min_actors: PositiveInt = 1
    """Actors to start with; a pool for which nothing else is set is started whole."""
    max_actors: PositiveInt | None = None
    """Null: one a GPU of the cluster; where there is none, as many as the CPUs have threads for.
    There, pools that are set alike (threads, max_actors) are one: each actor runs all stages."""
    gpus: Annotated[float, Field(ge=0, le=64)] | None = None
    """GPUs of an actor, a part of one or whole ones; null, where the cluster has any: 0.6 of one
    for a generator and 0.4 for a teacher, so that each GPU holds one of each; else none."""
    cpus: Annotated[float, Field(gt=0, le=4096)] | None = None
    """CPUs that Ray reserves for an actor; null: an even share."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """Threads of an actor's arithmetic; part of the plan, since it can change a unit's bytes."""

    @model_validator(mode="after")
    def _ordered(self) -> "PoolConfig":
        if self.max_actors is not None and self.max_actors < self.min_actors:
            raise ValueError(
                f"max_actors is {self.max_actors}; it must be at least min_actors, "
                f"which is {self.min_actors}"
            )
        if self.gpus is not None and self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus is {self.gpus:g}; above 1 it has to be a whole number")
        return self


class SynthesisConfig(Config):
    n_per_class: Annotated[int, Field(ge=1)] = 10000
    """Accepted rows of each class in the dataset, exactly."""
    tau: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Smallest probability that the teacher must give the intended class."""
    max_candidates_per_class: PositiveInt = 200000
    """Candidates of a class, in whole units, after which a quota not reached ends the run."""
    max_quarantined: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of a class's candidates that the teacher may fail to score (logits that are not finite,
    a text that its tokenizer refuses) before the run ends; up to that they are counted and kept."""
    unit_size: Annotated[int, Field(ge=0, le=65536)] = 0
    """Candidates of a unit: one batch, one file. 0 takes what fits an actor's memory: up to 256 on
    a CPU, up to 4096 on a GPU, and fewer where each prompt of a class is to have a unit; the pool
    remembers what it was."""
    engine: Literal["auto", "batch", "transformers", "vllm"] = "auto"
    """`batch` is ours, for GPT-2 models; `transformers` runs any causal language model; auto takes
    ours where it runs the model; `vllm` runs any on a GPU, if it is installed."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"
    """Arithmetic of generation and verification; auto is bf16 where the hardware multiplies it. On
    a CPU, fp16 is how the batch engine keeps weights, which is faster in units of up to 32
    candidates a thread; all arithmetic is in fp32 then. int8 has the batch engine multiply bytes,
    on CPUs that do (VNNI, AMX): the fastest there, and rounded; verification is as for auto."""
    sampling: SamplingConfig = SamplingConfig()
    screens: ScreensConfig = ScreensConfig()
    generate_pool: PoolConfig = PoolConfig()
    verify_pool: PoolConfig = PoolConfig()

    @model_validator(mode="after")
    def _reachable(self) -> "SynthesisConfig":
        if self.max_candidates_per_class < self.n_per_class:
            raise ValueError(
                f"max_candidates_per_class is {self.max_candidates_per_class}; it must be at "
                f"least synthesis.n_per_class, which is {self.n_per_class}"
            )
        return self

    @model_validator(mode="after")
    def _bytes_on_cpus(self) -> "SynthesisConfig":
        if self.precision == "int8" and self.engine not in ("auto", "batch"):
            raise ValueError(
                f"precision is int8, which engine=batch alone has; engine is {self.engine}"
            )
        if self.precision == "int8" and self.generate_pool.gpus:
            raise ValueError("precision is int8, which is for CPUs; generate_pool.gpus must be 0")
        return self
