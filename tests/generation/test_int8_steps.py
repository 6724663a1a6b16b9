"""Steps by our own kernels: they are those of the layers one by one, whoever shares the work."""

import copy
from collections.abc import Iterator

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from sentisynth.config.synthesis import SamplingConfig
from sentisynth.data.units import Unit
from sentisynth.generation.batch_engine import BatchEngine
from sentisynth.generation.gpt2 import Decoder
from sentisynth.models.kernels import library
from tests.conftest import RESOURCES
from tests.generation.test_engines import PROMPT, load_sampler

pytestmark = pytest.mark.skipif(
    library() is None, reason="needs a C++ compiler at installation, and a CPU with VNNI"
)
VOCABULARY, LAST = 501, 40


def model(**more: object) -> GPT2LMHeadModel:
    """Widths that fill no register, heads of 40."""
    torch.manual_seed(0)
    shape = {"n_embd": 120, "n_head": 3, "n_layer": 3, "vocab_size": VOCABULARY, **more}
    made = GPT2LMHeadModel(GPT2Config(n_positions=64, bos_token_id=0, eos_token_id=0, **shape))
    for parameter in made.parameters():
        parameter.data.normal_(0, 0.2)
    return made.eval()


def by_layers(monkeypatch: pytest.MonkeyPatch, of: GPT2LMHeadModel) -> Decoder:
    """The same decoder, whose layers are multiplied by oneDNN."""
    with monkeypatch.context() as patch:
        for module in ("models.int8", "generation.int8_steps"):
            patch.setattr(f"sentisynth.{module}.library", lambda: None)
        made = Decoder(copy.deepcopy(of), torch.int8)
    assert not made.threads_share_steps
    return made


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def logits(decoder: Decoder, rows: int, *, threads: int = 1) -> torch.Tensor:
    """(steps, rows, V) of random tokens; after half of the steps, every other row has left."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, VOCABULARY - 1, (LAST, rows), generator=generator)
    cache, kept, found = decoder.prefill([5, 6, 7])[1], torch.arange(rows), []
    cache = cache.spread(rows, 3 + LAST)
    for step, now in enumerate(tokens):
        if step == LAST // 2:
            kept = kept[::2]
            cache.keep(kept)
        row_logits, shift = decoder.step(now[kept], cache, threads)
        assert row_logits.shape == (len(kept), VOCABULARY)
        row_logits = row_logits if shift is None else row_logits + shift[:, None]
        found.append(row_logits[: (rows + 1) // 2].clone())
    return torch.stack(found)


@pytest.mark.parametrize("rows", [1, 13])
@pytest.mark.parametrize(
    "shape", [{}, {"activation_function": "relu"}, {"n_embd": 90, "n_head": 1, "n_inner": 50}]
)
@torch.inference_mode()
def test_a_step_is_what_its_layers_are(
    monkeypatch: pytest.MonkeyPatch, rows: int, shape: dict[str, object]
) -> None:
    """But for a rounding here and there that falls to the other side: as near to fp32 as they."""
    of = model(**shape)
    wanted = logits(Decoder(copy.deepcopy(of), torch.float32), rows)
    theirs = logits(by_layers(monkeypatch, of), rows)
    ours = logits(Decoder(copy.deepcopy(of), torch.int8), rows)
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).min() > 0.9995
    errors = [(found - wanted).std() for found in (ours, theirs)]
    assert errors[0] < 1.1 * errors[1] < 0.1 * wanted.std()


@pytest.mark.parametrize("threads", [2, 3, 7])
@torch.inference_mode()
def test_threads_that_share_a_step_change_nothing(threads: int) -> None:
    decoder = Decoder(model(), torch.int8)
    assert decoder.threads_share_steps
    for rows in (1, 9):
        assert torch.equal(logits(decoder, rows), logits(decoder, rows, threads=threads))


@torch.inference_mode()
def test_a_row_that_is_no_number_harms_no_other() -> None:
    decoder = Decoder(model(), torch.int8)
    wanted = logits(decoder, 4)
    decoder._wte[VOCABULARY - 1] = float("nan")
    tokens = torch.tensor([3, VOCABULARY - 1, 4])
    _, cache = decoder.prefill([5, 6, 7])
    cache = cache.spread(3, 8)
    for _ in range(2):
        row_logits, shift = decoder.step(tokens, cache)
        assert not (row_logits[1] + shift[1]).isfinite().any()
        assert (row_logits[::2] + shift[::2, None]).isfinite().all()
    assert torch.equal(wanted, logits(decoder, 4))


def test_an_activation_that_kernels_do_not_know() -> None:
    decoder = Decoder(model(activation_function="gelu"), torch.int8)
    assert not decoder.threads_share_steps
    assert logits(decoder, 2).isfinite().all()


def test_a_candidate_is_the_same_in_each_unit_and_with_any_threads() -> None:
    of, tokenizer = load_sampler(RESOURCES / "gpt2-mini")
    sampling = SamplingConfig(max_new_tokens=40, temperature=1.2)
    found = []
    for n_threads in (1, 2, 3):
        torch.set_num_threads(n_threads)
        engine = BatchEngine(copy.deepcopy(of), tokenizer, torch.int8)
        rows = engine(PROMPT, Unit(0, 0, 140), 1, sampling)
        assert engine(PROMPT, Unit(0, 6, 20), 1, sampling) == rows[120:]
        found.append(rows)
    assert found[0] == found[1] == found[2]
    assert len({len(row) for row in found[0]}) > 1
