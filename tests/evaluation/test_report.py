"""The page of a run: it says what metrics.json and the pool say, alone, and lets no text act."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sentisynth import schema
from sentisynth.config.types import RunConfig
from sentisynth.data.files import write_json
from sentisynth.data.pool import PoolReader
from sentisynth.data.receipts import Receipt
from sentisynth.data.run_directory import RunDirectory
from sentisynth.data.units import Unit, write_unit
from sentisynth.evaluation import report
from sentisynth.evaluation.metrics import classification
from sentisynth.evaluation.plots import learning_curves
from sentisynth.evaluation.report import render_report
from sentisynth.evaluation.sentences import gain_sentence

TAU = 0.8
LABELS = ("negative", "positive")
ACTIVE = '<script>alert(1)</script> & "quoted" <img src=x onerror=alert(2)>'
# One unit: text, reason of a screen, and the teacher's probability of the intended class.
ROWS: list[tuple[str, str | None, float | None]] = [
    ("a fine film about a dog and a boat", None, 0.95),
    (ACTIVE, None, 0.9),
    ("bad .", schema.TOO_SHORT, None),
    ("it was here or there , who knows", None, 0.7),
    ("quite the contrary of what was asked", None, 0.1),
    ("the very words of a row of the test", schema.LEAK, None),
    ("", schema.EMPTY, None),
    ("one more fine film about one more cat", None, 0.99),
]
SIZE = len(ROWS)


def unit(label: int, number: int, n_classes: int, *, repeated: bool) -> pa.Table:
    """ROWS as a unit; all texts but the last are those of every unit if `repeated`."""
    rows: dict[str, list[Any]] = {name: [] for name in schema.POOL.names}
    for i, (text, reason, probability) in enumerate(ROWS):
        logits = None
        if probability is not None:
            probs_K = np.full(n_classes, (1 - probability) / (n_classes - 1))
            probs_K[label] = probability
            logits = np.log(probs_K).astype(np.float32)
        rows["candidate_id"].append(schema.candidate_id(label, number * SIZE + i))
        rows["label"].append(label)
        is_own = bool(text) and (not repeated or i == SIZE - 1)
        rows["text"].append(f"{text} {label}.{number}" if is_own else text)
        rows["prompt"].append("")
        rows["n_tokens"].append(len(text.split()))
        rows["reject_reason"].append(reason)
        rows["teacher_logits"].append(logits)
    return pa.table(rows, schema=schema.POOL)


def add_pool(run: Path, labels: tuple[str, ...], *, repeated: bool = False) -> dict[str, Any]:
    """A pool of two units a class, and what metrics.json says of the synthetic set."""
    config = RunConfig.model_validate(
        {
            "name": "tiny",
            "data": {"source": "x.csv", "validation": 8, "test": 8, "labels": labels},
            "teacher": {"model": "t"},
            "generator": {"model": "g"},
            "student": {"model": "s"},
            "synthesis": {
                "tau": TAU,
                "n_per_class": 4,
                "unit_size": SIZE,
                "screens": {"near_duplicates": 1},
            },
        }
    )
    pool, reader = run / "pool", PoolReader(run / "pool", config, "plan")
    for label in range(len(labels)):
        for number in range(2):
            table = unit(label, number, len(labels), repeated=repeated)
            sha256 = write_unit(table, Unit(label, number, SIZE), pool, "plan")
            reader.offer(Receipt.of(table, Unit(label, number, SIZE), sha256, 1.0))
    ledger = reader.publish()["ledger"]
    directory = RunDirectory(run)
    directory.stamp(pool, {"synthesis": config.synthesis.model_dump(mode="json")})
    directory.stamp(directory.dataset, {"tau": TAU, "n_per_class": 4, "beta": 0.3})
    return {
        "tau": TAU,
        "n_per_class": 4,
        "rows": dict.fromkeys(labels, 4),
        "ledger": ledger,
        "acceptance": {name: e["accepted"] / e["generated"] for name, e in ledger.items()},
        "distinct_1": 0.25,
        "distinct_2": 0.5,
        "soft_label_entropy": 0.125,
    }


def add_arm(run: Path, name: str, title: str, k: int, errors: int) -> dict[str, Any]:
    """A trained arm that is wrong about the first `errors` of 8 rows a class."""
    labels_N = np.repeat(np.arange(k), 8)
    predicted_N = np.where(np.arange(8 * k) % 8 < errors, (labels_N + 1) % k, labels_N)
    figures = classification(labels_N, predicted_N, k)
    evaluations = [{"step": s, "macro_f1": 0.4 + s / 100, "train_loss": 0.5} for s in (10, 20)]
    write_json(run / name / "metrics.json", {"evaluations": evaluations})
    kept = {"parameters": 1_500_000, "best_step": 20, "steps": 20, "seconds": 68.1}
    return {"name": name, "title": title, **kept, "validation": figures, "test": figures}


def finished(
    run: Path, labels: tuple[str, ...] = LABELS, *, repeated: bool = False
) -> dict[str, Any]:
    """Fill a run directory and return its metrics."""
    k = len(labels)
    perplexities = [{"step": 5, "perplexity": 31.25}, {"step": 10, "perplexity": 29.5}]
    write_json(run / "generator" / "metrics.json", {"evaluations": perplexities})
    return {
        "name": "tiny",
        "seed": 41,
        "labels": list(labels),
        "source": "x.csv",
        "rows": {"seed": 100, "validation": 8 * k, "test": 8 * k},
        "arms": [
            add_arm(run, "teacher", "teacher", k, 1),
            add_arm(run, "student_real", "student, real rows", k, 3),
            add_arm(run, "student", "student, real + synthetic", k, 2),
        ],
        "generator": {"perplexity": 29.5, "frozen_blocks": 4, "best_step": 10},
        "synthesis": add_pool(run, labels, repeated=repeated),
        "gain": {
            "from": "student_real",
            "to": "student",
            "macro_f1": 0.125,
            "low": 0.01,
            "high": 0.2,
        },
    }


def synthesised(run: Path, *, repeated: bool = False) -> dict[str, Any]:
    """Fill a run directory that has a synthetic set and no student yet."""
    metrics = finished(run, repeated=repeated)
    return {k: v for k, v in metrics.items() if k not in ("gain", "generator")} | {"arms": []}


class Page(HTMLParser):
    """What a browser makes of a page: words, tags with attributes, headings; tags must match."""

    VOID = ("meta", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self._words: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self._words.append(data)

    @property
    def text(self) -> str:
        """Everything that is read, with single spaces."""
        return " ".join(" ".join(self._words).split())

    def sections(self) -> list[str | None]:
        return [attrs["id"] for tag, attrs in self.tags if tag == "section"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def metrics(run: Path) -> dict[str, Any]:
    """Of `run`, which is a finished one."""
    return finished(run)


@pytest.fixture(scope="module")
def html(run: Path, metrics: dict[str, Any]) -> str:
    return render_report(RunDirectory(run), metrics)


ALL = ["arms", "training", "confusion", "synthesis", "samples", "sources"]


def test_the_answer_comes_first_and_the_figures_are_those_of_metrics(
    metrics: dict[str, Any], html: str
) -> None:
    page = Page(html)
    student = f"{metrics['arms'][2]['test']['macro_f1']:.3f}"
    answer = page.text.index(f"The student reaches a macro-F1 of {student} on 16 real test rows")
    gain = page.text.index("gave the student +12.5 points of test macro-F1 (95% interval +1.0 to")
    assert answer < gain < page.text.index("Arms")
    assert page.sections() == ALL
    row = f"student, real + synthetic {student} {student} 0.750 1.5 M 1 min 08 s 20 of 20"
    assert row in page.text
    assert "negative 16 2 2 2 10 2 2 6 38%" in page.text  # generated, screens, scored, verdicts
    assert "0.125 nats, of at most 0.693" in page.text
    assert "Perplexity kept 29.5" in page.text


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.01, 0.03, "gave the student +2.0 points"),
        (-0.03, -0.01, "cost the student"),
        (-0.01, 0.05, "contains zero"),
        (0.0, 0.04, "contains zero"),
    ],
)
def test_a_gain_is_claimed_only_if_the_interval_is_clear_of_zero(
    low: float, high: float, expected: str
) -> None:
    sentence = gain_sentence({"macro_f1": (low + high) / 2, "low": low, "high": high})
    assert expected in sentence
    assert ("gave" in sentence) == (low > 0)


def test_the_ring_is_at_the_weights_that_were_kept() -> None:
    """By the validation loss, they need not be those of the highest macro-F1."""
    entries = [{"step": 10, "macro_f1": 0.6}, {"step": 20, "macro_f1": 0.7}]
    assert "s: kept 0.600 at step 10." in learning_curves({"s": entries}, {"s": 10}).alt


def test_the_page_loads_nothing_and_runs_nothing(html: str) -> None:
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "img", "base"} & {t for t, _ in page.tags}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "action", "srcset"):
                assert value is not None
                assert value.startswith("#")
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    assert "@import" not in html
    assert "http" not in html


def test_every_reference_inside_the_page_has_one_target(html: str) -> None:
    ids = [attrs["id"] for _, attrs in Page(html).tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    targets = set(re.findall(r'(?:href="|url\()#([^")]+)', html))
    assert targets
    assert targets <= set(ids)


def test_generated_text_and_class_names_are_shown_not_obeyed(tmp_path: Path) -> None:
    labels = ("<b>bad</b>", "$x_1$ & <script>")
    html = render_report(RunDirectory(tmp_path), finished(tmp_path, labels))
    page = Page(html)
    assert ACTIVE in page.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert not {"script", "b", "img"} & {tag for tag, _ in page.tags}
    assert page.text.count("$x_1$ & <script>") > 5  # in the plots as well


def test_samples_are_the_first_of_each_verdict_with_the_teachers_probability(html: str) -> None:
    text = Page(html).text
    accepted, rejected = text.split("Accepted negative")[1].split("Rejected", 1)
    assert "0.95 a fine film about a dog and a boat 0.0" in accepted
    assert "contrary" not in accepted
    assert accepted.count("a fine film about a dog") == 4
    assert "– bad . 0.0 for negative – bad . 1.0 for positive" in rejected
    assert "0.70 it was here or there , who knows 0.0 for negative" in rejected
    assert "asked 0.0 for negative; the teacher says positive, 0.90" in rejected
    assert "– (empty)" in rejected
    order = ["empty", "too short", "leak", "wrong label", "below τ"]
    places = [rejected.index(f"{reason} 4 in all:") for reason in order]
    assert places == sorted(places)


def test_every_reason_has_its_words() -> None:
    assert set(report._REASONS) == {
        *schema.SCREEN_REASONS,
        schema.WRONG_LABEL,
        schema.BELOW_TAU,
    }


def test_a_text_of_an_earlier_unit_is_no_accepted_sample(tmp_path: Path) -> None:
    text = Page(render_report(RunDirectory(tmp_path), synthesised(tmp_path, repeated=True))).text
    accepted, rejected = text.split("Accepted negative")[1].split("Rejected", 1)
    assert accepted.count("a fine film about a dog") == 2  # once a class
    assert "duplicate 8 in all" in rejected
    assert "wrong label 2 in all" in rejected
    assert rejected.count("quite the contrary") == 2


def test_of_a_large_pool_only_the_first_candidates_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = synthesised(tmp_path)
    Unit(0, 1, SIZE).path(tmp_path / "pool").write_bytes(b"never looked at")
    monkeypatch.setattr(report, "_CANDIDATES_OF_CLASS", (5, 5))
    text = Page(render_report(RunDirectory(tmp_path), metrics)).text
    assert "from the first candidates of each class, at most 5" in text
    assert "one more fine film" not in text


@pytest.mark.parametrize(
    ("absent", "sections"),
    [
        ({"gain", "generator"}, ALL),
        ({"synthesis", "gain"}, ["arms", "training", "confusion", "sources"]),
        ({"arms", "gain"}, ["training", "synthesis", "samples", "sources"]),
        ({"arms", "gain", "synthesis"}, ["training", "sources"]),
        ({"arms", "gain", "synthesis", "generator"}, ["sources"]),
    ],
)
def test_what_was_not_run_is_left_out(
    run: Path, metrics: dict[str, Any], absent: set[str], sections: list[str]
) -> None:
    kept = {name: value for name, value in metrics.items() if name not in absent}
    page = Page(render_report(RunDirectory(run), {"arms": [], **kept}))
    assert page.sections() == sections
    assert ("No classifier has been trained yet" in page.text) == ("arms" in absent)


def test_metrics_without_the_stages_directories_still_make_a_page(
    tmp_path: Path, metrics: dict[str, Any]
) -> None:
    teacher = {**metrics, "arms": metrics["arms"][:1]}
    del teacher["gain"]
    page = Page(render_report(RunDirectory(tmp_path), teacher))
    assert page.sections() == [name for name in ALL if name != "samples"]
    assert "The teacher reaches" in page.text
    assert "No student has been trained yet." in page.text


def test_the_same_run_is_the_same_page(run: Path, metrics: dict[str, Any], html: str) -> None:
    assert render_report(RunDirectory(run), metrics) == html


def test_many_classes_with_long_names(tmp_path: Path) -> None:
    labels = tuple(f"a name of a class that goes on and on, number {i}" for i in range(9))
    text = Page(render_report(RunDirectory(tmp_path), finished(tmp_path, labels))).text
    assert "Synthetic rows: 36 in 9 classes, from 144 candidates" in text
    assert all(text.count(name) > 4 for name in labels)
