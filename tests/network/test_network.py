"""The network as a function of one tensor: selection, state, switches."""

import warnings
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.utils import prune, spectral_norm, weight_norm

import jacli
from jacli.device.torch_switches import _precision_switches, forward_pass
from jacli.errors import ModelError
from jacli.network import Linearized, TensorNetwork, exact_arithmetic, frozen_twin, trace_network
from jacli.network.network import outputs_of, select_output
from tests.cases import build


def switches():
    precisions = [getattr(holder, name) for holder, name, _ in _precision_switches()]
    return (precisions, torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled)


def test_switches_are_put_back_after_an_error():
    before = switches()
    with pytest.raises(ZeroDivisionError), exact_arithmetic():
        assert switches()[0] == [exact for _, _, exact in _precision_switches()]
        assert not torch.backends.mha.get_fastpath_enabled()
        raise ZeroDivisionError
    assert switches() == before


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "conv"), reason="set an operator each since torch 2.9")
def test_reduced_precision_set_by_the_process_is_overruled():
    model, x = nn.Conv2d(64, 64, 3), torch.randn(1, 64, 32, 32)
    before = torch.backends.mkldnn.conv.fp32_precision
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    try:
        with exact_arithmetic():
            exact = model(x)
        assert torch.backends.mkldnn.conv.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.conv.fp32_precision = before
    assert torch.allclose(exact, model.double()(x.double()).float(), atol=1e-5)


def test_the_twin_is_frozen_and_the_model_stays_as_it_is():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train()
    twin = frozen_twin(model)
    assert not twin.training
    assert not any(p.requires_grad for p in twin.parameters())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    for of_twin, of_model in zip(twin.state_dict().values(), model.state_dict().values(), strict=True):
        assert of_twin.data_ptr() != of_model.data_ptr()  # a model may write to its own parameters


def test_a_model_that_cannot_be_copied_is_refused():
    model = nn.Linear(2, 2)
    model.generator = (i for i in range(3))
    with pytest.raises(ModelError, match="copied"):
        frozen_twin(model)


def test_every_pass_on_a_fresh_copy_gives_the_first_answer():
    module, x, _ = build("stateful", torch.float64)
    network = TensorNetwork.of_module(frozen_twin(module))
    first = network.renewing()(x, {})
    assert torch.equal(first, network.renewing()(x, {}))
    kept = network.copied()
    assert torch.equal(first, kept(x, {}))
    assert not torch.equal(first, kept(x, {}))


NESTED = {"logits": torch.zeros(2, 3), "hidden": (torch.zeros(2, 4), [torch.zeros(2, 5)])}


def test_nested_outputs_have_paths():
    assert {name: t.shape[1] for name, t in outputs_of(NESTED).items()} == {
        "logits": 3,
        "hidden.0": 4,
        "hidden.1.0": 5,
    }
    assert select_output(NESTED, "hidden.1.0").shape == (2, 5)


def test_recurrent_layers_on_a_gpu_go_without_cudnn():
    """The switch itself, which torch >= 2.9 may refuse beside the newer ones; no GPU is needed."""
    enabled = torch.backends.cudnn.enabled
    with exact_arithmetic(), forward_pass(recurrent=True, device=torch.device("cuda")):
        assert not torch.backends.cudnn.enabled
    assert torch.backends.cudnn.enabled == enabled


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_precision_set_for_training_is_put_aside_and_back(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with exact_arithmetic():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("select", [None, "loss", "hidden", "hidden.7"])
def test_a_selection_that_names_no_output_lists_them(select):
    with pytest.raises(ModelError, match=r"logits \(2, 3\), hidden.0 \(2, 4\), hidden.1.0 \(2, 5\)"):
        select_output(NESTED, select)


def test_select_on_a_single_tensor_is_refused():
    with pytest.raises(ModelError, match="single tensor"):
        select_output(torch.zeros(2, 3), "0")


@pytest.mark.parametrize(("of", "apply"), [("probs", torch.softmax), ("log-probs", torch.log_softmax)])
def test_probabilities(of, apply):
    x = torch.randn(2, 5)
    network = TensorNetwork.of_module(nn.Identity(), of=of)
    assert torch.equal(network(x, {}), apply(x, -1))
    with pytest.raises(ModelError, match="class axis"):
        network(x[:, :, None], {})


def test_tensors_with_a_history_are_copied_by_value():
    model = nn.Linear(3, 4)
    model.kept = model(torch.randn(2, 3))  # a feature stored by the last call
    twin = frozen_twin(model)
    assert torch.equal(twin.kept, model.kept)
    assert not twin.kept.requires_grad


def test_in_place_changes_of_the_input_stay_inside():
    x = torch.rand(2, 3) - 0.5
    before = x.clone()
    network = TensorNetwork.of_module(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 4)))
    network(x.requires_grad_(True), {})
    assert torch.equal(x, before)


def test_a_model_that_exits_does_not_end_the_run_as_done():
    class Exit(nn.Module):
        def forward(self, x):
            raise SystemExit(0)

    with pytest.raises(ModelError, match="ended the program"):
        TensorNetwork.of_module(Exit())(torch.zeros(1, 2), {})


class Named(NamedTuple):
    logits: torch.Tensor
    aux: None


def test_outputs_are_selected_by_name_or_position():
    logits = torch.zeros(2, 3)
    for output in (Named(logits, None), {"logits": logits, "aux": None}):
        assert select_output(output, "logits") is logits
        assert select_output(output, "0") is logits
        with pytest.raises(ModelError, match="of 1 output: logits"):
            select_output(output, None)


def test_a_twin_of_an_exported_program():
    """Its `eval()` raises: the mode was settled when it was exported."""
    program = torch.export.export(nn.Sequential(nn.Linear(3, 2), nn.Tanh()), (torch.randn(2, 3),)).module()
    twin, x = frozen_twin(program), torch.randn(2, 3)
    assert torch.equal(twin(x), program(x))
    assert not any(parameter.requires_grad for parameter in twin.parameters())


@pytest.mark.parametrize("change", ["grad", "dtype", "both"])
def test_a_forward_pass_that_changes_settings(change):
    class Changes(nn.Linear):
        def forward(self, x):
            y = super().forward(x).tanh()
            if change != "dtype":
                torch.set_grad_enabled(False)
            if change != "grad":
                torch.set_default_dtype(torch.float64)
            return y

    x, model = torch.randn(3, 5), Changes(5, 2)
    for method in ("loop", "replicate", "vmap", "forward", "auto"):
        found = jacli.jacobian(model, x, method=method)
        assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32
        rows = (1 - torch.tanh(x @ model.weight.T + model.bias) ** 2)[:, None, :] * model.weight.T
        torch.testing.assert_close(found, rows.detach())


@pytest.mark.parametrize("product", ["vjp", "jvp"])
@pytest.mark.parametrize("hook", ["pruning", "spectral norm", "weight norm"])
def test_a_weight_that_a_transform_left_in_a_module_is_copied(hook, product):
    """A hook computes it in each pass and stores it; that of a batched pass is of no use after it."""
    module = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the older weight_norm
        {
            "pruning": lambda: prune.l1_unstructured(module[0], "weight", amount=0.5),
            "spectral norm": lambda: spectral_norm(module[0]),
            "weight norm": lambda: weight_norm(module[0]),
        }[hook]()
    network, x = TensorNetwork.of_module(frozen_twin(module.eval())), torch.randn(3, 5).double()
    expected = network(x, {})
    with exact_arithmetic(), Linearized(network, x, {}) as linearization:
        batched = linearization.batched()
        getattr(batched, product)(torch.ones(2, 3, 4 if product == "vjp" else 5).double())
    for copied in (network.copied(), network.sharing()):
        assert torch.equal(copied(x, {}), expected)
    assert trace_network(network, x, {}).output is not None
