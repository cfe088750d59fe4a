"""table.jsonl of a study: what each cell that is done found, with every way of counting parameters and FLOPs.

What is fitted stands there: the grid and its repeats. Hold-outs and runs from scratch have tables of their own.
"""

import fcntl
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmscale.data.manifest import MANIFEST
from bmscale.errors import BadInput
from bmscale.experiment import RunFolder
from bmscale.model.config import EncoderDecoderConfig, TransformerConfig
from bmscale.model.sizes import count_blocks, count_parameters
from bmscale.scaling.study import Cell, Study, Trunk
from bmscale.training import record


@dataclass(frozen=True)
class Parameters:
    """The conventions of N; published exponents differ by which of them was used."""

    all: int
    """Every parameter, tied ones once."""
    non_embedding: int
    """Blocks and last norms."""
    with_head: int
    """These and the head, V x D, whether it is tied or not: what the matrix products of a token go through."""
    encoder: int
    """Blocks and last norm of the encoder, 0 where there is none."""
    decoder: int
    """Blocks, cross-attention included, and last norm of the decoder."""

    @classmethod
    def of(cls, config: TransformerConfig) -> "Parameters":
        """Counted from the shape."""
        counted = count_parameters(config)
        blocks = [depth * size for depth, size in count_blocks(config)]
        norm = (counted.non_embedding - sum(blocks)) // len(blocks)
        parts = [size + norm for size in blocks]
        encoder = parts[0] if isinstance(config, EncoderDecoderConfig) else 0
        head = config.vocab_size * config.hidden_size
        return cls(counted.total, counted.non_embedding, counted.non_embedding + head, encoder, parts[-1])


def final_loss(run: RunFolder, steps: int) -> dict[str, Any] | None:
    """Loss, tokens and seconds at the end of a run that is done; None for one that is not."""
    if (record.read_exit(run) or {}).get("class") != "done" or not run.metrics.is_file():
        return None
    found: dict[str, Any] = {}
    for line in run.metrics.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        if "valid_loss" in values and values["step"] == steps:
            found |= {"loss": values["valid_loss"], "tokens": values["tokens"]}
        if "lr" in values:
            found["seconds"] = values["seconds"]
    return found if found.get("loss") is not None else None


def is_done(study: Study, cell: Cell) -> bool:
    """Whether the cell has its loss."""
    return final_loss(study.run_folder(cell.name), cell.steps) is not None


def line_of(study: Study, trunk: Trunk, cell: Cell) -> dict[str, Any] | None:
    """The cell's line; None where it is not done.

    `loss` is that of the whole validation set at the last step (nats a target token, in the precision of training);
    N, N_… are as in Parameters, N_e and N_d only where there are two stacks; D are target tokens, U those of them that
    are different ones; cells of one `group` share a trunk, so that they are not independent; C is counted from the
    lengths of the texts, with attention and head, C_6ND is 6 N D; `started` is when the cell began to be trained;
    `seconds` include the trunk's up to the branch.
    """
    run = study.run_folder(cell.name)
    found = final_loss(run, cell.steps)
    if found is None:
        return None
    config, experiment = study.shape(cell.size), study.cell_experiment(trunk, cell)
    count, training = Parameters.of(config), experiment.training
    epoch = tokens_of_an_epoch(experiment.data.directory)
    tokens = int(found["tokens"])
    return {
        "cell": cell.name,
        "group": trunk.name,
        "kind": cell.kind,
        "size": cell.size,
        "seed": cell.seed,
        "budget": cell.budget,
        "budget_unit": "flops" if study.config.flops is not None else "tokens",
        "N": count.all,
        "N_non_embedding": count.non_embedding,
        "N_with_head": count.with_head,
        **({"N_e": count.encoder, "N_d": count.decoder} if isinstance(config, EncoderDecoderConfig) else {}),
        "width": config.hidden_size,
        "layers": [depth for depth, _ in count_blocks(config)],
        "D": tokens,
        "U": tokens if epoch is None else min(tokens, epoch),
        "C": round(tokens / study.tokens_per_step * trunk.flops_per_step),
        "C_6ND": 6 * count.all * tokens,
        "loss": found["loss"],
        "precision": training.precision,
        "learning_rate": training.optimizer.learning_rate,
        "schedule": "wsd",
        "warmup_steps": trunk.warmup_steps,
        "cooldown_steps": cell.steps - cell.branch_step,
        "steps": cell.steps,
        "tokens_per_step": training.tokens_per_step,
        "started": record.read(run).starts[0]["time"],
        "seconds": found.get("seconds"),
        "run": str(run.path),
    }


def _splits(directory: str) -> dict[str, Any]:
    path = Path(directory) / MANIFEST
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["splits"]
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{path}: damaged; `bmscale scaling run STUDY --prepare` says how to make it again") from None
    return found


def tokens_of_an_epoch(directory: str) -> int | None:
    """Target tokens (of documents, tokens) of the training data, None where the manifest does not say."""
    train = _splits(directory)["train"]
    tokens: int | None = train.get("target_tokens", train.get("tokens"))
    return tokens


def irreducible(study: Study) -> dict[str, float] | None:
    """What is known of the loss of the validation set (`data/synthetic.py`); None for text of people."""
    sources = _splits(study.plain.data.directory)["valid"]["sources"]
    found: dict[str, float] | None = sources[0].get("irreducible_loss") if len(sources) == 1 else None
    return found


TABLES = {"grid": "table", "repeat": "table", "holdout": "holdouts", "from_scratch": "from_scratch"}
"""The file of each kind of cell, without its ending."""


def check_counted(study: Study) -> None:
    """Raises BadInput where a cell that is done has other steps than the study gives it now: it would not be found."""
    steps = {cell.name: cell.steps for trunk in study.trunks for cell in trunk.cells}
    for path in _tables(study):
        for cell, row in _rows(path).items():
            if steps.get(cell, row["steps"]) != row["steps"]:
                raise BadInput(
                    f"{path}: {cell}: was trained for {row['steps']:,} steps, which the study counts as "
                    f"{steps[cell]:,} now: its data or training.tokens_per_step was another, or bmscale was. Choose "
                    "another --folder, or give the study its values back"
                )


def _tables(study: Study) -> list[Path]:
    return [study.table.with_name(f"{name}.jsonl") for name in dict.fromkeys(TABLES.values())]


def _rows(path: Path) -> dict[str, dict[str, Any]]:
    """The lines of a table by cell; none where there is no file. Raises BadInput for others than write_tables has."""
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], start=1):
        try:
            row = json.loads(line)
            found[row["cell"]] = {**row, "steps": int(row["steps"])}
        except (ValueError, TypeError, KeyError):
            raise BadInput(
                f"{path}: line {number}: must be a JSON object with cell and steps; got {line[:80]!r}. Put the file "
                "aside: it is made anew from the runs"
            ) from None
    return found


def write_tables(study: Study) -> int:
    """Write a line for each cell that is done, by whatever process; several may call it at the same time. Returns how
    many there are."""
    study.folder.mkdir(parents=True, exist_ok=True)
    with (study.folder / ".table.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = {cell: row for path in _tables(study) for cell, row in _rows(path).items()}
        known, rows = irreducible(study), []
        for trunk in study.trunks:
            for cell in trunk.cells:
                line = line_of(study, trunk, cell)
                if line is not None:
                    rows.append(line | ({"irreducible_loss": known["drawn"]} if known else {}))
                elif cell.name in before and not study.run_folder(cell.name).path.exists():
                    rows.append(before[cell.name])  # of a run whose folder was put away
        for path in _tables(study):
            text = "".join(json.dumps(row) + "\n" for row in rows if TABLES[row["kind"]] == path.stem)
            if text or path == study.table or path.exists():
                path.with_suffix(".tmp").write_text(text, encoding="utf-8")
                path.with_suffix(".tmp").replace(path)
    return len(rows)
