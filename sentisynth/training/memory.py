"""How much memory a training takes on each device, estimated before anything is loaded.

Weights, gradients and optimiser state follow Rajbhandari et al., "ZeRO: memory optimizations toward
training trillion parameter models", 2020, section 3 and figure 1 (fp32 master weights and two
moments of AdamW: 12 bytes a trained parameter). Activations follow Korthikanti et al., "Reducing
activation recomputation in large transformer models", 2022, section 4: 34 bytes a token and hidden
unit in each layer in 16 bits, without the attention matrix, which fused attention does not keep.
"""

from dataclasses import dataclass
from typing import Any, Literal

from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from sentisynth.config.types import TrainConfig
from sentisynth.models.generator import blocks
from sentisynth.models.loading import empty_model
from sentisynth.training.engine import chosen_engine, default_stage
from sentisynth.training.loop import forward_passes

_ACTIVATION_BYTES = 34  # a token, hidden unit and layer, in 16 bits
_LOGIT_BYTES = 10  # a token and word: 16-bit logits, fp32 copy, gradient
RUNTIME_BYTES = 2 * 2**30  # of the driver, libraries and the allocator's slack on a GPU


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a model, from its configuration alone."""

    parameters: int
    trained: int
    largest_block: int
    """Parameters of the largest transformer block."""
    layers: int
    hidden: int
    vocabulary: int
    is_lora: bool = False


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes of one training worker, on its device and in its node's memory."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    host: int
    """What is offloaded to the node's memory."""

    @property
    def device(self) -> int:
        """Bytes on the device, the runtime's own not counted."""
        return self.weights + self.gradients + self.optimizer + self.activations


def shape_of(
    config: Any,
    head: Literal["classifier", "generator"],
    *,
    frozen_blocks: int | None = 0,
    lora_rank: int = 0,
) -> Shape:
    """Sizes of what `config` describes; nothing is allocated. `frozen_blocks` null: two thirds."""
    auto = AutoModelForCausalLM if head == "generator" else AutoModelForSequenceClassification
    model = empty_model(auto, config)
    total = sum(p.numel() for p in model.parameters())
    stack = blocks(model)
    sizes = [sum(p.numel() for p in block.parameters()) for block in stack]
    if lora_rank:
        matrices = [p for p in stack.parameters() if p.ndim == 2]
        trained = sum(lora_rank * sum(p.shape) for p in matrices)
    else:
        n = len(sizes) * 2 // 3 if frozen_blocks is None else frozen_blocks
        trained = total - sum(sizes[:n])
    text = config.get_text_config()
    return Shape(
        parameters=total,
        trained=trained,
        largest_block=max(sizes),
        layers=len(sizes),
        hidden=text.hidden_size,
        vocabulary=text.vocab_size if head == "generator" else 0,
        is_lora=lora_rank > 0,
    )


def footprint(shape: Shape, train: TrainConfig, max_length: int, *, half: bool) -> Footprint:
    """Bytes of one of `train.workers` workers; `half` says whether it computes in 16 bits."""
    n, t, workers = shape.parameters, shape.trained, train.workers
    rows = -(-train.batch_size // workers)
    rows = -(-rows // forward_passes(train, workers))
    activations = _activations(shape, rows * max_length, train.gradient_checkpointing, half)
    if chosen_engine(train) == "torch":
        frozen = n - min(t, n)
        # autocast keeps trained weights in 16 bits beside fp32; LoRA's frozen ones are loaded in 16
        weights = 4 * n + (2 * t if half else 0)
        if half and shape.is_lora:
            weights = 2 * frozen + 6 * t
        return Footprint(
            weights=weights,
            gradients=4 * t,
            optimizer=8 * t,
            activations=activations,
            host=0,
        )
    stage = train.zero_stage
    if stage is None:
        zero = (train.deepspeed or {}).get("zero_optimization")
        given = zero.get("stage") if isinstance(zero, dict) else None
        stage = given if isinstance(given, int) else default_stage(train)
    size = 2 if half else 4
    master = 12 if half else 8
    weights = size * n if stage < 3 else size * (n // workers + 2 * shape.largest_block)
    gradients = size * t // (workers if stage >= 2 else 1)
    optimizer = master * t // (workers if stage >= 1 else 1)
    host = 0
    if train.offload != "none":
        host, optimizer = optimizer, 0
    if train.offload == "parameters":
        host += size * n // workers
        weights = size * 2 * shape.largest_block
    return Footprint(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        host=host,
    )


def _activations(shape: Shape, tokens: int, checkpointed: bool, half: bool) -> int:
    whole = _ACTIVATION_BYTES * tokens * shape.hidden
    layers = whole * shape.layers
    if checkpointed:  # each layer's input, and one layer at work
        layers = 2 * tokens * shape.hidden * shape.layers + whole
    logits = _LOGIT_BYTES * tokens * shape.vocabulary
    return (layers if half else 2 * layers) + logits
