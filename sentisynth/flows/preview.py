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
from sentisynth.flows.made import refuse_other_lengths
from sentisynth.flows.real_texts import real_texts
from sentisynth.stages.generate import Generate
from sentisynth.stages.screen import Screen
from sentisynth.stages.verify import Verify


def preview(config: RunConfig, out: Path, n: int) -> None:
    """Generate n candidates, classes in turn, with the models of a run directory.

    They are the first of a run with such small units that each prompt of a class has one: settings
    can be tried before a long run.
    Raises RunDirectoryError where the teacher or the generator is missing.
    """
    directory, console = RunDirectory(out), Console()
    directory.refuse_links()
    directory.pull()
    directory.require("corpus", "teacher …")
    refuse_other_lengths(config, directory)
    teacher = directory.require("teacher", "teacher …")
    generator = directory.require("generator", "generator …")
    names, tau = config.data.labels, config.synthesis.tau
    generate = Generate(generator, config)
    verify = Verify(teacher, config)
    screen = Screen(config.synthesis.screens, *real_texts(config, directory))
    units = _units(config, n)
    table = pa.concat_tables(verify(screen(generate(unit))) for unit in units)
    verdicts = judge(table, tau)
    rows = []
    for i, row in enumerate(table.to_pylist()):
        sure = "–"
        if row[schema.TEACHER_LOGITS] is not None:
            probability = softmax(logits_of(table.slice(i, 1)))[0, row[schema.LABEL]]
            sure = f"{probability:.2f}"
        rows.append([row[schema.TEXT], names[row[schema.LABEL]], sure, verdicts[i]])
    order = sorted(range(len(rows)), key=lambda row: row % units[0].size)[:n]  # units in turn
    columns = ["candidate", "intended", "teacher", "verdict"]
    console.table(f"{config.name}: candidates at τ {tau:g}", columns, [rows[i] for i in order])
    accepted = sum(verdicts[i] == schema.ACCEPTED for i in order)
    console.result(f"\naccepted {accepted} of {n} ({accepted / n:.0%})")


def _units(config: RunConfig, n: int) -> list[Unit]:
    """Units of all classes, and of each as many as it has prompts, that hold n candidates: the
    first n / size of them do, of which the prompts of neighbouring classes differ.
    """
    labels = range(len(config.data.labels))
    most = max(len(config.prompts(label)) for label in labels)
    size = -(-n // (len(labels) * most))
    units = [Unit(k, (turn + k) % most, size) for turn in range(most) for k in labels]
    return units[: -(-n // size)]
