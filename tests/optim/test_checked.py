"""What makes these optimizers drop-in: everything that torch.optim's own can do."""

import copy
import io

import pytest
import torch
from optimizers import EVERY, SETTINGS, assert_equal, run, set_gradients, weights

from lsmooth import optim
from lsmooth.errors import InvalidArgumentError, LsmoothError
from lsmooth.optim import GeneralizedSignSGD, SGDClip, SGDNormalized

P = torch.nn.Parameter


@EVERY
def test_a_run_goes_on_from_a_saved_state(setting):
    params = weights()
    whole = run(SETTINGS[setting](params), params, 8)
    params = weights()
    optimizer = SETTINGS[setting](params)
    run(optimizer, params, 4)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = [torch.nn.Parameter(p.detach().clone()) for p in params]
    resumed = SETTINGS[setting](other)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert_equal(run(resumed, other, 4, start=4), whole)


@EVERY
def test_a_deep_copy_goes_its_own_way(setting):
    params = weights()
    optimizer = SETTINGS[setting](params)
    run(optimizer, params, 3)
    twin = copy.deepcopy(optimizer)
    twin_params = twin.param_groups[0]["params"]
    whole = run(optimizer, params, 3, start=3)
    assert_equal(run(twin, twin_params, 3, start=3), whole)


@EVERY
def test_state_takes_the_dtype_of_the_parameters_it_is_loaded_for(setting):
    params = weights()
    optimizer = SETTINGS[setting](params)
    run(optimizer, params, 2)
    narrow = weights(torch.float32)
    loaded = SETTINGS[setting](narrow)
    loaded.load_state_dict(optimizer.state_dict())
    for p in narrow:
        for value in loaded.state[p].values():
            assert not isinstance(value, torch.Tensor) or value.dtype == torch.float32
    run(loaded, narrow, 1)


def test_groups_of_an_older_checkpoint_get_the_defaults_they_lack():
    params = weights()
    optimizer = SETTINGS["signsgd fused"](params)
    state = optimizer.state_dict()
    del state["param_groups"][0]["bias_correction"]
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["bias_correction"] is False
    run(optimizer, params, 1)


@EVERY
def test_a_group_added_later_steps_with_its_own_lr(setting):
    first, later = weights()[:2], weights()[2:]
    optimizer = SETTINGS[setting](first)
    set_gradients(first, 0)
    optimizer.step()
    optimizer.add_param_group({"params": later, "lr": 0.0})
    before = later[0].detach().clone()
    set_gradients(first + later, 1)
    optimizer.step()
    assert torch.equal(later[0], before)
    optimizer.param_groups[1]["lr"] = 0.1
    optimizer.step()
    assert not torch.equal(later[0], before)


def test_a_refused_group_leaves_the_optimizer_as_it_was():
    params = weights()
    optimizer = SETTINGS["signsgd fused"](params[:2])
    with pytest.raises(InvalidArgumentError, match="learning rate"):
        optimizer.add_param_group({"params": params[2:], "lr": -1.0})
    assert len(optimizer.param_groups) == 1
    run(optimizer, params[:2], 1)


@EVERY
def test_a_scheduler_sets_lr(setting):
    params, by_hand = weights(), weights()
    optimizer, other = SETTINGS[setting](params), SETTINGS[setting](by_hand)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    def halve():
        other.param_groups[0]["lr"] *= 0.5

    assert_equal(run(optimizer, params, 4, after=scheduler.step), run(other, by_hand, 4, after=halve))


@EVERY
def test_a_tensor_lr_is_a_number_lr(setting):
    params, plain = weights(), weights()
    optimizer = SETTINGS[setting](params, lr=torch.tensor(0.03, dtype=torch.float64))
    expected = run(SETTINGS[setting](plain, lr=0.03), plain, 5)
    for a, b in zip(run(optimizer, params, 5), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@EVERY
def test_a_tensor_lr_in_one_dimension_and_weight_decay(setting):
    params, plain = weights(), weights()
    optimizer = SETTINGS[setting](params, lr=torch.tensor([0.03], dtype=torch.float64), weight_decay=0.1)
    expected = run(SETTINGS[setting](plain, lr=0.03, weight_decay=0.1), plain, 5)
    for a, b in zip(run(optimizer, params, 5), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@EVERY
def test_maximize_climbs_what_the_negative_descends(setting):
    params, negative = weights(), weights()
    optimizer, other = SETTINGS[setting](params, maximize=True), SETTINGS[setting](negative)
    for step in range(4):
        set_gradients(params, step)
        for p, n in zip(params, negative, strict=True):
            n.grad = -p.grad
        optimizer.step()
        other.step()
    for a, b in zip(params, negative, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@EVERY
def test_parameters_without_gradient_stay(setting):
    params = weights()
    optimizer = SETTINGS[setting](params)
    optimizer.step()
    set_gradients(params, 0)
    params[1].grad = None
    before = params[1].detach().clone()
    optimizer.step()
    assert torch.equal(params[1], before)
    assert params[1] not in optimizer.state


@EVERY
def test_a_closure_is_called_with_gradients_on(setting):
    params = weights()
    optimizer = SETTINGS[setting](params)

    def closure():
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        return loss

    first = optimizer.step(closure)
    for _ in range(5):
        last = optimizer.step(closure)
    assert last < first


@EVERY
def test_gradients_are_left_as_they_were(setting):
    params = weights()
    optimizer = SETTINGS[setting](params, weight_decay=0.1)
    for step in range(2):
        set_gradients(params, step)
        before = [p.grad.clone() for p in params]
        optimizer.step()
        assert_equal([p.grad for p in params], before)


@EVERY
def test_a_zero_gradient_moves_nothing(setting):
    params = weights()
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.zeros_like(p)
    SETTINGS[setting](params).step()
    assert_equal([p.detach() for p in params], before)


def test_repr_names_the_class():
    assert "GeneralizedSignSGD" in repr(optim.build("generalized-signsgd", weights()))


@pytest.mark.skipif(torch.__version__ < (2, 6), reason="torch's optimizers take named parameters from 2.6 on")
def test_named_parameters():
    named = list(zip("abc", weights(), strict=True))
    optimizer = optim.build("generalized-signsgd", named)
    assert optimizer.param_groups[0]["param_names"] == ["a", "b", "c"]
    assert all(held is given for held, (_, given) in zip(optimizer.param_groups[0]["params"], named, strict=True))


@EVERY
def test_a_gradient_scaler_changes_nothing_and_skips_what_overflowed(setting):
    params, plain = weights(torch.float32), weights(torch.float32)
    optimizer, other = SETTINGS[setting](params), SETTINGS[setting](plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(3):
        set_gradients(params, step)
        for p, q in zip(params, plain, strict=True):
            q.grad = p.grad.clone()
            p.grad *= 1024.0
        scaler.scale(torch.zeros(()))
        if step == 1:
            params[0].grad[0, 0] = torch.inf
        else:
            other.step()
        scaler.step(optimizer)
        scaler.update(1024.0)
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "build",
    [
        lambda p: GeneralizedSignSGD(p, lr=0.1, betas=(0.8, 0.9), eps=1e-3, differentiable=True),
        lambda p: GeneralizedSignSGD(p, lr=0.1, betas=(0.8, 0.9), bias_correction=True, differentiable=True),
        lambda p: SGDClip(p, lr=0.1, max_norm=0.2, momentum=0.9, nu=0.6, differentiable=True),
        lambda p: SGDNormalized(p, lr=0.1, differentiable=True),
    ],
)
def test_differentiable_steps_have_the_right_derivative(build):
    def after_three_steps(x):
        p = x.clone()
        optimizer = build([p])
        for factor in (1.0, 2.0, 0.5):
            p.grad = factor * (p.clone().sin() + x)  # the step changes p in place
            optimizer.step()
        return p

    x = torch.tensor([0.7, -1.3, 2.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(after_three_steps, (x,))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GeneralizedSignSGD([P(torch.ones(1))], lr=-1), "Invalid learning rate: -1"),
        (lambda: GeneralizedSignSGD([P(torch.ones(1))], lr=float("nan")), "Invalid learning rate: nan"),
        (lambda: GeneralizedSignSGD([P(torch.ones(1))], lr="0.1"), "Invalid learning rate: '0.1'; it must be a number"),
        (lambda: SGDNormalized([P(torch.ones(1))], lr=None), "Invalid learning rate: None; it must be a number"),
        (lambda: SGDClip([P(torch.ones(1))], lr=0.1, max_norm=None), "Invalid max_norm value: None; it must be"),
        (lambda: GeneralizedSignSGD([P(torch.ones(1))], betas=0.9), "Invalid betas: 0.9; they must be two numbers"),
        (lambda: GeneralizedSignSGD([P(torch.ones(1))], betas=(0.9, 0.9, 0.9)), "they must be two numbers"),
        (lambda: GeneralizedSignSGD([P(torch.ones(1))], betas=("a", 0.9)), "index 0: 'a'; it must be a number"),
        (lambda: optim.build("adam", [P(torch.ones(1))], lr="0.1"), "adam has lr='0.1', which is text, not a number"),
        (lambda: GeneralizedSignSGD([P(torch.ones(1))], lr=torch.ones(2)), "Tensor lr must be 1-element"),
        (lambda: GeneralizedSignSGD([P(torch.ones(1))], betas=(1.0, 0.9)), "beta parameter at index 0: 1.0"),
        (lambda: GeneralizedSignSGD([P(torch.ones(1))], betas=(0.9, -0.1)), "beta parameter at index 1: -0.1"),
        (lambda: GeneralizedSignSGD([P(torch.ones(1))], eps=-1e-8), "Invalid epsilon value"),
        (lambda: GeneralizedSignSGD([P(torch.ones(1))], weight_decay=-1), "Invalid weight_decay value"),
        (lambda: GeneralizedSignSGD([P(torch.ones(1))], foreach=True, fused=True), "cannot be `True` together"),
        (lambda: GeneralizedSignSGD([P(torch.ones(1))], differentiable=True, fused=True), "does not support"),
        (lambda: GeneralizedSignSGD([P(torch.ones(1))], differentiable=True, foreach=True), "does not support"),
        (lambda: GeneralizedSignSGD([P(torch.ones(1))], eps=0.0, fused=True), "`fused` needs eps > 0"),
        (lambda: GeneralizedSignSGD([P(torch.ones(1, device="meta"))], fused=True), "supported devices"),
        (lambda: GeneralizedSignSGD([P(torch.ones(1))], compile=True, fused=True), "leave fused unset"),
        (lambda: GeneralizedSignSGD([P(torch.ones(1))], compile=True, foreach=True), "leave foreach unset"),
        (
            lambda: GeneralizedSignSGD([P(torch.ones(1))], compile=True, differentiable=True),
            "leave differentiable unset",
        ),
        (lambda: GeneralizedSignSGD([P(torch.ones(1, device="meta"))], compile=True), "leave compile unset"),
        (lambda: GeneralizedSignSGD([P(torch.ones(1, dtype=torch.complex64))]), "complex"),
        (lambda: SGDClip([P(torch.ones(1))], lr=0.1, max_norm=0.0), "Invalid max_norm value: 0.0"),
        (lambda: SGDClip([P(torch.ones(1))], lr=0.1, max_norm=1.0, nu=1.5), "Invalid nu value: 1.5"),
        (lambda: SGDClip([P(torch.ones(1))], lr=0.1, max_norm=1.0, momentum=-0.1), "Invalid momentum value"),
        (lambda: SGDClip([P(torch.ones(1))], lr=0.1, max_norm=1.0, nesterov=True), "Nesterov momentum requires"),
        (lambda: SGDClip([P(torch.ones(1, dtype=torch.complex64))], lr=0.1, max_norm=1.0), "complex"),
        (lambda: SGDNormalized([P(torch.ones(1))], lr=0.1, dampening=0.1, nesterov=True), "Nesterov"),
        (lambda: SGDNormalized([P(torch.ones(1))], lr=0.1, differentiable=True, foreach=True), "does not support"),
        (lambda: optim.build("adan", [P(torch.ones(1))]), "no optimizer named 'adan'; did you mean adam"),
        (lambda: optim.build("sgd", [P(torch.ones(1))], momentum=0.9), "sgd has no momentum; it takes lr"),
        (lambda: optim.build("signsgd", [P(torch.ones(1))], betas=(0.9, 0.9)), "signsgd has no betas"),
        (lambda: optim.build("adam", [P(torch.ones(1))], lr=-1.0), "adam refuses its hyperparameters"),
        (lambda: optim.hyperparameters("nadam"), "no optimizer named 'nadam'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(build, message):
    with pytest.raises(LsmoothError, match=message.replace("(", r"\(")) as caught:
        build()
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, (ValueError, RuntimeError))


@EVERY
def test_sparse_gradients_are_refused(setting):
    layer = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = SETTINGS[setting](layer.parameters())
    layer(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(LsmoothError, match="does not support sparse gradients"):
        optimizer.step()
