"""Role routing, compared with merged weights and with peft."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from clara_core import ClaraEngine
from clara_core.model.checkpoint.config import Role
from clara_core.model.decoder import ClaraModel
from clara_core.model.lora import RoutedLinear, current_routing, init_adapter, routed
from tests.engines import PASSAGES, open_engine
from tests.tiny import Tiny, build

RANK = 4
SCALE = 2.0
ROLES = list(Role)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build(tmp_path_factory.mktemp("lora"), "mistral", seed=11)


@pytest.fixture(scope="module")
def engine(tiny: Tiny) -> ClaraEngine:
    return open_engine(tiny)


@pytest.fixture(scope="module")
def model(engine: ClaraEngine) -> ClaraModel:
    return engine.load().model


# -- one layer -------------------------------------------------------------------------------------


@pytest.fixture
def layer() -> RoutedLinear:
    torch.manual_seed(0)
    layer = RoutedLinear(nn.Linear(12, 20), RANK, SCALE, torch.float32)
    for role in ROLES:
        layer.load(role, torch.randn(RANK, 12), torch.randn(20, RANK))
    return layer.requires_grad_(False)


def plain(layer: RoutedLinear, role: Role, x: Tensor) -> Tensor:
    """The layer with one adapter merged into its weight."""
    a, b = layer.export(role)
    return nn.functional.linear(x, layer.base.weight + SCALE * b @ a, layer.base.bias)


def test_each_role_equals_its_merged_weight(layer: RoutedLinear) -> None:
    x = torch.randn(5, 7, 12)
    outputs = []
    for role in ROLES:
        with routed(role, RANK):
            outputs.append(layer(x))
        torch.testing.assert_close(outputs[-1], plain(layer, role, x), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(outputs[0], outputs[1])
    with routed(None, RANK):
        assert torch.equal(layer(x), layer.base(x))


def test_gradients_are_the_same_whether_or_not_the_base_learns(layer: RoutedLinear) -> None:
    x = torch.randn(3, 5, layer.in_features)
    layer.requires_grad_(True)
    found = {}
    for learns in (False, True):
        layer.base.weight.requires_grad_(learns)
        layer.zero_grad()
        with routed(Role.REASONER, layer.rank):
            y = layer(x)
        y.square().sum().backward()
        found[learns] = (y.detach(), layer.lora_A.grad.clone(), layer.lora_B.grad.clone())
    assert layer.base.weight.grad.abs().sum() > 0
    for apart, merged in zip(*found.values(), strict=True):
        torch.testing.assert_close(merged, apart, rtol=1e-3, atol=1e-3)


def test_rows_of_mixed_roles_equal_one_role_at_a_time(layer: RoutedLinear) -> None:
    x = torch.randn(6, 7, 12)
    roles = [Role.GENERATOR, Role.COMPRESSOR, Role.REASONER, Role.COMPRESSOR, Role.GENERATOR, Role.REASONER]
    with routed(roles, RANK):
        mixed = layer(x)
    for row, role in enumerate(roles):
        torch.testing.assert_close(mixed[row], plain(layer, role, x[row]), atol=1e-5, rtol=1e-5)


def test_a_layer_outside_of_a_scope_raises(layer: RoutedLinear) -> None:
    with pytest.raises(RuntimeError, match=r"outside of routed"):
        layer(torch.randn(1, 1, 12))
    with routed(Role.REASONER, RANK):
        layer(torch.randn(1, 1, 12))
    with pytest.raises(RuntimeError, match=r"outside of routed"):
        layer(torch.randn(1, 1, 12))


def test_scopes_nest_and_belong_to_their_thread(layer: RoutedLinear) -> None:
    def fails() -> None:
        with routed(Role.COMPRESSOR, RANK):
            assert current_routing().role is Role.COMPRESSOR
            raise ZeroDivisionError

    with routed(Role.REASONER, RANK):
        with pytest.raises(ZeroDivisionError):
            fails()
        assert current_routing().role is Role.REASONER
        seen: list[BaseException] = []

        def elsewhere() -> None:
            try:
                current_routing()
            except RuntimeError as exc:
                seen.append(exc)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert len(seen) == 1


def test_a_fresh_adapter_changes_nothing(layer: RoutedLinear) -> None:
    init_adapter(layer, Role.REASONER, torch.Generator().manual_seed(0))
    x = torch.randn(2, 3, 12)
    with routed(Role.REASONER, RANK):
        assert torch.equal(layer(x), layer.base(x))
    a, _ = layer.export(Role.REASONER)
    assert a.abs().max() <= 12**-0.5
    assert a.std() > 0.1
    with routed(Role.COMPRESSOR, RANK):  # the others are unchanged
        assert not torch.allclose(layer(x), layer.base(x))


# -- the whole decoder -----------------------------------------------------------------------------


def sequences_of(engine: ClaraEngine) -> list[list[int]]:
    return engine.tokenizer.encode_passages(PASSAGES)


def test_mixed_batches_equal_rows_alone(engine: ClaraEngine, model: ClaraModel) -> None:
    sequences = sequences_of(engine)
    roles = [Role.COMPRESSOR, Role.REASONER, Role.REASONER, Role.COMPRESSOR, Role.REASONER, Role.COMPRESSOR]
    with torch.no_grad():
        together = model.encode(sequences, roles)
        alone = [model.encode([ids], role) for ids, role in zip(sequences, roles, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-5, rtol=0)
    with torch.no_grad():
        swapped = model.encode(sequences, [Role.COMPRESSOR] * len(sequences))
    assert not torch.allclose(together[1], swapped[1], atol=1e-2)


def test_threads_with_different_roles_share_a_model(engine: ClaraEngine, model: ClaraModel) -> None:
    sequences = sequences_of(engine)
    with torch.no_grad():
        expected = {role: model.encode(sequences, role) for role in ROLES}
    start = threading.Barrier(len(ROLES))

    def run(role: Role) -> float:
        start.wait()
        worst = 0.0
        with torch.no_grad():
            for _ in range(12):
                worst = max(worst, float((model.encode(sequences, role) - expected[role]).abs().max()))
        return worst

    with ThreadPoolExecutor(len(ROLES)) as pool:
        assert max(pool.map(run, ROLES)) < 1e-5


@pytest.mark.parametrize("role", ROLES)
def test_an_adapter_equals_peft(tiny: Tiny, model: ClaraModel, engine: ClaraEngine, role: Role, tmp_path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    from clara_core.model.checkpoint.io import export_peft, read_checkpoint

    checkpoint = read_checkpoint(tiny.folder)
    export_peft(checkpoint, role, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tiny.base, dtype=torch.float32)
    base.resize_token_embeddings(len(engine.tokenizer), mean_resizing=False)
    base.load_state_dict(checkpoint.embeddings, strict=False)
    twin = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = sequences_of(engine)[0]
    with torch.no_grad():
        expected = twin.base_model.model.model(input_ids=torch.tensor([ids])).last_hidden_state
        found = model.hidden_states([ids], role)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_exported_adapters_are_the_files(tiny: Tiny, model: ClaraModel) -> None:
    for role in ROLES:
        exported = model.export_adapter(role)
        written = tiny.adapters[role.adapter]
        assert exported.keys() == written.keys()
        assert all(torch.equal(exported[key], written[key]) for key in written)
