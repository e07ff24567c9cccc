"""Calls of Lance that may change without notice; pyproject bounds its version because of them.

* `scanner`: a scan over rows with given numbers. `ScannerBuilder.row_addr_prefilter` and `serialize_row_addrs` are
  public names without documentation.
* `commit_files`: adds files written by others to a table and deletes the rows that they replace, in one commit. Lance
  documents the operation for distributed jobs, and leaves its correct use to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lance import LanceDataset, LanceOperation
from lance.dataset import ScannerBuilder, serialize_row_addrs

if TYPE_CHECKING:
    from lance.fragment import FragmentMetadata

    from clara_core.store.backend import Rows


def scanner(dataset: LanceDataset, columns: Sequence[str], rows: Rows | None) -> ScannerBuilder:
    """A scan over the rows with given numbers, or over all rows for None; its result includes ``_rowid``."""
    builder = ScannerBuilder(dataset).columns(list(columns)).with_row_id()
    return builder if rows is None else builder.row_addr_prefilter(serialize_row_addrs(rows.tolist())).prefilter(True)


def commit_files(
    dataset: LanceDataset,
    new: Sequence[FragmentMetadata],
    replaced: Mapping[int, Sequence[int]],
    storage_options: dict[str, str] | None,
) -> LanceDataset:
    """Add files to a table and delete rows, in one commit.

    Args:
        dataset: The version that `replaced` refers to.
        new: Files of rows.
        replaced: Numbers of the rows to delete, by file.
        storage_options: As in `lance.dataset`.

    Raises:
        OSError: Another writer changed the same rows meanwhile.
    """
    changed, gone = [], []
    for fragment in dataset.get_fragments():
        if rows := replaced.get(fragment.fragment_id):
            left = fragment.delete(f"_rowid IN ({', '.join(map(str, rows))})")
            if left is None:
                gone.append(fragment.fragment_id)
            else:
                changed.append(left)
    operation = LanceOperation.Update(
        removed_fragment_ids=gone, updated_fragments=changed, new_fragments=list(new), fields_modified=[]
    )
    return LanceDataset.commit(dataset, operation, read_version=dataset.version, storage_options=storage_options)
