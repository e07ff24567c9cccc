"""Short keys, compared with a dense implementation, with theory, on realistic memories, and with recorded values."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from benchmarks.synthetic_memories import SyntheticMemories
from clara_core.retrieval.ranking import unit_rows
from clara_core.store.keys import Key


def memories(count, dimension=4096, common=0.57, seed=0):
    """Windows ``[count, 16, dimension / 16]``; any two have about this cosine."""
    draw = torch.Generator().manual_seed(seed)
    shared = torch.randn(1, dimension, generator=draw)
    own = torch.randn(count, dimension, generator=draw)
    return (math.sqrt(common) * shared + math.sqrt(1 - common) * own).view(count, 16, -1)


def estimates(key, questions, documents):
    return torch.from_numpy(key.scores(key.questions(questions), key.documents(documents)))


def cosines(questions, documents):
    return unit_rows(questions) @ unit_rows(documents).T


def plain_key(key, tokens):
    """The documented formula with a dense matrix for the projection, in double precision."""
    projection = key._fold.apply(torch.eye(key.dimension)).double()  # [D, L - 1]
    common = key._common.double()
    rows = []
    for vector in tokens.flatten(1).double():
        unit = vector / vector.norm()
        along = unit @ common
        left = unit - along * common
        rest = left @ projection
        rows.append(torch.cat([along[None], rest * left.norm() / rest.norm()]))
    return torch.stack(rows)


@pytest.mark.parametrize("dimension, length", [(256, 65), (1000, 100), (512, 2), (2048, 128)])
def test_keys_are_those_of_the_dense_formula(dimension, length):
    tokens = torch.randn(7, 1, dimension, generator=torch.Generator().manual_seed(1)) + 0.7
    key = Key(dimension, length).fitted(tokens[:4])
    assert key.questions(tokens).shape == (7, length)
    assert np.allclose(key.questions(tokens), plain_key(key, tokens).numpy(), atol=1e-5)
    assert np.array_equal(key.documents(tokens), key.questions(tokens).astype(np.float16))


def test_blocks_of_the_projection_are_orthogonal():
    fold = Key(256, 129)._fold
    dense = fold.apply(torch.eye(256))  # [256, 128]: each number is spread over 64 others, each in one of two blocks
    assert torch.allclose(dense.abs()[dense != 0], torch.tensor(1 / 8))
    assert torch.equal((dense != 0).sum(dim=1), torch.full((256,), 64))
    assert torch.allclose(dense.square().sum(dim=0), torch.full((128,), 2.0))


@pytest.mark.parametrize("length", [256, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_cosines_within_the_error_that_is_told(length, dtype):
    tokens = memories(240).to(dtype)
    key = Key(4096, length).fitted(tokens[:120])
    error = estimates(key, tokens[:40], tokens[120:]) - cosines(tokens[:40], tokens[120:])
    told = 0.43 / math.sqrt(length)
    assert 0.7 * told < float(error.std()) < 1.3 * told
    assert abs(float(error.mean())) < told / 3


def test_questions_that_share_nothing_with_documents():
    """As with a trained model, questions do not have the common part of documents."""
    documents, questions = memories(100), torch.randn(40, 16, 256, generator=torch.Generator().manual_seed(7))
    key = Key(4096, 512).fitted(documents)
    error = estimates(key, questions, documents) - cosines(questions, documents)
    assert float(error.std()) < 1.3 * math.sqrt(0.43) / math.sqrt(512)


def test_a_fitted_key_is_sharper():
    documents, questions = memories(200), memories(30, seed=0)
    plain, fitted = Key(4096, 256), Key(4096, 256).fitted(documents[:50])
    true = cosines(questions, documents)
    assert float((estimates(fitted, questions, documents) - true).std()) < 0.85 * float(
        (estimates(plain, questions, documents) - true).std()
    )


def test_energy_in_few_numbers_is_spread():
    """Some channels of a decoder are a hundred times as large as the others, in every token."""
    tokens = memories(120, common=0.0)
    tokens[:, :, 5] *= 20
    tokens[:, :, 77] *= 20
    key = Key(4096, 512)
    error = estimates(key, tokens[:20], tokens[20:]) - cosines(tokens[:20], tokens[20:])
    assert float(error.std()) < 3 / math.sqrt(512)


def test_neighbours_are_kept():
    corpus = SyntheticMemories(400, hidden=256, topics=8)
    documents, questions = corpus.documents(0, 400), corpus.questions(range(0, 400, 20))
    key = Key(4096, 1024).fitted(documents[:100])
    true = cosines(questions, documents).topk(5, dim=1).indices
    found = estimates(key, questions, documents).topk(50, dim=1).indices
    assert all(set(one.tolist()) <= set(other.tolist()) for one, other in zip(true, found, strict=True))


def test_few_and_many_questions_score_alike():
    tokens = memories(700, dimension=1024)
    key = Key(1024, 900).fitted(tokens)
    documents, questions = key.documents(tokens), key.questions(tokens[:5])
    together = Key.scores(questions, documents)
    alone = np.concatenate([Key.scores(questions[i : i + 1], documents) for i in range(5)])
    assert np.allclose(together, questions.astype(np.float64) @ documents.astype(np.float64).T, atol=1e-5)
    assert np.allclose(alone, together, atol=5e-4)
    assert Key.scores(questions, documents[:0]).shape == (5, 0)
    assert Key.scores(questions[:0], documents).shape == (0, 700)


@pytest.mark.parametrize("length", [64, 100])
def test_no_shorter_than_a_memory_is_the_memory(length):
    tokens = torch.randn(5, 2, 32, generator=torch.Generator().manual_seed(0))
    key = Key(64, length).fitted(tokens)
    assert key.exact
    assert key.length == 64
    assert np.allclose(key.questions(tokens), unit_rows(tokens).numpy(), atol=1e-6)


def test_size_and_order_of_what_is_given_do_not_matter():
    tokens = memories(600, dimension=8192)
    key = Key(8192, 128).fitted(tokens[:10])
    keys = key.documents(tokens)
    assert np.allclose(key.documents(tokens[123:125]), keys[123:125], atol=1e-3)
    assert np.allclose(key.documents(tokens[:3] * 100), keys[:3], atol=1e-3)
    assert key.documents(tokens[:0]).shape == (0, 128)
    assert not key.documents(torch.zeros(1, 16, 512)).any()


def test_settings_make_the_same_keys_again():
    tokens = memories(20, dimension=1024)
    for key in (Key(1024, 128, seed=3), Key(1024, 128).fitted(tokens), Key(1024, 128).fitted(tokens[:1])):
        again = Key.from_json(key.to_json())
        assert again == key
        assert hash(again) == hash(key)
        assert np.array_equal(again.documents(tokens), key.documents(tokens))
    assert Key(1024, 128) != Key(1024, 128, seed=1)


def test_the_same_on_every_machine():
    projected = Key(1000, 8, seed=5)._fold.apply(torch.arange(1, 1001, dtype=torch.float32)[None])
    # Recorded; eighths of integers are exact.
    recorded = [-1564.75, -1461.75, -1341.75, -3001.75, -135.75, -1763.25, -109.75]
    assert projected.flatten().tolist() == recorded


def test_what_cannot_be_a_key_is_named():
    with pytest.raises(ValueError, match="dimension=64, length=1"):
        Key(64, 1)
    with pytest.raises(ValueError, match=r"shape \[64\], got \[65\]"):
        Key(64, 8, common=torch.ones(65))
    with pytest.raises(ValueError, match=r"64 numbers, got the shape \[2, 8, 9\]"):
        Key(64, 8).documents(torch.zeros(2, 8, 9))
    with pytest.raises(ValueError, match="at least one memory"):
        Key(64, 8).fitted(torch.zeros(0, 8, 8))


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"kind": 1', "\x00"])
def test_settings_that_cannot_be_read(text):
    with pytest.raises(ValueError, match="cannot be read"):
        Key.from_json(text)


def test_settings_of_another_version_say_so():
    settings = json.loads(Key(64, 8).to_json())
    with pytest.raises(ValueError, match="'rotor-9' are unknown"):
        Key.from_json(json.dumps({**settings, "kind": "rotor-9"}))
    with pytest.raises(ValueError, match=r"\[64\], got \[3\]"):
        Key.from_json(json.dumps({**settings, "common": "AQID"}))
