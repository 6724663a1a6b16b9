"""Stage D: from the pool to the dataset, by τ, the quota, T, β and the split."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sentisynth import schema
from sentisynth.config.references import portable
from sentisynth.data.files import sha256_file, write_json, write_table, write_text
from sentisynth.data.logits import logits_of
from sentisynth.data.manifest import read_manifest, read_receipts
from sentisynth.data.select import real_rows, select, split_synthetic, synthetic_rows
from sentisynth.errors import RunDirectoryError
from sentisynth.flows.parts import dataset_parts
from sentisynth.flows.session import Session
from sentisynth.runtime.tracking import StageLog
from sentisynth.training.jobs import read_splits


def build_dataset(session: Session) -> None:
    """Stage D: apply τ, the quota, T, β and the split to the pool."""
    config, directory = session.config, session.directory
    synthesis, distil = config.synthesis, config.distil
    title = f"D  dataset: τ {synthesis.tau:g}, β {distil.beta:g}, T {distil.temperature:g}"
    parts = dataset_parts(session)

    def build(out: Path, log: StageLog) -> None:
        manifest = read_manifest(directory.pool)
        if manifest is None:
            raise RunDirectoryError(
                f"the pool in {directory.path} is not finished; run `sentisynth synthesize …` first"
            )
        labels, near = range(len(config.data.labels)), synthesis.screens.near_duplicates
        if manifest["plan"] != parts["plan"]:
            raise RunDirectoryError(
                f"the pool in {directory.path} was made under other settings; run `sentisynth "
                f"synthesize …` with the same ones first, or choose another directory with --out"
            )
        chosen, ledgers = select(
            (read_receipts(directory.pool, manifest, label, near) for label in labels),
            tau=synthesis.tau,
            n_per_class=synthesis.n_per_class,
            near_duplicates=near,
        )
        tables = split_synthetic(
            synthetic_rows(chosen, beta=distil.beta, temperature=distil.temperature), config.seed
        )
        directory.refuse_damaged("teacher")
        corpus = read_splits(directory.stage("corpus"))
        real = {
            name: real_rows(table, _teacher_logits(session, name), temperature=distil.temperature)
            for name, table in corpus.items()
        }
        tables["train"] = pa.concat_tables([real["seed"], tables["train"]])
        tables |= {name: real[name] for name in ("validation", "test")}
        for name, table in tables.items():
            path = out / f"{name}.parquet"
            write_table(path, table)
            log.dataset(name, directory.dataset / path.name, sha256_file(path), table.num_rows)
        log.metrics({name: {"rows": table.num_rows} for name, table in tables.items()})
        write_text(out / "README.md", _card(session, tables))
        names = config.data.labels
        write_json(
            out / "ledger.json",
            {name: ledger.as_dict() for name, ledger in zip(names, ledgers, strict=True)},
        )

    session.do("dataset", title, parts, build)


def _teacher_logits(session: Session, split: str) -> Any:
    path = session.directory.stage("teacher") / "predictions" / f"{split}.parquet"
    return logits_of(pq.read_table(path), schema.LOGITS)


def _card(session: Session, tables: dict[str, pa.Table]) -> str:
    config, source = session.config, portable(session.config)["data"]["source"]
    rows = "\n".join(f"| `{name}.parquet` | {table.num_rows:,} |" for name, table in tables.items())
    return f"---\n{schema.SPLITS}---\n" + (
        f"# {config.name}: dataset\n\n"
        f"Real rows of `{source}` and rows made by a generator and verified by a "
        f"teacher (sentisynth, seed {config.seed}). Classes: {', '.join(config.data.labels)}.\n\n"
        f"| file | rows |\n| --- | --- |\n{rows}\n\n"
        f"Load it by its directory, `datasets.load_dataset(DIR)`; by single files, name each: a "
        f"pattern such as `*validation*` would join synthetic rows to the real ones.\n\n"
        f"`train` joins {config.data.n_seed:,} real rows with 90 % of the synthetic ones. "
        f"`validation` and `test` are real rows only. The other two hold 5 % of the synthetic rows "
        f"each: they measure drift of the generator and are never used to judge a student "
        f'(`load_dataset(DIR, "drift")`).\n\n'
        f"Columns: `text`; `labels` (the class's position); `soft_labels`, the teacher's "
        f"softmax(logits / {config.distil.temperature:g}); `weights`, 1 for real and "
        f"{config.distil.beta:g} for synthetic rows; `is_synth`; `candidate_id`, the row of the "
        f"pool. A synthetic row was accepted at τ = {config.synthesis.tau:g}.\n"
    )
