"""What makes these optimizers drop-in: everything that torch.optim's own can do, and no waiting for the device."""

import copy
import io

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lsmooth import optim
from lsmooth.errors import InvalidArgumentError, LsmoothError
from lsmooth.optim import GeneralizedSignSGD, SGDClip, SGDNormalized

SETTINGS = {
    "signsgd fused": lambda p, **a: GeneralizedSignSGD(p, **{"lr": 1e-2, "fused": True} | a),
    "signsgd foreach": lambda p, **a: GeneralizedSignSGD(p, **{"lr": 1e-2, "foreach": True} | a),
    "signsgd single": lambda p, **a: GeneralizedSignSGD(p, **{"lr": 1e-2, "foreach": False, "fused": False} | a),
    "signsgd eps=0": lambda p, **a: GeneralizedSignSGD(p, **{"lr": 1e-2, "eps": 0.0} | a),
    "signsgd corrected": lambda p, **a: GeneralizedSignSGD(p, **{"lr": 1e-2, "bias_correction": True} | a),
    "signum": lambda p, **a: GeneralizedSignSGD(p, **{"lr": 1e-2, "betas": (0.9, 0.0), "eps": 0.0} | a),
    "clip": lambda p, **a: SGDClip(p, **{"lr": 0.05, "max_norm": 0.05, "momentum": 0.9, "nu": 0.7} | a),
    "clip single": lambda p, **a: SGDClip(p, **{"lr": 0.05, "max_norm": 0.05, "momentum": 0.9, "foreach": False} | a),
    "normalized": lambda p, **a: SGDNormalized(p, **{"lr": 0.05} | a),
    "normalized single": lambda p, **a: SGDNormalized(p, **{"lr": 0.05, "foreach": False} | a),
}
EVERY = pytest.mark.parametrize("setting", SETTINGS)


def weights(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape in [(4, 3), (5,), ()]
    ]


def set_gradients(params, step):
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        p.grad = p.detach() + noise


def run(optimizer, params, steps, start=0, after=None):
    for step in range(start, start + steps):
        set_gradients(params, step)
        optimizer.step()
        if after:
            after()
    return [p.detach().clone() for p in params]


def assert_equal(a, b):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


# --- state ---


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


def test_a_state_of_another_backend_can_be_loaded():
    params = weights()
    optimizer = SETTINGS["signsgd fused"](params)
    run(optimizer, params, 3)
    other = [torch.nn.Parameter(p.detach().clone()) for p in params]
    single = SETTINGS["signsgd single"](other)
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"] = single.state_dict()["param_groups"]
    single.load_state_dict(state)
    for a, b in zip(run(single, other, 3, 3), run(optimizer, params, 3, 3), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_groups_of_an_older_checkpoint_get_the_defaults_they_lack():
    params = weights()
    optimizer = SETTINGS["signsgd fused"](params)
    state = optimizer.state_dict()
    del state["param_groups"][0]["bias_correction"]
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["bias_correction"] is False
    run(optimizer, params, 1)


def test_beta2_may_be_switched_on_and_off():
    """Without beta2 v is m² and not stored; what comes after goes on from m²."""
    params = weights()
    optimizer = GeneralizedSignSGD(params, betas=(0.9, 0.0))
    run(optimizer, params, 3)
    assert all("exp_avg_sq" not in optimizer.state[p] for p in params)
    before = [optimizer.state[p]["exp_avg"].clone() for p in params]
    optimizer.param_groups[0]["betas"] = (0.9, 0.5)
    run(optimizer, params, 1, start=3)
    for p, m in zip(params, before, strict=True):
        expected = 0.5 * m**2 + 0.5 * optimizer.state[p]["exp_avg"] ** 2
        torch.testing.assert_close(optimizer.state[p]["exp_avg_sq"], expected)


# --- groups and schedules ---


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


@pytest.mark.parametrize("setting", ["clip", "clip single", "normalized", "normalized single"])
def test_the_norm_is_over_all_groups(setting):
    together, apart = weights(), weights()
    whole = run(SETTINGS[setting](together), together, 4)
    groups = [{"params": [p]} for p in apart]
    for a, b in zip(run(SETTINGS[setting](groups), apart, 4), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


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


def test_repr_names_the_class():
    assert "GeneralizedSignSGD" in repr(optim.build("generalized-signsgd", weights()))


@pytest.mark.skipif(torch.__version__ < (2, 6), reason="torch's optimizers take named parameters from 2.6 on")
def test_named_parameters():
    named = list(zip("abc", weights(), strict=True))
    optimizer = optim.build("generalized-signsgd", named)
    assert optimizer.param_groups[0]["param_names"] == ["a", "b", "c"]
    assert all(held is given for held, (_, given) in zip(optimizer.param_groups[0]["params"], named, strict=True))


# --- dtypes and layouts ---


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_narrow_parameters_follow_wide_ones(setting, dtype):
    narrow = weights(dtype)
    wide = [torch.nn.Parameter(p.detach().double()) for p in narrow]
    a, b = SETTINGS[setting](narrow), SETTINGS[setting](wide)
    for step in range(3):
        set_gradients(narrow, step)
        for n, w in zip(narrow, wide, strict=True):
            w.grad = n.grad.double()
        a.step()
        b.step()
    assert all(p.dtype == dtype for p in narrow)
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-4
    for n, w in zip(narrow, wide, strict=True):
        torch.testing.assert_close(n.double(), w, rtol=tolerance, atol=tolerance)


@EVERY
def test_mixed_dtypes_in_one_group(setting):
    params = [weights(torch.float32)[0], weights()[1], weights(torch.bfloat16)[2]]
    before = [p.detach().clone() for p in params]
    run(SETTINGS[setting](params), params, 2)
    assert all(not torch.equal(p, b) for p, b in zip(params, before, strict=True))


@EVERY
@pytest.mark.parametrize("layout", ["transposed", "gaps", "gradient transposed", "channels last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_memory_layouts_do_not_matter(setting, layout, dtype):
    torch.manual_seed(0)
    value, gradients = torch.randn(3, 4, 2, 5).to(dtype), [torch.randn(3, 4, 2, 5).to(dtype) for _ in range(3)]
    change = {
        "transposed": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
        "gaps": lambda t: torch.stack([t, t], -1)[..., 0],
        "gradient transposed": lambda t: t,
        "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    }[layout]
    results = []
    for convert in (lambda t: t.clone(), change):
        p = torch.nn.Parameter(convert(value.clone()))
        optimizer = SETTINGS[setting]([p], weight_decay=0.1)
        for gradient in gradients:
            p.grad = gradient.clone()
            if convert is change and layout == "gradient transposed":
                p.grad = gradient.transpose(0, 3).contiguous().transpose(0, 3)
            optimizer.step()
        results.append(p.detach())
    tolerance = 1e-13 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(results[1], results[0], rtol=tolerance, atol=tolerance)


def test_tensors_larger_than_a_block():
    torch.manual_seed(0)
    value, gradient = torch.randn(600, 1000), torch.randn(600, 1000)
    results = []
    for backend in ({"foreach": True}, {"fused": True}, {"foreach": False, "fused": False}):
        p = torch.nn.Parameter(value.clone())
        # Coupled decay could cancel a gradient, and what is left of it is rounding, which the root then blows up.
        optimizer = GeneralizedSignSGD([p], lr=0.1, weight_decay=0.1, decoupled_weight_decay=True, **backend)
        for _ in range(2):
            p.grad = gradient.clone()
            optimizer.step()
        results.append(p.detach())
    torch.testing.assert_close(results[0], results[2], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(results[1], results[2], rtol=1e-6, atol=1e-6)


# --- SignSGD, SIGNUM, scale ---


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("foreach", [None, False])
def test_signsgd_steps_are_signs_exactly(dtype, foreach):
    p = torch.nn.Parameter(torch.zeros(6, dtype=dtype))
    optimizer = GeneralizedSignSGD([p], lr=1.0, betas=(0.0, 0.0), eps=0.0, foreach=foreach)
    p.grad = torch.tensor([1e-30, -1e-30, 0.0, 1e30, -3.0, 5e-39], dtype=dtype)
    optimizer.step()
    assert p.tolist() == [-1, 1, 0, -1, 1, -1]


def test_signum_steps_are_signs_of_momentum_exactly():
    p = torch.nn.Parameter(torch.zeros(50))
    optimizer = optim.build("signum", [p], lr=0.5, momentum=0.9)
    m, x = torch.zeros(50), torch.zeros(50)
    for step in range(20):
        set_gradients([p], step)
        m.lerp_(p.grad, 1 - 0.9)
        x -= 0.5 * m.sign()
        optimizer.step()
        assert torch.equal(p, x)


@pytest.mark.parametrize("foreach", [None, False])
@pytest.mark.parametrize("beta2", [0.0, 0.9])
def test_without_eps_a_zero_moment_moves_nothing(foreach, beta2):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = GeneralizedSignSGD([p], lr=0.1, betas=(0.9, beta2), eps=0.0, foreach=foreach)
    p.grad = torch.tensor([0.0, 1.0, 0.0])
    optimizer.step()
    assert p[0] == 1
    assert p[1] < 1
    assert torch.isfinite(p).all()


@pytest.mark.parametrize("foreach", [None, False])
def test_gradients_whose_square_underflows_do_not_leap(foreach):
    """|m| / √v <= 1 / √(1 - beta2) in exact arithmetic; 1e-25² is 0 in float32."""
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = GeneralizedSignSGD([p], lr=1.0, betas=(0.9, 0.99), eps=0.0, foreach=foreach)
    for exponent in (-25, -23, -22, -21, -20):
        before = p.item()
        p.grad = torch.tensor([10.0**exponent])
        optimizer.step()
        assert abs(p.item() - before) <= 1 / (1 - 0.99) ** 0.5 * 1.001


@pytest.mark.parametrize("scale", [1e3, 1e-3, 2.0**20])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.0)])
def test_without_eps_iterates_do_not_depend_on_the_scale_of_the_loss(scale, decay, betas):
    results = []
    for factor in (1.0, scale):
        params = weights()
        optimizer = GeneralizedSignSGD(
            params, lr=0.01, betas=betas, eps=0.0, weight_decay=decay, decoupled_weight_decay=True
        )
        for step in range(50):
            set_gradients(params, step)
            for p in params:
                p.grad *= factor
            optimizer.step()
        results.append([p.detach() for p in params])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_l2_decay_does_depend_on_the_scale():
    """What the test above would not notice if decay were never coupled."""
    results = []
    for factor in (1.0, 1e-3):
        params = weights()
        optimizer = GeneralizedSignSGD(params, lr=0.01, eps=0.0, weight_decay=0.1)
        for step in range(50):
            set_gradients(params, step)
            for p in params:
                p.grad *= factor
            optimizer.step()
        results.append(torch.cat([p.detach().flatten() for p in params]))
    assert (results[0] - results[1]).abs().max() > 1e-3


# --- no waiting for the device ---


class Syncs(TorchDispatchMode):
    """Counts what would make the host wait for the device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@EVERY
@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01, dtype=torch.float64)], ids=["number", "tensor"])
def test_a_step_never_waits_for_the_device(setting, lr):
    for dtype in (torch.float64, torch.float32):
        params = weights(dtype)
        optimizer = SETTINGS[setting](params, lr=lr, weight_decay=0.1)
        for step in range(2):
            set_gradients(params, step)
            with Syncs() as syncs:
                optimizer.step()
            assert syncs.found == []


def test_the_counter_of_syncs_counts():
    with Syncs() as syncs:
        torch.ones(()).item()
    assert len(syncs.found) == 1


@EVERY
def test_a_zero_gradient_moves_nothing(setting):
    params = weights()
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.zeros_like(p)
    SETTINGS[setting](params).step()
    assert_equal([p.detach() for p in params], before)


def test_clipping_passes_nan_on():
    """A norm of NaN must not look like one that is small enough."""
    params = weights()
    optimizer = SETTINGS["clip"](params)
    set_gradients(params, 0)
    params[0].grad[0, 0] = torch.nan
    optimizer.step()
    assert all(torch.isnan(p).all() for p in params)


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


# --- differentiable ---


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


# --- refusals ---

P = torch.nn.Parameter


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


def test_a_refused_group_leaves_the_optimizer_as_it_was():
    params = weights()
    optimizer = SETTINGS["signsgd fused"](params[:2])
    with pytest.raises(InvalidArgumentError, match="learning rate"):
        optimizer.add_param_group({"params": params[2:], "lr": -1.0})
    assert len(optimizer.param_groups) == 1
    run(optimizer, params[:2], 1)


@pytest.mark.parametrize("name", optim.NAMES)
def test_listed_defaults_are_those_of_the_classes(name):
    """The catalogue states defaults without importing torch; where a class has one, too, they agree."""
    import inspect

    built = optim.build(name, weights())
    signature = inspect.signature(type(built).__init__).parameters
    chosen = {"momentum": "sgd-momentum" in name or "clip-momentum" in name, "max_norm": True, "lr": "clip" in name}
    for key, value in optim.hyperparameters(name).items():
        if key in built.defaults:
            assert built.defaults[key] == value
        if key in signature and signature[key].default is not inspect.Parameter.empty and not chosen.get(key):
            assert signature[key].default == value


def test_reading_the_names_does_not_import_torch():
    import subprocess
    import sys

    script = "import sys, lsmooth.optim as o; o.NAMES, o.hyperparameters('adam'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@EVERY
def test_cuda_steps_are_cpu_steps(setting):
    host = weights(torch.float32)
    device = [torch.nn.Parameter(p.detach().cuda()) for p in host]
    # CUDA's fused kernel computes with beta2 as float32 has it.
    rounded = {"betas": (0.9, torch.tensor(0.999).item())} if "signsgd" in setting else {}
    a, b = SETTINGS[setting](host, **rounded), SETTINGS[setting](device, **rounded)
    for step in range(5):
        set_gradients(host, step)
        for h, d in zip(host, device, strict=True):
            d.grad = h.grad.cuda()
        a.step()
        with torch.cuda.device(0):
            torch.cuda.set_sync_debug_mode("error")
            try:
                b.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
    for h, d in zip(host, device, strict=True):
        torch.testing.assert_close(d.cpu(), h, rtol=1e-5, atol=1e-6)
