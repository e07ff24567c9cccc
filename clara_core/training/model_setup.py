"""Opens a model for training, from a checkpoint or from a base with new adapters, and writes the result."""

from __future__ import annotations

import copy
import shutil
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clara_core.common.errors import CheckpointError
from clara_core.engine.loader import Plan, load_decoder, plan_engine, progress_bar
from clara_core.engine.options import EngineArguments
from clara_core.model.checkpoint.config import ClaraConfig, Role
from clara_core.model.checkpoint.convert import BASE_FOLDER
from clara_core.model.checkpoint.hub import resolve_base
from clara_core.model.checkpoint.io import Checkpoint, check_vocabulary, read_checkpoint, write_checkpoint
from clara_core.model.decoder import ClaraModel
from clara_core.model.lora import current_routing, routed
from clara_core.model.tokenizer import ClaraTokenizer
from clara_core.training.card import CARD_FILE
from clara_core.training.state import new_folder

if TYPE_CHECKING:
    from clara_core.training.master_weights import TrainableSpec

_WEIGHTS = ("*.safetensors", "*.bin", "*.pth", "*.index.json")


@dataclass(slots=True)
class Opened:
    """A model for training, with the facts that are needed to write its checkpoint.

    Attributes:
        model: The model on its device.
        tokenizer: Tokenizer with the memory tokens.
        base: Folder or Hub id of the base decoder.
        origin: Checkpoint or base that was opened, for the card.
        roles: Roles with an initialized adapter.
        base_vocabulary: Rows of the embedding table of the base, without added tokens.
        copy_base: Whether the base is written with the checkpoint.
    """

    model: ClaraModel
    tokenizer: ClaraTokenizer
    base: str
    origin: str
    roles: set[Role] = field(default_factory=set)
    base_vocabulary: int = 0
    copy_base: bool = False

    def begin(self, trainable: TrainableSpec) -> None:
        """Initialize the adapters of the trainable roles that have none yet.

        Raises:
            CheckpointError: There is no compressor to initialize the query reasoner from.
        """
        for role in trainable.roles:
            if role in self.roles:
                continue
            if role is Role.REASONER:
                if Role.COMPRESSOR not in self.roles:
                    raise CheckpointError(
                        f"{self.origin} holds no compressor to initialize the query reasoner from: run stage1 first"
                    )
                for layer in self.model.routed.values():  # as in the paper
                    layer.load(role, *layer.export(Role.COMPRESSOR))
            else:
                generator = torch.Generator().manual_seed(role)
                for layer in self.model.routed.values():
                    _init_on_processor(layer, role, generator)
            self.roles.add(role)


def open_checkpoint(arguments: EngineArguments, place: torch.device | None = None) -> Opened:
    """Open a trained checkpoint for further training.

    Args:
        arguments: Options of an engine.
        place: Device of the weights; None for that of the arguments.

    Raises:
        CheckpointError: The checkpoint cannot be read, or its parts do not match.
    """
    plan = plan_engine(arguments)
    checkpoint = read_checkpoint(plan.folder)
    check_vocabulary(checkpoint, len(plan.tokenizer), plan.base)
    opened = _opened(plan, arguments, arguments.model, place)
    opened.model.load_adapters(checkpoint)
    opened.roles = set(checkpoint.roles)
    opened.copy_base = _lies_inside(checkpoint, arguments.base_model)
    return opened


def open_base(
    base_model: str, config: ClaraConfig, arguments: EngineArguments, seed: int, place: torch.device | None = None
) -> Opened:
    """Open a plain decoder with new memory tokens and new adapters, which do not change its output yet.

    Args:
        base_model: Folder or Hub id.
        config: Window, rate and rank.
        arguments: Device, type, quantization and access to the Hub.
        seed: Seed of the new weights.
        place: Device of the weights; None for that of the arguments.

    Raises:
        CheckpointError: The base decoder cannot be loaded.
    """
    from transformers import AutoConfig, AutoTokenizer

    base = resolve_base(config, Path(), base_model)
    try:
        shape = AutoConfig.from_pretrained(base, **arguments.hub())
        tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left", **arguments.hub())
    except (OSError, ValueError, KeyError) as exc:
        raise CheckpointError(f"the base decoder {base!r} could not be loaded: {str(exc).splitlines()[0]}") from exc
    sliding = getattr(shape, "sliding_window", None) or shape.max_position_embeddings
    context = min(shape.max_position_embeddings, sliding)
    plan = Plan(Path(), config, base, int(shape.hidden_size), int(context), ClaraTokenizer(tokenizer, config))
    opened = _opened(plan, arguments, base, place)
    generator = torch.Generator().manual_seed(seed)
    _draw_memory_tokens(opened.model, generator)
    for layer in opened.model.routed.values():
        for role in (Role.COMPRESSOR, Role.GENERATOR):
            _init_on_processor(layer, role, generator)
    opened.roles = {Role.COMPRESSOR, Role.GENERATOR}
    return opened


def _opened(plan: Plan, arguments: EngineArguments, origin: str, place: torch.device | None) -> Opened:
    with progress_bar(shown=False):
        decoder = load_decoder(arguments, plan, place)
    vocabulary = int(decoder.get_input_embeddings().num_embeddings)
    if len(plan.tokenizer) != vocabulary:
        decoder.resize_token_embeddings(len(plan.tokenizer), mean_resizing=False)
    return Opened(ClaraModel(decoder, plan.config), plan.tokenizer, plan.base, origin, base_vocabulary=vocabulary)


def _lies_inside(checkpoint: Checkpoint, base_model: str | None) -> bool:
    """Whether the base is part of the checkpoint's own folder."""
    base = Path(resolve_base(checkpoint.config, checkpoint.folder, base_model))
    return base.is_dir() and checkpoint.folder.resolve() in base.resolve().parents


def _draw_memory_tokens(model: ClaraModel, generator: torch.Generator) -> None:
    """Draw the embeddings of the added tokens with the mean and deviation of the others in every dimension."""
    added = len(model.config.added_tokens)
    for layer in (model.decoder.get_input_embeddings(), model.decoder.get_output_embeddings()):
        weight: Tensor = layer.weight.detach()
        known = weight[:-added].float()
        spread, mean = torch.std_mean(known, dim=0)
        drawn = torch.randn(added, weight.shape[1], generator=generator).to(weight.device)
        weight[-added:] = (mean + drawn * spread).to(weight.dtype)


def _init_on_processor(layer: Any, role: Role, generator: torch.Generator) -> None:
    """Draw the weights on the CPU, so that they do not depend on the device."""
    bound = layer.in_features**-0.5
    a = torch.empty(layer.rank, layer.in_features).uniform_(-bound, bound, generator=generator)
    layer.load(role, a, torch.zeros(layer.out_features, layer.rank))


# --- training switches -----------------------------------------------------------------------------------


def set_dropout(model: ClaraModel, share: float) -> None:
    """Set the dropout on the input of the adapters in passes with gradient."""
    for layer in model.routed.values():
        layer.dropout = share


def checkpoint_gradients(model: ClaraModel) -> None:
    """Enable gradient checkpointing: keep only the states between layers, and recompute the rest."""
    rank = model.config.lora_r

    def contexts() -> tuple[Any, Any]:
        # The backward pass runs outside of the `routed` scope of the forward pass, and perhaps in another thread.
        return nullcontext(), routed(current_routing().role, rank)

    decoder = model.decoder
    # The method was renamed in transformers 5.
    enable = getattr(decoder, "activation_checkpointing_enable", None) or decoder.gradient_checkpointing_enable
    enable({"use_reentrant": False, "context_fn": contexts})


# --- writing ---------------------------------------------------------------------------------------------


def write_model(
    folder: Path, opened: Opened, stage: str, card: str, *, base_trained: bool, mixed: bool = False
) -> Checkpoint:
    """Write a checkpoint with its card, atomically.

    Args:
        folder: Folder of the checkpoint; it is replaced if it exists.
        opened: The model.
        stage: `training_stage` of the config.
        card: Text of README.md.
        base_trained: Whether the base was trained, so that its weights are written, too.
        mixed: Whether the generator was trained to read text beside memories; an earlier "yes" stays.

    Raises:
        TrainingError: The folder cannot be written; an existing one is unchanged.
        CheckpointError: The weights cannot be written; an existing folder is unchanged.
    """
    copy_base = base_trained or opened.copy_base
    name = BASE_FOLDER if copy_base else opened.base
    config = opened.model.config
    changes = {"decoder_model_name": name, "training_stage": stage, "mixed": mixed or config.mixed}
    # What is best for the answers of the weights before need not be best for these.
    config = config.model_copy(update=changes | {"answer_top_k": None, "verbatim": False, "question_words": 0.0})
    dtype = opened.model.dtype
    roles = sorted(opened.roles)
    adapters = {role: _on_processor(opened.model.export_adapter(role), dtype) for role in roles}
    embeddings = _on_processor(opened.model.export_embeddings(), dtype)
    with new_folder(folder) as new:
        write_checkpoint(new, config, adapters, embeddings)
        if copy_base:
            ignore = shutil.ignore_patterns(*_WEIGHTS) if base_trained else None
            shutil.copytree(opened.base, new / BASE_FOLDER, ignore=ignore)
        if base_trained:
            with progress_bar(shown=False):
                _plain_base(opened).save_pretrained(new / BASE_FOLDER)
        (new / CARD_FILE).write_text(card, encoding="utf-8")
    return read_checkpoint(folder)


def _on_processor(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {key: tensor.detach().to("cpu", dtype) for key, tensor in tensors.items()}


def _plain_base(opened: Opened) -> Any:
    """The decoder as transformers loads it: without adapters and memory tokens."""
    decoder: Any = opened.model.decoder
    plain = type(decoder)(copy.deepcopy(decoder.config))
    state = {
        key.replace(".base.weight", ".weight"): tensor.detach().cpu()
        for key, tensor in decoder.state_dict().items()
        if ".lora_" not in key
    }
    plain.load_state_dict(state)
    plain.resize_token_embeddings(opened.base_vocabulary)
    return plain.to(opened.model.dtype)
