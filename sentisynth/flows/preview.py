"""A few candidates with the teacher's verdicts, on the terminal; nothing is written. No Ray."""

from pathlib import Path

import pyarrow as pa

from sentisynth import schema
from sentisynth.config.types import RunConfig
from sentisynth.data.ledger import judge
from sentisynth.data.logits import logits_of, softmax
from sentisynth.data.run_directory import RunDirectory
from sentisynth.data.units import Unit
from sentisynth.flows.console import Console
from sentisynth.stages.generate import Generate
from sentisynth.stages.screen import Screen
from sentisynth.stages.verify import Verify
from sentisynth.training.jobs import read_splits


def preview(config: RunConfig, out: Path, n: int) -> None:
    """Generate n candidates, classes in turn, with the models of a run directory.

    They are the first of a run with units of n / K rows: settings can be tried before a long run.
    Raises RunDirectoryError where the teacher or the generator is missing.
    """
    directory, console = RunDirectory(out), Console()
    directory.refuse_links()
    directory.pull()
    corpus = read_splits(directory.require("corpus", "teacher …"))
    teacher = directory.require("teacher", "teacher …")
    generator = directory.require("generator", "generator …")
    names, tau = config.data.labels, config.synthesis.tau
    generate = Generate(generator, config)
    verify = Verify(teacher, config)
    held_out = [corpus[name][schema.TEXT].to_pylist() for name in ("validation", "test")]
    screen = Screen(
        config.synthesis.screens, held_out[0] + held_out[1], corpus["seed"][schema.TEXT].to_pylist()
    )
    size = -(-n // len(names))
    table = pa.concat_tables(
        verify(screen(generate(Unit(label, 0, size)))) for label in range(len(names))
    )
    verdicts = judge(table, tau)
    rows = []
    for i, row in enumerate(table.to_pylist()):
        sure = "–"
        if row[schema.TEACHER_LOGITS] is not None:
            probability = softmax(logits_of(table.slice(i, 1)))[0, row[schema.LABEL]]
            sure = f"{probability:.2f}"
        rows.append([row[schema.TEXT], names[row[schema.LABEL]], sure, verdicts[i]])
    order = [label * size + i for i in range(size) for label in range(len(names))][:n]
    columns = ["candidate", "intended", "teacher", "verdict"]
    console.table(f"{config.name}: candidates at τ {tau:g}", columns, [rows[i] for i in order])
    accepted = sum(verdicts[i] == schema.ACCEPTED for i in order)
    console.result(f"\naccepted {accepted} of {n} ({accepted / n:.0%})")
