"""The calls of Lance that may change without notice, in one place; pyproject bounds its version because of them.

* `scanner`: a scan over rows with some numbers. `ScannerBuilder.row_addr_prefilter` and `serialize_row_addrs` are
  public names that the documentation does not describe.
* `commit_files`: files that others wrote become part of a table, and rows that they replace go, in one commit. Lance
  documents the operation for jobs of many processes, and expects the caller to know what it does.
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
    """A scan that gives ``_rowid`` as well, over the rows with some numbers; None means all."""
    builder = ScannerBuilder(dataset).columns(list(columns)).with_row_id()
    return builder if rows is None else builder.row_addr_prefilter(serialize_row_addrs(rows.tolist())).prefilter(True)


def commit_files(
    dataset: LanceDataset,
    new: Sequence[FragmentMetadata],
    replaced: Mapping[int, Sequence[int]],
    storage_options: dict[str, str] | None,
) -> LanceDataset:
    """Put files into a table and take rows out, all at once.

    Args:
        dataset: The version that `replaced` is of.
        new: Files of rows.
        replaced: Numbers of the rows that go, by file.
        storage_options: As in `lance.dataset`.

    Raises:
        OSError: Somebody changed the same rows meanwhile.
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
