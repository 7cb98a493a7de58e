"""Items of tables, which may embed files: a parquet file, or a data set of `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .columns import ItemError, column_of
from .source import Source, id_of

ROWS = 1024  # ids read of a parquet file at a time


class Table(Source):
    """A parquet file or a data set: rows may hold files, so items only name rows, and workers read them."""

    def __init__(self, task: str, name: str, split: str = "train"):
        super().__init__(task, name, split)
        self._opened = None

    def items(self) -> Iterator[dict]:
        self.note_columns(self.column_names)
        ids = self._ids() if "id" in self.column_names else ({} for _ in range(len(self)))
        for number, row in enumerate(ids):
            yield {"id": id_of(row, number), "row": number}

    def read(self, number: int) -> dict:
        """The whole item of a row."""
        item = self.item(number, self._row(number), self._folder)
        if "error" in item:
            raise ItemError(*item["error"])
        return item

    # A parquet file is read by pyarrow alone, which knows nothing of its origin; a data set by `datasets`.

    @property
    def _is_file(self) -> bool:
        return Path(self.name).is_file()

    @property
    def _folder(self) -> Path | None:
        return Path(self.name).resolve().parent if Path(self.name).exists() else None

    def _open(self):
        if self._opened is None:
            if self._is_file:
                import pyarrow.parquet as parquet

                try:
                    self._opened = parquet.ParquetFile(self.name)
                except (OSError, ValueError) as error:
                    raise ValueError(f"{self.name} is no parquet file ({error}).") from error
                groups = [self._opened.metadata.row_group(i).num_rows for i in range(self._opened.num_row_groups)]
                self._starts = [sum(groups[:i]) for i in range(len(groups))]
                self._group = (-1, None)
            else:
                self._opened = self._data_set()
        return self._opened

    def _data_set(self):
        import datasets

        if Path(self.name).is_dir():
            found = datasets.load_from_disk(self.name)
            found = found[self.split] if isinstance(found, datasets.DatasetDict) else found
        else:
            name, _, config = self.name.partition(":")
            try:
                found = datasets.load_dataset(name, config or None, split=self.split)
            except (datasets.exceptions.DatasetNotFoundError, ConnectionError, FileNotFoundError) as error:
                raise ValueError(f"there is no file, folder or data set {self.name!r} in reach ({error}).") from error
        for name, feature in found.features.items():
            found = found.cast_column(name, _undecoded(feature))
        return found

    def __len__(self) -> int:
        opened = self._open()
        return opened.metadata.num_rows if self._is_file else len(opened)

    @property
    def column_names(self) -> list[str]:
        opened = self._open()
        return opened.schema_arrow.names if self._is_file else opened.column_names

    @property
    def fingerprint(self) -> str:
        """Of what the table holds, to notice that it was changed."""
        opened = self._open()
        if self._is_file:
            stat = Path(self.name).stat()
            return f"{stat.st_size}-{stat.st_mtime_ns}"
        return opened._fingerprint

    def _ids(self) -> Iterator[dict]:
        opened = self._open()
        if self._is_file:
            for batch in opened.iter_batches(ROWS, columns=["id"]):
                yield from batch.to_pylist()
        else:
            yield from opened.select_columns(["id"])

    def _row(self, number: int) -> dict:
        opened = self._open()
        if not self._is_file:
            return opened[number]
        group = max(i for i, start in enumerate(self._starts) if start <= number)
        if self._group[0] != group:
            columns = [name for name in self.column_names if name not in self._unread()]
            self._group = (group, opened.read_row_group(group, columns=columns))
        return self._group[1].slice(number - self._starts[group], 1).to_pylist()[0]

    def _unread(self) -> set[str]:
        return {name for name in self.column_names if name not in ("id", "parameters") and not self._means(name)}

    def _means(self, name: str) -> bool:
        return column_of(self.task, name) is not None


def _undecoded(feature):
    """A feature of a data set that gives files as they are stored."""
    import datasets

    if isinstance(feature, (datasets.Image, datasets.Video, datasets.Audio)):
        return type(feature)(decode=False)
    if isinstance(feature, dict):
        return {name: _undecoded(one) for name, one in feature.items()}
    if isinstance(feature, datasets.List):
        return datasets.List(_undecoded(feature.feature), length=feature.length)
    if isinstance(feature, list):
        return [_undecoded(one) for one in feature]
    return feature
