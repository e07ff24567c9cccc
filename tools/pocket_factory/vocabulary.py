"""Gives the bundled model a new vocabulary; each new piece starts as the mean of the old pieces that spell it."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from transformers import AutoTokenizer

from clara_core.engine.loader import EngineArguments
from clara_core.model.checkpoint.config import Role
from clara_core.model.decoder import ClaraModel
from clara_core.model.tokenizer import load_tokenizer
from clara_core.training.model_setup import Opened, open_checkpoint
from tools.pocket_factory.base import CONFIG, random_base, train_tokenizer, write_base
from tools.pocket_factory.lesson import Lesson, Mix
from tools.pocket_factory.world.steps import sample_texts

PIECES = 4096
_FIRST = 0.7  # weight of the first old piece in a row of the output head; the others share the rest


def vocabulary_texts(lesson: Lesson) -> list[str]:
    """Real prose, synthetic passages with their questions, and the synthetic encyclopedia."""
    rng = random.Random(7)
    texts = []
    prose = lesson.prose.texts
    texts += prose["descriptions"][:50000] + prose["examples"] + prose["definitions"][:12000]
    texts += [f"{word}: {text}." for _, word, text in prose["glosses"][:50000]]
    for _ in range(30000):
        made = lesson.passage(rng, Mix(sorts={"frame": 0.5, "event": 0.25, "open": 0.25}))
        texts.append(made.text)
        texts += [q for q, _ in made.asked[:2]]
    return texts + list(sample_texts(1))


def vocabulary_of(folder: str) -> dict[str, int]:
    """The row of each piece in a base tokenizer."""
    return dict(AutoTokenizer.from_pretrained(folder).get_vocab())


def open_old(model: str) -> Opened:
    """Open the checkpoint whose layers are used."""
    return open_checkpoint(
        EngineArguments(model=model, device="cpu", dtype="float32", attn_implementation="eager").resolved()
    )


@torch.no_grad()
def transplant(folder: Path, lesson: Lesson, start: str = "pocket") -> Opened:
    """Give the layers and adapters of a checkpoint a new vocabulary; writes its base folder if it does not exist."""
    if not (folder / "config.json").exists():
        tokenizer = train_tokenizer(vocabulary_texts(lesson), PIECES)
        write_base(folder, random_base(len(tokenizer), 1), tokenizer)
    tokenizer = load_tokenizer(str(folder), CONFIG)
    model = ClaraModel(random_base(len(tokenizer), 1), CONFIG)
    old = open_old(start)
    state = {k: v for k, v in old.model.state_dict().items() if "embed_tokens" not in k and "lm_head" not in k}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or any("embed_tokens" not in k and "lm_head" not in k for k in missing):
        raise ValueError(f"the layers do not fit: {missing} {unexpected}")
    words, known = vocabulary_of(str(folder)), vocabulary_of(old.base)
    words |= {t: len(tokenizer) - len(CONFIG.added_tokens) + i for i, t in enumerate(CONFIG.added_tokens)}
    known |= {t: len(old.tokenizer) - len(CONFIG.added_tokens) + i for i, t in enumerate(CONFIG.added_tokens)}
    bpe = AutoTokenizer.from_pretrained(old.base).backend_tokenizer.model
    rows = [
        (model.decoder.get_input_embeddings().weight, old.model.decoder.get_input_embeddings().weight, None),
        (model.decoder.get_output_embeddings().weight, old.model.decoder.get_output_embeddings().weight, _FIRST),
    ]
    kept = spelled = 0
    for new, before, first in rows:
        spread = before.std()
        new.normal_(0, float(spread), generator=torch.Generator().manual_seed(1))
        for piece, place in words.items():
            ids = [known[piece]] if piece in known else [t.id for t in bpe.tokenize(piece)]
            if len(ids) == 1:
                new[place] = before[ids[0]]
                kept += 1
            elif ids:
                spelled += 1
                mean = before[ids].mean(0)
                new[place] = mean if first is None else first * before[ids[0]] + (1 - first) * before[ids[1:]].mean(0)
    print(f"{len(words)} pieces: {kept // 2} rows as they were, {spelled // 2} made of several")
    return Opened(
        model, tokenizer, str(folder), start, set(Role), len(tokenizer) - len(CONFIG.added_tokens), copy_base=True
    )
