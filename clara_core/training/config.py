"""The configuration of a training run, read from a TOML or YAML file and checked before anything is loaded."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from clara_core.common.errors import UnknownOption
from clara_core.common.suggest import nearest_or_all
from clara_core.data.examples import Stage
from clara_core.engine.options import EngineOptions, sentence
from clara_core.model.checkpoint.config import Role

RoleName = Literal["compressor", "reasoner", "generator"]
Model = TypeVar("Model", bound=BaseModel)

ROLES: dict[RoleName, Role] = {
    "compressor": Role.COMPRESSOR,
    "reasoner": Role.REASONER,
    "generator": Role.GENERATOR,
}
# The paper's values, used if the config gives none.
RECIPES: dict[Stage, dict[str, Any]] = {
    "stage1": {"lr": 1e-4, "schedule": "cosine", "batch_size": 128, "learn": ("compressor", "generator")},
    "stage1_2": {"lr": 1e-4, "schedule": "cosine", "batch_size": 128, "learn": ("compressor", "generator")},
    "contrastive": {"lr": 1e-4, "schedule": "cosine", "batch_size": 32, "learn": ("reasoner",)},
    "stage2": {"lr": 5e-6, "schedule": "constant", "batch_size": 32, "learn": ("reasoner", "generator")},
}
_COMPRESSOR_LEARNS: tuple[Stage, ...] = ("stage1", "stage1_2")
FROZEN_STAGES: tuple[Stage, ...] = ("contrastive", "stage2")


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | Path) else value


Paths = Annotated[tuple[Path, ...], BeforeValidator(_listed)]


class Settings(BaseModel):
    """Base of the configs: unknown options and invalid values are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Shape(Settings):
    """Sizes of new adapters over a plain base decoder.

    Attributes:
        window: Text tokens in a window of the compressor.
        rate: Text tokens per memory token.
        lora_r: Rank of the adapters.
        top_k: Documents that the generator reads.
    """

    window: int = Field(default=256, gt=0)
    rate: int = Field(default=16, gt=0)
    lora_r: int = Field(default=16, gt=0)
    top_k: int = Field(default=5, gt=0)


class TrainingConfig(EngineOptions, Settings):
    """Configuration of one stage over data files. If a value is None, the paper's value for the stage is used.

    All options of an engine are options of a run. `model` is the checkpoint to start from; without it, new adapters
    are made over `base_model`. `dtype` is the type of the passes: "bfloat16" (with float32 master weights), "float32",
    or "auto": bfloat16 if the device has instructions for it. `attn_implementation` "auto" means "eager" on a CPU,
    where it trains fastest.

    Attributes:
        stage: Stage of training.
        shape: Sizes of new adapters; only without `model`.
        data: Files of training lines of this stage.
        held_out: Files of held-out lines, or the share of `data` to hold out.
        out: Folder of the run; the result is its subfolder ``checkpoint``. A stopped run resumes from it.
        epochs: Passes over the data.
        steps: Optimizer steps, instead of `epochs`.
        batch_size: Lines of an optimizer step, over all processes.
        micro_batch_size: Most lines of a pass; gradients are accumulated over the passes of a step.
        lr: Peak learning rate.
        schedule: "cosine" or "constant".
        warmup: Share of the steps in which a cosine schedule warms up.
        weight_decay: Weight decay of AdamW.
        max_grad_norm: Norm to which gradients are clipped.
        learn: Roles whose adapters are trained.
        memory_tokens: Whether the embeddings of the memory tokens are trained. None: if the compressor is trained.
        dropout: Dropout on the input of the adapters.
        overflow: "split" a document that is longer than a window into several, or "truncate" it as in the paper.
        mixed: Share of the lines whose first document, sometimes the second or all, the generator reads as text beside
            the memories of the others (stage1_2), so that the checkpoint may be given such prompts; its config says so.
            The documents of a line are in the order of a search then, best first. 0.5 is a good share, with a frozen
            compressor (``learn = ["generator"]``), so that memories stay valid.
        top_k: Windows that the generator reads in stage2. None: as in the checkpoint.
        top_k_gradient: Whether the loss of the answer reaches the query reasoner (stage2).
        alignment: Weight of the alignment loss (stage1, stage1_2).
        contrastive: Weight of the contrastive loss. None: 1 in the contrastive stage, otherwise 0.
        tau: Temperature of the contrastive loss.
        in_batch_negatives: Whether the candidates of the other questions of a pass are negatives, too.
        gradient_checkpointing: Recompute states in the backward pass to save memory.
        memory_room_mb: MiB of memories to keep if the compressor is frozen, so that they are not recomputed.
        seed: Seed of data order, dropout and new weights.
        save_every: Steps between saved states. None: by time alone.
        save_minutes: Minutes between saved states.
        eval_every: Steps between evaluations on the held-out lines. None: at the end of each epoch.
        patience: Evaluations without a lower held-out loss after which the run ends. None: never.
        tensorboard: Write event files. None: if TensorBoard is installed.
    """

    stage: Stage
    shape: Shape = Shape()
    data: Paths = Field(min_length=1)
    held_out: Paths | Annotated[float, Field(ge=0, lt=1)] = 0.0
    out: Path
    epochs: int = Field(default=1, gt=0)
    steps: int | None = Field(default=None, gt=0)
    batch_size: int = Field(default=0, ge=0)
    micro_batch_size: int = Field(default=8, gt=0)
    lr: float = Field(default=0.0, ge=0)
    schedule: Literal["cosine", "constant"] | None = None
    warmup: float = Field(default=0.03, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    learn: tuple[RoleName, ...] = ()
    memory_tokens: bool | None = None
    dropout: float = Field(default=0.1, ge=0, lt=1)
    overflow: Literal["split", "truncate"] = "split"
    mixed: float = Field(default=0.0, ge=0, lt=1)
    top_k: int | None = Field(default=None, gt=0)
    top_k_gradient: bool = True
    alignment: float = Field(default=0.1, ge=0)
    contrastive: float | None = Field(default=None, ge=0)
    tau: float = Field(default=0.02, gt=0)
    in_batch_negatives: bool = False
    gradient_checkpointing: bool = False
    memory_room_mb: int = Field(default=1024, ge=0)
    seed: int = 1
    save_every: int | None = Field(default=None, gt=0)
    save_minutes: float = Field(default=10.0, gt=0)
    eval_every: int | None = Field(default=None, gt=0)
    patience: int | None = Field(default=None, gt=0)
    tensorboard: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_recipe(cls, values: Any) -> Any:
        """Fill in the values of the paper."""
        if not isinstance(values, Mapping) or values.get("stage") not in RECIPES:
            return values
        stage: Stage = values["stage"]
        found = dict(values)
        for name, value in RECIPES[stage].items():
            if found.get(name) is None:
                found[name] = value
        if found.get("memory_tokens") is None:
            found["memory_tokens"] = stage in _COMPRESSOR_LEARNS and "compressor" in found["learn"]
        if found.get("contrastive") is None:
            found["contrastive"] = 1.0 if stage == "contrastive" else 0.0
        return found

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.model is None and self.base_model is None:
            raise ValueError("give model (a checkpoint to start from) or base_model (a decoder to add adapters to)")
        if self.model is not None and "shape" in self.model_fields_set:
            raise ValueError("shape is for new adapters over base_model; model has its own: leave shape out")
        if self.model is None and self.stage in ("contrastive", "stage2"):
            raise ValueError(f"{self.stage} needs a model whose compressor was trained: run stage1 first")
        if self.stage not in _COMPRESSOR_LEARNS and ("compressor" in self.learn or self.memory_tokens):
            raise ValueError(
                f"{self.stage} trains with a frozen compressor: leave compressor out of learn, and memory_tokens out"
            )
        if not self.learn or not self.batch_size or not self.lr:
            raise ValueError("learn, batch_size and lr must not be empty or 0")
        if self.mixed and self.stage != "stage1_2":
            raise ValueError(f"mixed is for stage1_2, whose lines say which documents are read; got {self.stage}")
        if self.dtype == "float16":
            raise ValueError("dtype: training in float16 loses small gradients; give bfloat16 or float32")
        if self.reasoner != "auto":
            raise ValueError("reasoner: training adds a query reasoner if the checkpoint has none; leave it out")
        if self.patience is not None and not self.held_out:
            raise ValueError("patience needs held_out: early stopping compares losses of held-out lines")
        return self

    @property
    def roles(self) -> tuple[Role, ...]:
        """Roles whose adapters are trained."""
        return tuple(sorted({ROLES[name] for name in self.learn}))

    @classmethod
    def read(cls, path: str | Path, changes: Sequence[str] = (), **given: Any) -> Self:
        """Read a config from a file.

        Args:
            path: A ``.toml``, ``.yaml`` or ``.yml`` file.
            changes: Overrides of the form ``key=value``, with the value written as in TOML.
            given: Values that override file and changes, such as ``stage="stage1"``.

        Raises:
            UnknownOption: The file has an unknown key.
            ValueError: The file cannot be read, or a value is invalid.
        """
        return parse(cls, {**read_table(path, changes), **given}, str(path))


def out_of_memory(config: TrainingConfig, exc: Exception) -> str:
    """The message for a run that ran out of memory, with the settings that need less, the cheapest first."""
    first = str(exc).strip().splitlines()[0] if str(exc) else type(exc).__name__
    remedies = []
    if config.micro_batch_size > 1:
        remedies.append(
            f"lower micro_batch_size={config.micro_batch_size} (batch_size and the result stay the same)"
            if not config.in_batch_negatives
            else f"lower micro_batch_size={config.micro_batch_size} (fewer in-batch negatives, so start a new run)"
        )
    if not config.gradient_checkpointing:
        remedies.append("set gradient_checkpointing=true (a third more arithmetic)")
    if config.memory_room_mb and config.stage in FROZEN_STAGES:
        remedies.append(f"lower memory_room_mb={config.memory_room_mb}")
    if config.dtype == "float32":
        remedies.append('set dtype="bfloat16"')
    if config.quantization is None:
        remedies.append('set quantization="nf4"')
    remedies.append("give fewer or shorter documents a line, or shard the base over several GPUs (FSDP)")
    return (
        f"training ran out of memory ({first}): {'; '.join(remedies)}. Start the same command again to resume from the "
        "last saved state"
    )


def read_table(path: str | Path, changes: Sequence[str] = ()) -> dict[str, Any]:
    """The values of a config file with overrides, not validated."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ValueError(f"{path} cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
    if path.suffix == ".toml":
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as exc:
            raise ValueError(f"{path} is not valid TOML: {exc}") from exc
    elif path.suffix in (".yaml", ".yml"):
        values = _yaml(text, path)
    else:
        raise ValueError(f"{path}: a config must be a .toml, .yaml or .yml file")
    for change in changes:
        _change(values, change)
    return values


def parse(kind: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """Validate the values of a config.

    Raises:
        UnknownOption: A key is unknown; the message names the closest known one.
        ValueError: A value is invalid.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as exc:
        faults = exc.errors()
        unknown = any(fault["type"] == "extra_forbidden" for fault in faults)
        message = f"{where}: {'; '.join(_fault(kind, fault) for fault in faults)}"
        raise (UnknownOption(message) if unknown else ValueError(message)) from exc


def _fault(kind: type[BaseModel], fault: Any) -> str:
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "missing":
        return f"{name} is missing"
    if fault["type"] != "extra_forbidden":
        return sentence(fault)
    model: Any = kind
    for part in fault["loc"][:-1]:
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        inner = [] if field is None else [field.annotation, *get_args(field.annotation)]
        model = next((item for item in inner if hasattr(item, "model_fields")), model)
    return f"there is no option {name!r}{nearest_or_all(str(fault['loc'][-1]), list(model.model_fields))}"


def _yaml(text: str, path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as exc:
        raise ImportError(f"reading {path} needs PyYAML: pip install pyyaml (or write the config as TOML)") from exc
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise ValueError(f"{path} is not valid YAML: {exc}") from exc
    if not isinstance(found, dict):
        raise ValueError(  # noqa: TRY004 - the file is wrong, not the caller
            f"{path} must hold keys and values, got {type(found).__name__}"
        )
    return found


def _change(values: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"an override must be key=value, got {change!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word: a path or a name
    *tables, leaf = name.strip().split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise ValueError(f"{change!r}: {table} is a value, not a table")  # noqa: TRY004 - what the user wrote
    values[leaf] = value
