"""The `config.json` of a CLaRa checkpoint, and the sizes and roles that follow from it.

A released `config.json` also has fields of a separate BERT-style compressor that no release uses, and bookkeeping of
the library that wrote it. They are ignored, unless they show that the checkpoint is of a kind that is not supported.

PISCO (naver/pisco-mistral, -llama, -solar) computes the same as CLaRa's Instruct stage; its config is read as one of
`training_stage` `stage1_2`.
"""

from __future__ import annotations

import json
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from clara_core.common.errors import CheckpointError

CONFIG_FILE: Final = "config.json"

_OURS: Final = ("mixed", "answer_top_k", "verbatim", "question_words")  # fields that no release has
# Fields that a file must have, since token ids and shapes depend on them.
_REQUIRED: Final = (
    "decoder_model_name",
    "doc_max_length",
    "compr_rate",
    "lora_r",
    "sep",
    "different_mem_tokens",
    "training_stage",
)


class Role(IntEnum):
    """The role of the decoder for a row of a batch. The value is the index of its LoRA adapter."""

    COMPRESSOR = 0
    REASONER = 1
    GENERATOR = 2

    @property
    def adapter(self) -> str:
        """The name of the role's adapter in the files of a checkpoint."""
        return _ADAPTERS[self]

    @property
    def label(self) -> str:
        """The name of the role in messages: "compressor", "query reasoner", "generator"."""
        return _LABELS[self]

    def __str__(self) -> str:
        return self.label

    @classmethod
    def from_adapter(cls, name: str) -> Role:
        """The role of an adapter name such as `encoder_adapter`.

        Raises:
            ValueError: no role has this adapter.
        """
        for role, adapter in _ADAPTERS.items():
            if adapter == name:
                return role
        known = ", ".join(_ADAPTERS.values())
        raise ValueError(f"no role has an adapter named {name!r}; known adapters: {known}")


_ADAPTERS: Final = {
    Role.COMPRESSOR: "encoder_adapter",
    Role.REASONER: "query_reasoner_adapter",
    Role.GENERATOR: "decoder_adapter",
}
_LABELS: Final = {
    Role.COMPRESSOR: "compressor",
    Role.REASONER: "query reasoner",
    Role.GENERATOR: "generator",
}

_PISCO_LICENCE: Final = (
    "PISCO weights: their card is tagged cc-by-4.0, and its text says CC BY-NC 4.0; treat them as non-commercial"
)


class ClaraConfig(BaseModel):
    """The config of a checkpoint. Frozen; names are those of the released `config.json`.

    Attributes:
        decoder_model_name: the base decoder: a Hub id, a path, or a path relative to the checkpoint.
        doc_max_length: window of the compressor, in text tokens.
        compr_rate: text tokens per memory token.
        lora_r: rank of the adapters.
        sep: whether `<SEP>` follows the memory tokens of each document in a prompt.
        different_mem_tokens: `<MEM0>`, `<MEM1>`, ... (true) or one `<MEM>` repeated (false).
        optimize_mem_tokens: whether the embeddings of the added tokens were trained.
        generation_top_k: documents that the generator saw in training.
        training_stage: `stage1`, `stage1_2`, `stage2`, `stage2_pretrain_retrieval`, ...
        quantization: quantization of the base in training ("no" in every release).
        kbtc_training: whether a further token `<KBTC>` was added.
        mixed: whether the generator was trained to read documents as text beside memories of others.
        answer_top_k: documents to read for an answer by default; None: `generation_top_k`.
        verbatim: whether answers quote their documents unless the caller says otherwise (`Sampling.verbatim`).
        question_words: weight of the question's words in the choice of such an answer; 0: the model decides alone.
        family: model family; `model_type` in a config.json that this project wrote.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    decoder_model_name: str = Field(min_length=1)
    doc_max_length: int = Field(default=256, gt=0)
    compr_rate: int = Field(default=16, gt=0)
    lora_r: int = Field(default=16, gt=0)
    sep: bool = True
    different_mem_tokens: bool = True
    optimize_mem_tokens: bool = True
    generation_top_k: int = Field(default=5, gt=0)
    training_stage: str = "stage2"
    quantization: str = "no"
    kbtc_training: bool = False
    mixed: bool = False
    answer_top_k: int | None = Field(default=None, gt=0)
    verbatim: bool = False
    question_words: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    family: Literal["CLaRa", "PISCO"] = "CLaRa"

    @model_validator(mode="after")
    def _check(self) -> ClaraConfig:
        if self.compr_rate > self.doc_max_length:
            raise ValueError(
                f"compr_rate ({self.compr_rate}) must be at most doc_max_length ({self.doc_max_length}), since a "
                "window needs at least one memory token"
            )
        if not self.training_stage.startswith(("stage1", "stage2")):
            raise ValueError(
                "training_stage must be one of stage1, stage1_2, stage2 and stage2_pretrain_retrieval, "
                f"got {self.training_stage!r}"
            )
        return self

    @property
    def n_mem(self) -> int:
        """Memory tokens of a window."""
        return self.doc_max_length // self.compr_rate

    @property
    def lora_alpha(self) -> int:
        """Numerator of the LoRA scale: twice the rank in every CLaRa checkpoint."""
        return 2 * self.lora_r

    @property
    def lora_scale(self) -> float:
        """Factor of the product B @ A."""
        return self.lora_alpha / self.lora_r

    @property
    def mem_tokens(self) -> list[str]:
        """The `n_mem` memory tokens in order (all the same without `different_mem_tokens`)."""
        if self.different_mem_tokens:
            return [f"<MEM{i}>" for i in range(self.n_mem)]
        return ["<MEM>"] * self.n_mem

    @property
    def added_tokens(self) -> list[str]:
        """The tokens added to the base's vocabulary, in the order of their ids."""
        added = [*dict.fromkeys(self.mem_tokens), "<AE>", "<ENC>", "<SEP>"]
        return [*added, "<KBTC>"] if self.kbtc_training else added

    @property
    def licence_note(self) -> str | None:
        """A note on an unclear licence of the weights, or None."""
        return _PISCO_LICENCE if self.family == "PISCO" else None

    @property
    def required_roles(self) -> tuple[Role, ...]:
        """The roles that a checkpoint of this training stage must have."""
        if self.training_stage.startswith("stage2"):
            return (Role.COMPRESSOR, Role.REASONER, Role.GENERATOR)
        return (Role.COMPRESSOR, Role.GENERATOR)

    @classmethod
    def read(cls, folder: str | Path) -> ClaraConfig:
        """Read `config.json` of a checkpoint folder, in CLaRa's layout or in PISCO's.

        Raises:
            CheckpointError: the file is missing, is not JSON, lacks a field, has an invalid value, or belongs to
                another kind of checkpoint (OSCAR, COCOM v1).
        """
        path = Path(folder) / CONFIG_FILE
        raw = _read_json(path)
        raw = _of_a_known_kind(raw, path)
        missing = [name for name in _REQUIRED if name not in raw]
        if missing:
            raise CheckpointError(
                f"{path} lacks {', '.join(missing)}: it is not the config.json of a CLaRa checkpoint. Give the folder "
                "of a checkpoint, such as the subfolder compression-16 of a release."
            )
        try:
            return cls.model_validate(raw)
        except ValidationError as exc:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'config'}: {fault['msg']} (got {_short(fault['input'])})"
                for fault in exc.errors()
            )
            raise CheckpointError(f"{path} has invalid values: {faults}") from exc

    def write(self, folder: str | Path) -> None:
        """Write `config.json` to an existing folder, with the released names."""
        ours = {"family", *(name for name in _OURS if not getattr(self, name))}
        content = {"model_type": self.family, "compr_model_name": None, **self.model_dump(exclude=ours)}
        text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        (Path(folder) / CONFIG_FILE).write_text(text, encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise CheckpointError(f"no {CONFIG_FILE} in {path.parent}: it is not the folder of a CLaRa checkpoint") from exc
    except OSError as exc:
        raise CheckpointError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    except ValueError as exc:  # invalid JSON or UTF-8
        raise CheckpointError(f"{path} is not valid JSON ({exc}); download it again") from exc
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} holds a {type(raw).__name__}, expected a JSON object")
    return raw


def _of_a_known_kind(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """The fields of a CLaRa or PISCO config under CLaRa's names.

    Raises:
        CheckpointError: the checkpoint is of an unsupported kind (OSCAR, COCOM v1).
    """
    kind = str(raw.get("model_type"))
    instead = "Use a CLaRa checkpoint (apple/CLaRa-7B-E2E) or a PISCO one (naver/pisco-mistral)."
    if kind.upper() == "OSCAR" or raw.get("query_dependent"):
        raise CheckpointError(
            f"{path} belongs to an OSCAR checkpoint: it compresses each passage together with the question, with a "
            f"second model, so that memories cannot be made before the question is known. {instead}"
        )
    if kind.upper() == "COCOM" and (raw.get("training_form") != "both_separately" or "doc_max_length" not in raw):
        raise CheckpointError(
            f"{path} belongs to a COCOM v1 checkpoint: it has full weights instead of one adapter for each role, and "
            f"a number of memory tokens that varies with the passage. {instead}"
        )
    if raw.get("compr_model_name") is not None:
        raise CheckpointError(
            f"{path} names a separate compressor model ({_short(raw['compr_model_name'])}), as OSCAR's checkpoints "
            "do. Only checkpoints whose compressor is an adapter of the decoder (compr_model_name null) are "
            f"supported. {instead}"
        )
    if kind.upper() == "COCOM":
        # Both adapters were trained on answers, as in stage1_2.
        return {"training_stage": "stage1_2", **raw, "family": "PISCO"}
    return {**raw, "family": "PISCO" if kind == "PISCO" else "CLaRa"}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
