"""results.csv: one row an epoch, every term in its own column."""

from __future__ import annotations

import csv
from pathlib import Path

from engine.callbacks import Callback, EpochRecord
from engine.trainer import Trainer
from utils.files import write_atomically


class CsvTable(Callback):
    """Rewrites the whole table each epoch: columns that appear late and rows after a resume fall into place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []

    def on_fit_start(self, trainer: Trainer) -> None:
        if trainer.start_epoch > 0 and self.path.exists():
            self.rows = [row for row in read_rows(self.path) if int(row["epoch"]) <= trainer.start_epoch]

    def on_epoch_end(self, trainer: Trainer, record: EpochRecord) -> None:
        values = {key: f"{value:.6g}" for key, value in record.row().items()}
        # a run may have gone back
        self.rows = [row for row in self.rows if int(row["epoch"]) <= record.epoch]
        self.rows.append({"epoch": str(record.epoch + 1), **values})
        columns = list(dict.fromkeys(key for row in self.rows for key in row))

        def write(path: Path) -> None:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, columns, restval="")
                writer.writeheader()
                writer.writerows(self.rows)

        write_atomically(self.path, write)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table that have an epoch; people open these files, and save them changed."""
    with path.open(newline="", errors="replace") as file:
        try:
            rows = [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(file)]
        except csv.Error:  # such as a field of megabytes
            return []
    return [row for row in rows if row.get("epoch", "").isdecimal()]
