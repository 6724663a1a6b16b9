import copy
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig, GPT2Config, LlamaConfig, MambaConfig, Qwen2Config

from sentisynth.config.load import load_config
from sentisynth.config.synthesis import SamplingConfig
from sentisynth.data.units import Unit
from sentisynth.errors import ModelError
from sentisynth.generation import gpt2
from sentisynth.generation.batch_engine import BatchEngine
from sentisynth.generation.engine import (
    ENGINES,
    UnitGenerator,
    check_generator,
    choose_engine,
    rows_that_fit,
)
from sentisynth.generation.gpt2 import Decoder
from sentisynth.generation.graphs import GraphedSteps, batch_sizes
from sentisynth.generation.sampling import is_short
from sentisynth.models.classifier import load_classifier
from sentisynth.models.devices import memory_guarded, multiplies_int8
from sentisynth.models.generator import load_generator, load_sampler
from sentisynth.seeding import candidate_uniforms
from tests.conftest import RESOURCES, reviews

SAMPLING = SamplingConfig(max_new_tokens=20, temperature=1.0, top_k=40)
PROMPT = [0, 17, 230]


@pytest.fixture(autouse=True)
def one_thread():
    """Steps of one row are too short to share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def mini():
    return load_sampler(RESOURCES / "gpt2-mini")


@pytest.mark.parametrize("n", [20, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_greedy_tokens_equal_those_of_transformers(mini, monkeypatch, n: int, dtype) -> None:
    """Top-1 sampling is greedy decoding; the penalty sees prompt and continuation alike. The file
    has its weights in fp16, so that keeping them in fp16 takes nothing from them.
    """
    model, endless = mini[0], SimpleNamespace(eos_token_id=-1)
    engine = BatchEngine(model, endless, dtype)
    sampling = SamplingConfig(max_new_tokens=64, top_k=1, repetition_penalty=1.2)
    torch.manual_seed(0)
    prompts = torch.randint(1, 8192, (n, 4))
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    settings = GenerationConfig(max_new_tokens=64, repetition_penalty=1.2, pad_token_id=0)
    wanted = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), generation_config=settings
    )[:, 4:]
    assert wanted.shape == (n, 64)
    found = [engine(prompt, Unit(0, 0, 1), 1, sampling)[0] for prompt in prompts.tolist()]
    assert found == wanted.tolist()


def test_a_row_whose_logits_are_not_finite_is_none_and_the_others_stay(mini, monkeypatch) -> None:
    engine = BatchEngine(*mini, torch.float32)
    wanted, step = engine(PROMPT, Unit(0, 0, 8), 1, SAMPLING), engine._decoder.step

    def broken(tokens, cache, threads):
        logits_BV, shift_B = step(tokens, cache, threads)
        if cache.length == len(PROMPT) + 2:
            logits_BV[3] = float("nan")
        return logits_BV, shift_B

    monkeypatch.setattr(engine._decoder, "step", broken)
    found = engine(PROMPT, Unit(0, 0, 8), 1, SAMPLING)
    assert found[3] is None and wanted[3] is not None
    assert found[:3] + found[4:] == wanted[:3] + wanted[4:]


@pytest.mark.parametrize(
    "cut", [{}, {"top_k": 0, "top_p": 0.9}, {"top_k": 0, "top_p": 1.0}, {"top_k": 3000}]
)
def test_a_generator_of_no_numbers_makes_rows_without_texts(mini, cut) -> None:
    sampling = SAMPLING.model_copy(update=cut)
    model = copy.deepcopy(mini[0])
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = float("nan")
    engine = BatchEngine(model, mini[1], torch.float32)
    assert engine(PROMPT, Unit(0, 0, 8), 1, sampling) == [None] * 8
    decoder = Decoder(model, torch.float32)
    uniforms = torch.from_numpy(candidate_uniforms(1, 0, 0, 8, 20))
    steps = GraphedSteps(decoder, 0, record=False)
    if is_short(8192, sampling):  # nothing else is recorded
        assert steps(PROMPT, *decoder.prefill(PROMPT), uniforms, sampling) == [None] * 8
    with pytest.raises(ModelError, match="logits are not finite.*synthesis.precision=fp32"):
        ENGINES["transformers"](model, mini[1], torch.float32)(PROMPT, Unit(0, 0, 8), 1, sampling)


@pytest.mark.parametrize("ends", [True, False])
def test_recorded_steps_draw_the_same_tokens(mini, ends: bool) -> None:
    """What a GPU replays, here step by step: rows leave in other steps, the tokens are the same."""
    model, _ = mini
    decoder, end_id = Decoder(model, torch.float32), 0 if ends else -1
    sampling = SamplingConfig(max_new_tokens=60, temperature=1.2, top_k=20)
    steps = GraphedSteps(decoder, end_id, record=False)
    logits, prefix = decoder.prefill(PROMPT)
    for first in (0, 40):  # buffers are used again
        uniforms = torch.from_numpy(candidate_uniforms(1, 0, first, 40, 60))
        found = steps(PROMPT, logits, prefix, uniforms, sampling)
        engine = BatchEngine(model, SimpleNamespace(eos_token_id=end_id), torch.float32)
        assert found == engine(PROMPT, Unit(0, first // 40, 40), 1, sampling)
        assert (min(map(len, found)) < 60) == ends


def test_prompts_that_take_turns_share_what_is_recorded(mini) -> None:
    decoder = Decoder(mini[0], torch.float32)
    long, made = [0, *range(100, 130)], []
    uniforms = torch.from_numpy(candidate_uniforms(1, 0, 0, 8, SAMPLING.max_new_tokens))
    for longest in (0, len(long)):
        steps = GraphedSteps(decoder, 0, longest_prompt=longest, record=False)
        found = [
            (steps(prompt, *decoder.prefill(prompt), uniforms, SAMPLING), steps._state)
            for prompt in (PROMPT, long, PROMPT)
        ]
        assert (found[0][1] is found[1][1] is found[2][1]) == (longest > 0)
        made.append([rows for rows, _ in found])
    assert made[0] == made[1]


def test_recorded_steps_leave_to_others_what_they_cannot_do(mini) -> None:
    decoder = Decoder(mini[0], torch.float32)
    logits, prefix = decoder.prefill(PROMPT)
    uniforms = torch.zeros(8, 4, dtype=torch.float64)
    steps = GraphedSteps(decoder, 0, record=False)
    for sampling in (SamplingConfig(top_k=0), SamplingConfig(top_k=5000)):
        assert steps(PROMPT, logits, prefix, uniforms, sampling) is None
    flat = torch.zeros_like(logits[0]), None  # every token ties with the k-th
    assert steps(PROMPT, flat, prefix, uniforms, SamplingConfig(top_k=20)) is None


@pytest.mark.parametrize("n_rows", [1, 8, 100, 256])
def test_batches_shrink_to_multiples_of_eight(n_rows: int) -> None:
    sizes = batch_sizes(n_rows)
    assert sizes[-1] == n_rows and sizes == sorted(sizes)
    assert all(size % 8 == 0 for size in sizes[:-1])
    assert all(a / b >= 0.5 for a, b in pairwise(sizes))


def test_threads_share_the_rows(mini) -> None:
    """The tokens do not depend on the threads in fp32 on this model; in general the plan says."""
    sampling = SamplingConfig(max_new_tokens=12)
    found = []
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        found.append(BatchEngine(*mini, torch.float32)(PROMPT, Unit(0, 0, 70), 1, sampling))
    assert found[0] == found[1]


needs_bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="needs a CPU with bf16"
)
needs_vnni = pytest.mark.skipif(not multiplies_int8("cpu"), reason="needs a CPU with VNNI or AMX")


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(torch.bfloat16, marks=needs_bf16), pytest.param(torch.int8, marks=needs_vnni)],
)
def test_an_offset_of_all_logits_costs_no_precision(mini, dtype: torch.dtype) -> None:
    """GPT-2's logits lie near −100, where bf16 knows only halves; only differences matter."""
    model, tokenizer = load_sampler(RESOURCES / "gpt2-mini")
    ids = tokenizer("it 's a good film , but not")["input_ids"]
    hidden = model.transformer(torch.tensor([ids])).last_hidden_state[0, -1].detach()
    offset = -100 * hidden / hidden.square().sum()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + offset)
    exact = mini[0](torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
    half, shift = Decoder(copy.deepcopy(model), dtype).prefill(ids)[0]
    assert shift is not None
    theirs = model.bfloat16()(torch.tensor([ids])).logits[0, -1]
    ours_off, theirs_off = (
        (exact.exp() * (exact - logits.double().log_softmax(-1))).sum().item()
        for logits in (half[0].float() + shift, theirs)
    )
    assert ours_off < 2e-3 < 10 * ours_off + 1e-3 < theirs_off


@needs_vnni
def test_the_price_of_int8_is_a_thousandth_of_a_nat(mini) -> None:
    """Divergence of its distributions from those in fp32, along real text; bf16's is 0.0002."""
    ids = mini[1](" ".join(reviews("test", 8)["text"].to_pylist()))["input_ids"][:120]
    logs = []
    for dtype in (torch.float32, torch.int8):
        decoder = Decoder(load_sampler(RESOURCES / "gpt2-mini")[0], dtype)
        (logits, shift), cache = decoder.prefill(ids[:1])
        rows = [logits[0] if shift is None else logits[0] + shift]
        for token in ids[1:]:
            logits, shift = decoder.step(torch.tensor([token]), cache)
            rows.append(logits[0] if shift is None else logits[0] + shift)
        logs.append(torch.stack(rows).double().log_softmax(dim=1))
    exact, found = logs
    divergence = (exact.exp() * (exact - found)).sum(dim=1)
    assert 1e-6 < divergence.mean() < 1e-3 and divergence.max() < 1e-2


@pytest.mark.parametrize("name", list(ENGINES))
def test_a_unit_is_the_same_each_time_and_units_differ(mini, name: str) -> None:
    model, tokenizer = mini
    engine = ENGINES[name](model, tokenizer, torch.float32)
    first = engine(PROMPT, Unit(0, 0, 8), 1, SAMPLING)
    torch.rand(3)  # whatever else drew from torch's generator
    assert engine(PROMPT, Unit(0, 0, 8), 1, SAMPLING) == first
    for other, seed in ((Unit(0, 1, 8), 1), (Unit(1, 0, 8), 1), (Unit(0, 0, 8), 2)):
        assert engine(PROMPT, other, seed, SAMPLING) != first
    assert len(first) == 8 and len({tuple(row) for row in first}) > 4


def test_a_candidate_is_a_function_of_its_name(mini) -> None:
    """Candidates 8 … 15 are the same whether their unit is 8 or 16 rows, leaving early or not."""
    engine = BatchEngine(*mini, torch.float32)
    sampling = SamplingConfig(max_new_tokens=60, temperature=1.2)
    small = engine(PROMPT, Unit(0, 1, 8), 1, sampling)
    assert engine(PROMPT, Unit(0, 0, 16), 1, sampling)[8:] == small
    assert len({len(row) for row in small}) > 1  # rows ended at different steps


def test_a_cache_that_grows_by_blocks_gives_the_same_tokens(mini, monkeypatch) -> None:
    """It is half precision's on a CPU; rows leave and blocks are added in both."""
    engine, sampling = BatchEngine(*mini, torch.float32), SamplingConfig(max_new_tokens=60)
    wanted, made = engine(PROMPT, Unit(0, 0, 16), 1, sampling), engine._decoder.cache

    def in_blocks(n_rows: int, capacity: int):
        cache = made(n_rows, capacity)
        assert cache.views
        cache.views = False
        return cache

    monkeypatch.setattr(engine._decoder, "cache", in_blocks)
    assert engine(PROMPT, Unit(0, 0, 16), 1, sampling) == wanted
    assert len({len(row) for row in wanted}) > 1


@pytest.mark.parametrize("name", list(ENGINES))
def test_no_candidate_is_longer_than_asked_or_than_the_model(mini, name: str) -> None:
    model, tokenizer = mini
    engine = ENGINES[name](model, tokenizer, torch.float32)
    for asked, limit in ((20, 20), (500, 128 - len(PROMPT))):
        sampling = SamplingConfig(max_new_tokens=asked, temperature=2.0)
        rows = engine(PROMPT, Unit(0, 0, 4), 1, sampling)
        assert max(map(len, rows)) <= limit
        assert all(tokenizer.eos_token_id not in row for row in rows)


def test_auto_takes_ours_for_gpt2_and_generate_for_the_rest(mini, tiny_bert: Path) -> None:
    assert choose_engine("auto", GPT2Config()) == "batch"
    others = [
        LlamaConfig(),
        GPT2Config(scale_attn_by_inverse_layer_idx=True),
        GPT2Config(activation_function="quick_gelu"),
    ]
    for other in others:
        assert choose_engine("auto", other) == "transformers"
        assert choose_engine("batch", other) == "batch"
    bert, tokenizer = load_classifier(str(tiny_bert), ["n", "p"])
    with pytest.raises(ModelError, match="set synthesis.engine=transformers"):
        BatchEngine(bert, tokenizer, torch.float32)


def test_prompts_of_a_class_take_turns_by_unit(tmp_path: Path, tiny_gpt2: Path) -> None:
    model, tokenizer = load_generator(str(tiny_gpt2), ["<NEG>", "<POS>"])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    prompts = "generator.prompts={negative: [the worst], positive: [the best, a fine]}"
    config = load_config("quickstart", [prompts, "synthesis.sampling.max_new_tokens=3"])
    generate = UnitGenerator(tmp_path, config)
    found = [generate(Unit(1, n, 4)).prompt for n in range(3)]
    assert found == ["the best", "a fine", "the best"]
    assert generate(Unit(0, 2, 4)).prompt == "the worst"


def test_a_generator_is_checked_before_anything_starts(tmp_path: Path, tiny_gpt2: Path) -> None:
    model, tokenizer = load_generator(str(tiny_gpt2), ["<NEG>", "<POS>"])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    check_generator(tmp_path, load_config("quickstart"))
    long = "generator.prompts={negative: [" + "so " * 64 + "], positive: ['']}"
    with pytest.raises(ModelError, match=r"has 6\d tokens; the generator takes 64"):
        check_generator(tmp_path, load_config("quickstart", [long]))
    other = "generator.control_tokens={negative: <BAD>, positive: <POS>}"
    with pytest.raises(ModelError, match="does not know the control token <BAD>"):
        check_generator(tmp_path, load_config("quickstart", [other]))


def test_the_batch_follows_the_memory(tmp_path: Path, tiny_gpt2: Path) -> None:
    model, tokenizer = load_generator(str(tiny_gpt2), ["<NEG>", "<POS>"])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = load_config("quickstart")
    sizes = [rows_that_fit(tmp_path, config, memory, 4096) for memory in (10**11, 10**8, 10**7)]
    assert sizes[0] == 4096 > sizes[1] > sizes[2] >= 8
    assert rows_that_fit(tmp_path, config, 10**3, 4096) == 8


def test_heads_that_share_keys_take_less_memory(tmp_path: Path, tiny_gpt2: Path) -> None:
    """As in Qwen2 and Llama; a number of two bytes makes batches larger still."""
    _, tokenizer = load_generator(str(tiny_gpt2), ["<NEG>", "<POS>"])
    config, sizes = load_config("quickstart"), []
    for shared in (8, 1):
        heads = {"num_attention_heads": 8, "num_key_value_heads": shared}
        shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 8}
        Qwen2Config(vocab_size=128, **shape, **heads).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        sizes.append(rows_that_fit(tmp_path, config, 2**28, 2**20))
        sizes.append(rows_that_fit(tmp_path, config, 2**28, 2**20, number=2))
    assert sizes[1] == 2 * sizes[0] and sizes[2] >= 4 * sizes[0]


def test_models_without_attention_have_a_size_too(tmp_path: Path, tiny_gpt2: Path) -> None:
    _, tokenizer = load_generator(str(tiny_gpt2), ["<NEG>", "<POS>"])
    MambaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert rows_that_fit(tmp_path, load_config("quickstart"), 2**30, 256) == 256


def test_an_unembedding_with_more_rows_gives_the_same_tokens(mini, monkeypatch) -> None:
    """As on a GPU, where the vocabulary is rounded up for its kernels."""
    wanted = BatchEngine(*mini, torch.float32)(PROMPT, Unit(0, 0, 40), 1, SAMPLING)
    monkeypatch.setattr(gpt2, "_ROWS_OF_UNEMBEDDING", {"cpu": 1000})
    decoder = Decoder(mini[0], torch.float32)
    logits, prefix = decoder.prefill(PROMPT)
    assert logits[0].shape == (1, 8192) and logits[0].stride(0) == 9000
    assert BatchEngine(*mini, torch.float32)(PROMPT, Unit(0, 0, 40), 1, SAMPLING) == wanted
    uniforms = torch.from_numpy(candidate_uniforms(1, 0, 0, 40, SAMPLING.max_new_tokens))
    steps = GraphedSteps(decoder, mini[1].eos_token_id, record=False)
    assert steps(PROMPT, logits, prefix, uniforms, SAMPLING) == wanted


def test_running_out_of_memory_is_a_sentence() -> None:
    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):
        told = pytest.raises(ModelError, match=r"generation ran out of memory .*; take fewer")
        with told, memory_guarded("generation", "take fewer"):
            raise error
    with pytest.raises(RuntimeError, match="something else"), memory_guarded("a", "b"):
        raise RuntimeError("something else")
