"""The loss of answers that quote: the choice among what a verbatim answer may say."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from clara_core.engine.quoting.verbatim import OTHER_ANSWERS
from clara_core.training.losses import IGNORE
from clara_core.training.objective import Terms
from tests.pocket.test_factory import lesson, work  # noqa: F401 - fixtures
from tools.pocket_factory.lesson import QUESTION, Lesson, Mix, Taught
from tools.pocket_factory.quoting import allowed_tokens, quoting_loss
from tools.pocket_factory.remember import Earlier, Remembering
from tools.pocket_factory.train import Run
from tools.pocket_factory.vocabulary import open_old


@pytest.fixture(scope="module")
def taught(lesson: Lesson) -> Taught:  # noqa: F811 - a fixture
    return lesson.step(open_old("pocket").tokenizer, 3, Mix(passages=8, several=4, refuse=0.2))


def test_what_may_be_said_holds_what_is_said(taught: Taught) -> None:
    tokenizer = open_old("pocket").tokenizer
    allowed = allowed_tokens(tokenizer, taught.rows, taught.texts, QUESTION)
    targets = taught.rows.labels[taught.rows.labels != IGNORE].tolist()
    assert len(allowed) == len(targets)
    known = [(token, tokens) for token, tokens in zip(targets, allowed, strict=True) if tokens is not None]
    assert len(known) > len(targets) / 2
    assert all(token in tokens and max(tokens.values()) == 0 for token, tokens in known)
    assert any(len(tokens) > 20 for _, tokens in known)
    assert any(len(tokens) == 1 for _, tokens in known)


def test_only_answers_in_words_of_their_documents_are_quotations(lesson: Lesson) -> None:  # noqa: F811 - a fixture
    tokenizer = open_old("pocket").tokenizer
    taught = lesson.step(tokenizer, 4, Mix(passages=12, several=4, asked=1, refuse=0.2, reverse=1.0))
    rows = taught.rows
    allowed = iter(allowed_tokens(tokenizer, rows, taught.texts, QUESTION))
    seen = set()
    for ids, labels, windows in zip(rows.ids, rows.labels, rows.windows, strict=True):
        own = list(islice(allowed, int((labels != IGNORE).sum())))
        reversed_row = "Answer:" in tokenizer.decode(ids)
        if reversed_row:
            assert own == [None] * len(own)
        elif None not in own:
            texts = [taught.texts[window] for window in windows]
            said = tokenizer.decode([token for token in labels.tolist() if token not in (IGNORE, *tokenizer.eos_ids)])
            if labels.tolist().count(min(tokenizer.eos_ids)) == 1:
                assert said.strip() in OTHER_ANSWERS or any(said.strip() in text for text in texts)
                seen.add(said.strip() in OTHER_ANSWERS)
    assert False in seen


def test_the_loss_is_that_of_a_choice_among_the_allowed() -> None:
    logits = torch.randn(3, 6, requires_grad=True)
    targets, allowed = torch.tensor([1, 4, 2]), [{1: 0.0, 3: -2.0}, None, {2: 0.0}]
    plain = F.cross_entropy(logits, targets)
    assert float(quoting_loss(logits, targets, allowed, 0.0).detach()) == pytest.approx(float(plain.detach()))
    first = -(logits[0, 1] - torch.stack([logits[0, 1], logits[0, 3] - 2]).logsumexp(0))
    plain = F.cross_entropy(logits[1:2], targets[1:2])
    loss = quoting_loss(logits, targets, allowed, 1.0)
    assert float(loss.detach()) == pytest.approx(float((first + plain).detach()) / 3)
    loss.backward()
    assert logits.grad[0].nonzero().flatten().tolist() == [1, 3]
    assert not logits.grad[2].any()  # nothing to choose
    assert logits.grad.isfinite().all()


def test_the_rows_of_a_step_are_weighed_and_its_repetitions_are_not(taught: Taught) -> None:
    opened = open_old("pocket")
    opened.model.eval()
    allowed = allowed_tokens(opened.tokenizer, taught.rows, taught.texts, QUESTION)

    def losses(weight: float) -> dict[str, float]:
        objective = Remembering(opened.model, Terms(), Earlier(0))
        objective.quote(allowed, weight)
        with torch.no_grad():
            return {name: float(loss) for name, loss in objective(taught).losses.items()}

    plain, quoted = losses(0.0), losses(1.0)
    assert quoted["answer"] < 0.8 * plain["answer"]  # spelling costs nothing
    assert quoted["paraphrase"] == pytest.approx(plain["paraphrase"])


def test_a_run_trains_on_it(work: Path, tmp_path: Path) -> None:  # noqa: F811 - a fixture
    (tmp_path / "mix.json").write_text('{"passages": 2, "several": 1}')
    (tmp_path / "plan.json").write_text('{"quoting": 0.8, "rehearse": 0}')
    run = Run(work, tmp_path, "pocket", new_vocabulary=False)
    run.learn(1e-9)
    assert run.progress.step == 1
