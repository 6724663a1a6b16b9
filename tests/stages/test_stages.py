import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from sentisynth import schema
from sentisynth.config.load import load_config
from sentisynth.config.synthesis import ScreensConfig
from sentisynth.data.duplicates import DuplicateIndex, sketch
from sentisynth.data.units import Unit
from sentisynth.errors import PlacementError
from sentisynth.models.classifier import load_classifier
from sentisynth.models.devices import device_facts
from sentisynth.models.generator import load_generator
from sentisynth.runtime.actors import build_generate, build_screen
from sentisynth.stages.generate import Generate
from sentisynth.stages.screen import Screen, repetition, with_beginnings
from sentisynth.stages.verify import Verify

GOOD = "a warm and honest film about two brothers ."


def candidates(texts: list[str], n_tokens: int = 12) -> pa.Table:
    n = len(texts)
    return pa.table(
        {
            schema.CANDIDATE_ID: [schema.candidate_id(0, i) for i in range(n)],
            schema.LABEL: [0] * n,
            schema.TEXT: texts,
            schema.PROMPT: [""] * n,
            schema.N_TOKENS: [n_tokens] * n,
            schema.REJECT_REASON: pa.nulls(n, pa.string()),
            schema.TEACHER_LOGITS: pa.nulls(n, pa.list_(pa.float32())),
        },
        schema=schema.POOL,
    )


@pytest.mark.parametrize(
    ("text", "n_tokens", "reason"),
    [
        (GOOD, 12, None),
        ("", 12, schema.EMPTY),
        (GOOD, 6, schema.TOO_SHORT),
        (GOOD, 7, None),
        ("a film of great élan and wit .", 12, schema.CHARSET),
        ("good good good good good good good", 12, schema.REPETITION),
        ("so very bad , so very bad , so very bad ,", 12, schema.REPETITION),
        ("A test text, that nobody may learn from!", 12, schema.LEAK),
        ("a seed text that was learned by heart", 12, schema.SEED_COPY),
    ],
)
def test_each_screen_gives_its_reason(text: str, n_tokens: int, reason: str | None) -> None:
    screen = Screen(
        ScreensConfig(),
        ["a test text that nobody may learn from"],
        ["a seed text , that was learned by heart ."],
    )
    assert screen(candidates([text], n_tokens))[schema.REJECT_REASON].to_pylist() == [reason]


def test_reasons_are_given_row_by_row() -> None:
    """A leak hides no duplicate and makes none; of two reasons the first is told."""
    texts = [GOOD, "held out , word for word .", GOOD, "learned , word for word .", "", GOOD, "x"]
    held_out, learned = [texts[1]], [texts[3], texts[1]]
    table = Screen(ScreensConfig(), held_out, learned)(candidates([*texts, texts[1]]))
    assert table.schema.equals(schema.POOL)
    reasons = [None, "leak", "duplicate", "seed_copy", "empty", "duplicate", None, "leak"]
    assert table[schema.REJECT_REASON].to_pylist() == reasons


def test_a_near_copy_of_a_test_text_is_a_leak() -> None:
    long = "one of the most moving and honest films of the year with a cast that never misses"
    screen = Screen(ScreensConfig(near_duplicates=0.7), [long], [])
    table = screen(candidates([long.replace("misses", "errs")]))
    assert table[schema.REJECT_REASON].to_pylist() == [schema.LEAK]


def test_the_beginning_of_a_long_text_is_a_copy(tiny_gpt2: Path) -> None:
    """All that a generator of so many tokens can give back of a text that it knows by heart."""
    _, tokenizer = load_generator(str(tiny_gpt2), ["<A>"])
    long = " ".join(f"the {name} of word {i}" for i, name in enumerate(GOOD.split() * 8))
    begins = tokenizer.decode(tokenizer(long)["input_ids"][:40])
    told = candidates([begins, GOOD])
    given = Screen(ScreensConfig(), [], [long])(told)[schema.REJECT_REASON].to_pylist()
    assert given == [None, None]  # far from the whole text
    texts = with_beginnings([long, "short"], tokenizer, 40)
    assert texts[:2] == [long, "short"] and len(texts) == 3
    given = Screen(ScreensConfig(), [], texts)(told)[schema.REJECT_REASON].to_pylist()
    assert given == [schema.SEED_COPY, None]


def test_within_a_unit_the_first_of_equal_texts_stays() -> None:
    table = Screen(ScreensConfig(), [], [])(candidates([GOOD, GOOD.upper(), "another " + GOOD]))
    assert table[schema.REJECT_REASON].to_pylist()[:2] == [None, schema.DUPLICATE]


def test_a_candidate_without_a_text_keeps_its_reason() -> None:
    table = candidates(["", GOOD, ""])
    given = pa.array([schema.NON_FINITE, None, None], pa.string())
    table = table.set_column(5, schema.POOL.field(schema.REJECT_REASON), given)
    found = Screen(ScreensConfig(), [], [])(table)[schema.REJECT_REASON].to_pylist()
    assert found == [schema.NON_FINITE, None, schema.EMPTY]


def test_a_leak_is_one_whatever_else_is_held_out() -> None:
    """Three texts, of which the second is near to both others, and those not to each other."""
    told = "the acting is warm and the story of two old brothers who meet again by the sea is told"
    words = f"{told} with patience".split()
    first, second = " ".join(words), " ".join([*words[1:], "and", "grace"])
    third = candidates([" ".join([*words[3:], "and", "grace"])])
    for held_out in ([second], [first, second], [second, first]):
        for screen in (
            Screen(ScreensConfig(), held_out, []),
            Screen(ScreensConfig(), [], held_out),
        ):
            assert screen(third)[schema.REJECT_REASON].to_pylist() != [None]
    assert Screen(ScreensConfig(), [first], [])(third)[schema.REJECT_REASON].to_pylist() == [None]


def test_near_texts_of_a_unit_are_the_ledgers_to_find() -> None:
    """The lowest index stays: what goes for an earlier unit's text takes none of its own along."""
    words = [f"w{i}" for i in range(16)]
    one, two, three = (" ".join([*words[n:], *"xy"[:n]]) for n in range(3))
    table = Screen(ScreensConfig(), [], [])(candidates([two, three, two]))
    assert table[schema.REJECT_REASON].to_pylist() == [None, None, schema.DUPLICATE]
    seen = DuplicateIndex(ScreensConfig().near_duplicates)
    found = [seen.add_new(sketch(unit, seen.threshold)).tolist() for unit in ([one], [two, three])]
    assert found == [[False], [True, False]]


@pytest.mark.parametrize(("charset", "kept"), [("ascii", 1), ("latin", 2), ("any", 3)])
def test_charsets(charset: str, kept: int) -> None:
    texts = [
        "plain words of a plain film .",
        "un film d'un charme élégant .",
        "это хороший фильм .",
    ]
    table = Screen(ScreensConfig.model_validate({"charset": charset}), [], [])(candidates(texts))
    assert table[schema.REJECT_REASON].null_count == kept


def test_repetition_counts_repeated_pairs() -> None:
    assert repetition("a b a b a b") == pytest.approx(3 / 5)
    assert repetition(GOOD) == 0
    assert repetition("no no") == 0.5


@pytest.fixture
def generate(tmp_path: Path, tiny_gpt2: Path) -> Generate:
    model, tokenizer = load_generator(str(tiny_gpt2), ["<NEG>", "<POS>"])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    sizes = ["synthesis.unit_size=5", "synthesis.sampling.max_new_tokens=6"]
    return Generate(tmp_path, load_config("quickstart", sizes))


def test_an_actor_works_in_the_plans_precision_and_refuses_another_device(
    tmp_path: Path, generate: Generate
) -> None:
    del generate
    sizes = ["synthesis.unit_size=5", "synthesis.sampling.max_new_tokens=6"]
    texts, here = [], device_facts().name
    for precision in ("fp32", "bf16"):
        config = load_config("quickstart", [*sizes, f"synthesis.precision={precision}"])
        chosen = Generate(tmp_path, config)(Unit(0, 0, 5))
        planned = build_generate(tmp_path, load_config("quickstart", sizes), (here, precision))
        assert planned(Unit(0, 0, 5), None).equals(chosen)
        texts.append(chosen[schema.TEXT])
    assert not texts[0].equals(texts[1])
    with pytest.raises(
        PlacementError, match=f"on {re.escape(here)}, and this pool is made on H100"
    ):
        build_generate(tmp_path, load_config("quickstart", sizes), ("H100", "bf16"))


def test_generate_fills_a_unit(generate: Generate) -> None:
    table = generate(Unit(1, 1, 5))
    assert table.schema.equals(schema.POOL)
    assert table[schema.CANDIDATE_ID].to_pylist() == [f"1-{i}" for i in range(5, 10)]
    assert table[schema.LABEL].to_pylist() == [1] * 5
    assert all(0 < n <= 6 for n in table[schema.N_TOKENS].to_pylist())
    for name in (schema.REJECT_REASON, schema.TEACHER_LOGITS):
        assert table[name].null_count == 5


def test_a_unit_is_the_same_whatever_was_made_before_it(generate: Generate) -> None:
    first = generate(Unit(0, 0, 5))
    assert not generate(Unit(0, 1, 5))[schema.TEXT].equals(first[schema.TEXT])
    assert generate(Unit(0, 0, 5)).equals(first)


@pytest.fixture
def teacher(tmp_path: Path, tiny_bert: Path) -> Path:
    torch.manual_seed(1)
    model, tokenizer = load_classifier(str(tiny_bert), ["negative", "positive"])
    model.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def test_verify_scores_what_passed_and_nothing_else(teacher: Path) -> None:
    table = Screen(ScreensConfig(), [], [])(candidates([GOOD, "", "a dull and empty film ."]))
    scored = Verify(teacher, load_config("quickstart"))(table)
    assert scored.schema.equals(schema.POOL)
    assert [z is not None for z in scored[schema.TEACHER_LOGITS].to_pylist()] == [True, False, True]
    assert scored[schema.REJECT_REASON].to_pylist() == [None, schema.EMPTY, None]


def test_logits_that_are_no_numbers_are_a_reason_not_a_crash(teacher: Path) -> None:
    verify = Verify(teacher, load_config("quickstart"))
    with torch.no_grad():
        verify._model.classifier._bias[0] = float("nan")
    scored = verify(candidates([GOOD]))
    assert scored[schema.REJECT_REASON].to_pylist() == [schema.NON_FINITE]
    assert scored[schema.TEACHER_LOGITS].to_pylist() == [None]


class Refusing:
    """A tokenizer that cannot read texts with a word in them; their company is read as before."""

    def __init__(self, tokenizer: Any, word: str) -> None:
        self._tokenizer, self._word = tokenizer, word

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, texts: list[str], **options: Any) -> Any:
        if any(self._word in text for text in texts):
            raise ValueError(f"{self._word} is beyond me")
        return self._tokenizer(texts, **options)


def test_a_text_that_the_tokenizer_refuses_is_a_reason_and_the_others_are_scored(
    teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    verify = Verify(teacher, load_config("quickstart"))
    table = candidates([GOOD, "an unspeakable film about two sisters .", "", "a dull film ."])
    table = Screen(ScreensConfig(), [], [])(table)
    wanted = verify(table)[schema.TEACHER_LOGITS].to_pylist()
    verify._tokenizer = Refusing(verify._tokenizer, "unspeakable")
    scored = verify(table)
    assert scored.schema.equals(schema.POOL)
    reasons = [None, schema.UNTOKENIZABLE, schema.EMPTY, None]
    assert scored[schema.REJECT_REASON].to_pylist() == reasons
    found = scored[schema.TEACHER_LOGITS].to_pylist()
    assert found[1] is None and found[2] is None
    assert np.allclose([found[0], found[3]], [wanted[0], wanted[3]], atol=1e-5)
    (record,) = caplog.records
    assert "refuses 'an unspeakable film about two sisters .': unspeakable is" in record.message


def test_the_real_tokenizer_refuses_half_a_character_alone(teacher: Path) -> None:
    """No Arrow table can hold one, so the stage is asked below its tables."""
    verify = Verify(teacher, load_config("quickstart"))
    found = verify._tokenize([GOOD, "half a smile \ud83d", "a dull film ."])
    assert [ids is not None for ids in found] == [True, False, True]
    assert found[::2] == verify._tokenize([GOOD, "a dull film ."])


def test_a_unit_of_which_every_text_is_refused_has_no_logits(teacher: Path) -> None:
    verify = Verify(teacher, load_config("quickstart"))
    verify._tokenizer = Refusing(verify._tokenizer, "film")
    scored = verify(candidates([GOOD, "a dull film ."]))
    assert scored[schema.REJECT_REASON].to_pylist() == [schema.UNTOKENIZABLE] * 2
    assert scored[schema.TEACHER_LOGITS].to_pylist() == [None, None]


def test_verify_passes_on_a_unit_without_survivors(teacher: Path) -> None:
    table = Screen(ScreensConfig(), [], [])(candidates(["", ""]))
    scored = Verify(teacher, load_config("quickstart"))(table)
    assert scored[schema.TEACHER_LOGITS].to_pylist() == [None, None]


def test_the_screen_of_the_stream_has_both_kinds_of_real_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held_out, seed = (
        ["a slow film that finds its heart late"],
        ["two hours of noise and no plot at all"],
    )
    monkeypatch.setattr("ray.get", lambda sent: sent)  # no session: others have ended theirs
    screen = build_screen(ScreensConfig(), [(held_out, seed)])
    table = screen(Unit(0, 0, 2), candidates([*held_out, *seed], 9))
    assert table[schema.REJECT_REASON].to_pylist() == [schema.LEAK, schema.SEED_COPY]
