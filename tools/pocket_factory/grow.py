"""Give a checkpoint more layers, without changing what it says.

    python -m tools.pocket_factory.grow pocket run/start --copy 1 --copy 2

Each new layer is a copy of the one before it whose two output projections are zero, so that it adds nothing until it is
trained. Behind a copy of an upper layer the loss on attention finds heads that point already.
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


def grow(start: str, copied: list[int]) -> Opened:
    """A checkpoint with a copy behind each of some layers, in float32.

    Raises:
        ValueError: It has no such layer.
    """
    old = open_old(start)
    count = old.model.decoder.config.num_hidden_layers
    if not copied or any(not 0 <= layer < count for layer in copied):
        raise ValueError(f"layers to copy: got {copied}, expected some of 0 to {count - 1}")
    order = sorted([*range(count), *copied])
    new = [place > 0 and order[place - 1] == layer for place, layer in enumerate(order)]
    config = copy.deepcopy(old.model.decoder.config)
    config.num_hidden_layers = len(order)
    base = type(old.model.decoder)(config)
    base.generation_config = old.model.decoder.generation_config
    model = ClaraModel(base, old.model.config)
    known = old.model.state_dict()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            found = _LAYER.search(key)
            place = int(found.group()) if found else None
            tensor.copy_(known[_LAYER.sub(str(order[place]), key) if place is not None else key])
            if place is not None and new[place] and _ADDS.search(key):
                tensor.zero_()
    return Opened(model, old.tokenizer, old.base, start, old.roles, old.base_vocabulary, copy_base=True)


def main(
    start: Annotated[str, typer.Argument(help="A checkpoint.")],
    out: Annotated[Path, typer.Argument(help="Folder of the new one.")],
    copied: Annotated[list[int], typer.Option("--copy", help="A layer to copy, from 0; several may be given.")],
) -> None:
    """Give a checkpoint more layers."""
    opened = grow(start, copied)
    write_model(out, opened, opened.model.config.training_stage, "# in training\n", base_trained=True)
    print(f"{out}: {opened.model.decoder.config.num_hidden_layers} layers")


if __name__ == "__main__":
    typer.run(main)
