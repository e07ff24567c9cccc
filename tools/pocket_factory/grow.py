"""Give a checkpoint more layers or a wider feed-forward block, without changing what it says.

    python -m tools.pocket_factory.grow pocket run/start --copy 1 --copy 2 --wide 1056

Each new layer is a copy of the one before it whose two output projections are zero, so that it adds nothing until it is
trained. Behind a copy of an upper layer the loss on attention finds heads that point already.

The new neurons of a wider block are drawn like the old ones, but nothing reads them until it is trained: their columns
in the output projection and its adapters are zero.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Annotated

import torch
import typer

from clara_core.model.decoder import ClaraModel
from clara_core.training.model_setup import Opened, write_model
from tools.pocket_factory.vocabulary import open_old

_LAYER = re.compile(r"(?<=\.layers\.)\d+(?=\.)")
_ADDS = re.compile(r"\.(o_proj|down_proj)\.(base\.weight|lora_B)$")  # what a layer adds to the hidden states
_DRAWN = re.compile(r"\.(gate_proj|up_proj)\.base\.weight$")  # what new neurons compute; the rest of them is zero


def grow(start: str, copied: list[int], wide: int | None = None) -> Opened:
    """A checkpoint with a copy behind each of some layers, a wider feed-forward block or both, in float32.

    Args:
        start: The checkpoint.
        copied: The layers to copy, from 0; none if only the width changes.
        wide: The new width of the feed-forward block, `intermediate_size`.

    Raises:
        ValueError: It has no such layer, or is as wide already.
    """
    old = open_old(start)
    count, width = old.model.decoder.config.num_hidden_layers, old.model.decoder.config.intermediate_size
    if (not copied and wide is None) or any(not 0 <= layer < count for layer in copied):
        raise ValueError(f"layers to copy: got {copied}, expected some of 0 to {count - 1}")
    if wide is not None and wide <= width:
        raise ValueError(f"width of the feed-forward block: got {wide}, expected more than {width}")
    order = sorted([*range(count), *copied])
    new = [place > 0 and order[place - 1] == layer for place, layer in enumerate(order)]
    config = copy.deepcopy(old.model.decoder.config)
    config.num_hidden_layers = len(order)
    config.intermediate_size = wide or width
    base = type(old.model.decoder)(config)
    base.generation_config = old.model.decoder.generation_config
    model = ClaraModel(base, old.model.config)
    known, generator = old.model.state_dict(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            found = _LAYER.search(key)
            place = int(found.group()) if found else None
            before = known[_LAYER.sub(str(order[place]), key) if place is not None else key]
            if tensor.shape != before.shape:
                tensor.normal_(0, float(before.std()) if _DRAWN.search(key) else 0.0, generator=generator)
            tensor[tuple(slice(size) for size in before.shape)] = before
            if place is not None and new[place] and _ADDS.search(key):
                tensor.zero_()
    return Opened(model, old.tokenizer, old.base, start, old.roles, old.base_vocabulary, copy_base=True)


def main(
    start: Annotated[str, typer.Argument(help="A checkpoint.")],
    out: Annotated[Path, typer.Argument(help="Folder of the new one.")],
    copied: Annotated[
        list[int] | None, typer.Option("--copy", help="A layer to copy, from 0; several may be given.")
    ] = None,
    wide: Annotated[int | None, typer.Option(help="New width of the feed-forward block.")] = None,
) -> None:
    """Give a checkpoint more layers or a wider feed-forward block."""
    opened = grow(start, copied or [], wide)
    write_model(out, opened, opened.model.config.training_stage, "# in training\n", base_trained=True)
    config = opened.model.decoder.config
    print(f"{out}: {config.num_hidden_layers} layers, a feed-forward block of {config.intermediate_size}")


if __name__ == "__main__":
    typer.run(main)
