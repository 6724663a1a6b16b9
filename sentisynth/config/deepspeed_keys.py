"""The settings of DeepSpeed that a configuration may carry: they end in records, and some keys of
DeepSpeed's import what they name, write to places of their own, or send what they see.
"""

from typing import Any

_ZERO = {"stage", "overlap_comm", "contiguous_gradients", "reduce_scatter", "reduce_bucket_size"}
_ZERO |= {"allgather_partitions", "allgather_bucket_size", "round_robin_gradients"}
_ZERO |= {"use_multi_rank_bucket_allreduce", "sub_group_size", "ignore_unused_parameters"}
_ZERO |= {"stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"}
_ZERO |= {"stage3_model_persistence_threshold", "stage3_max_live_parameters"}
_ZERO |= {"stage3_max_reuse_distance", "stage3_gather_16bit_weights_on_model_save"}
_ZERO |= {"stage3_use_all_reduce_for_fetch_params", "stage3_module_granularity_threshold"}
_ZERO |= {"memory_efficient_linear", "mics_shard_size", "mics_hierarchical_params_gather"}
_ZERO |= {"zero_hpz_partition_size", "zero_quantized_weights", "zero_quantized_gradients"}
_ZERO |= {"zero_quantized_nontrainable_weights"}
_OFFLOAD = {"device", "pin_memory", "buffer_count", "buffer_size", "max_in_cpu", "ratio"}
_OFFLOAD |= {"fast_init", "pipeline_read", "pipeline_write"}
_HALF = {"enabled", "auto_cast", "loss_scale", "initial_scale_power", "loss_scale_window"}
_HALF |= {"hysteresis", "consecutive_hysteresis", "min_loss_scale", "immediate_grad_update"}
_PLAIN = {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"}
_PLAIN |= {"gradient_clipping", "prescale_gradients", "gradient_predivide_factor"}
_PLAIN |= {"communication_data_type", "fp32_allreduce", "sparse_gradients", "disable_allgather"}
_PLAIN |= {"steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state"}
_PLAIN |= {"zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"}
_SECTIONS: dict[str, set[str]] = {
    "zero_optimization": _ZERO | {"offload_optimizer", "offload_param"},
    "zero_optimization.offload_optimizer": _OFFLOAD,
    "zero_optimization.offload_param": _OFFLOAD,
    "fp16": _HALF,
    "bf16": _HALF,
    "data_types": {"grad_accum_dtype"},
    "comms_logger": {"enabled", "verbose", "prof_all", "debug"},
    "activation_checkpointing": {"partition_activations", "cpu_checkpointing", "profile"}
    | {"contiguous_memory_optimization", "number_checkpoints", "synchronize_checkpoint_boundary"},
}
_OURS = {"optimizer", "scheduler"}  # refused by the engine, which says what to set instead


def known(settings: dict[str, Any]) -> dict[str, Any]:
    """The same settings. Raises ValueError at a key that is not known to be harmless."""
    for key, value in settings.items():
        if key not in _OURS:
            _check(str(key), value)
    return settings


def _check(name: str, value: Any) -> None:
    if name in _SECTIONS and isinstance(value, dict):
        for key, inner in value.items():
            if f"{name}.{key}" not in _SECTIONS and key not in _SECTIONS[name]:
                _refuse(f"{name}.{key}")
            _check(f"{name}.{key}", inner)
    elif isinstance(value, dict | list) or name.split(".")[0] not in _PLAIN | _SECTIONS.keys():
        _refuse(name)


def _refuse(name: str) -> None:
    raise ValueError(
        f"the key {name!r} is none of DeepSpeed's settings of memory, communication and precision "
        f"that are handed on; leave it out"
    )
