"""Training loops as people write them, each to be run bare, with a recorder, and with a slow, obvious reference.

A loop is a function of `watch`, which gives it `backward` in place of `loss.backward()`, and sees every step.
"""

import copy
import optparse
import random
from contextlib import contextmanager

import numpy as np
import torch
import torch.utils.checkpoint
from torch import nn

import lsmooth
from lsmooth.loop.settings import DEFAULT_GAMMAS as GAMMAS


def device_type():
    """What tensors are made on by default, and so are the models and batches here."""
    return torch.get_default_device().type


def on_gpu():
    return device_type() == "cuda"


def everything(model, optimizer):
    """All that a recorder could have changed, in a form that compares bit for bit."""
    state = {f"model.{name}": tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for name, buffer in model.named_buffers():
        state[f"buffer.{name}"] = buffer.detach().clone()
    for name, parameter in model.named_parameters():
        state[f"grad.{name}"] = None if parameter.grad is None else parameter.grad.clone()
        state[f"requires_grad.{name}"] = parameter.requires_grad
    for index, per_parameter in optimizer.state_dict()["state"].items():
        for name, value in per_parameter.items():
            state[f"optimizer.{index}.{name}"] = copy.deepcopy(value)
    state["groups"] = copy.deepcopy(optimizer.state_dict()["param_groups"])
    state["training"] = [module.training for module in model.modules()]
    state["hooks"] = [len(p._post_accumulate_grad_hooks or ()) for p in model.parameters()]
    state["torch"] = torch.get_rng_state()
    state["cuda"] = torch.cuda.get_rng_state() if on_gpu() else None
    state["numpy"] = [np.asarray(part).tolist() for part in np.random.get_state()[1:]]
    state["random"] = random.getstate()
    return state


def differences(one, other):
    """Names of what is not bit for bit the same."""
    assert one.keys() == other.keys()
    found = []
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            # NaN is equal to itself here: bits are compared.
            same = other[name] is not None and value.dtype == other[name].dtype
            same = same and torch.equal(torch.nan_to_num(value.float()), torch.nan_to_num(other[name].float()))
            same = same and torch.equal(value.isnan(), other[name].isnan())
        else:
            same = value == other[name]
        if not same:
            found.append(name)
    return found


class Bare:
    """The loop without anything attached."""

    def attach(self, model, optimizer):
        self.model, self.optimizer = model, optimizer

    def backward(self, closure, scaler=None):
        returned = closure()
        loss = returned[0] if isinstance(returned, tuple) else returned
        (loss if scaler is None else scaler.scale(loss)).backward()
        if isinstance(returned, tuple):
            return tuple(item.detach() for item in returned)
        return returned.detach()

    def before_step(self):
        pass

    def after_step(self):
        pass

    def end(self):
        pass


class Recorded(Bare):
    """The loop with a recorder."""

    def __init__(self, path, **arguments):
        self.path, self.arguments = path, arguments

    def attach(self, model, optimizer):
        super().attach(model, optimizer)
        self.recorder = lsmooth.Recorder(model, optimizer, self.path, **self.arguments)

    def backward(self, closure, scaler=None):
        return self.recorder.backward(closure, scaler)

    def end(self):
        self.recorder.close()


class Reference(Bare):
    """Deep copies, loops over names, everything spelled out: what the recorder's numbers must agree with."""

    def attach(self, model, optimizer):
        super().attach(model, optimizer)
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.names = [name for name, p in model.named_parameters() if id(p) in mine]
        self.calls, self.rows = [], []

    def backward(self, closure, scaler=None):
        self.calls.append((closure, snapshot(self.model)))
        return super().backward(closure, scaler)

    def before_step(self):
        self.start = snapshot(self.model)

    def after_step(self):
        end, rng = snapshot(self.model), random_states()
        flags = [module.training for module in self.model.modules()]
        saved = {name: p.grad for name, p in self.model.named_parameters()}
        row = {"loss_along": [], "grad_diff": []}
        with no_trace():
            first_loss, first = self.gradient(self.start)
            row["loss"] = first_loss
            row["grad_norm"] = [first[name].norm().item() for name in self.names]
            moved = {name: end["parameters"][name].double() - self.start["parameters"][name].double() for name in first}
            row["step_norm"] = [moved[name].norm().item() for name in self.names]
            row["slope"] = sum((first[name] * moved[name]).sum().item() for name in self.names)
            row["first"], row["moved"], row["along"] = first, moved, []
            for gamma in GAMMAS:
                between = {
                    name: torch.lerp(a, end["parameters"][name], gamma) if name in self.names else a
                    for name, a in self.start["parameters"].items()
                }
                loss, gradient = self.gradient({"parameters": between})
                row["loss_along"].append(loss)
                row["grad_diff"].append([(gradient[name] - first[name]).norm().item() for name in self.names])
                row["along"].append(gradient)
            row["loss_next"], row["next"] = self.gradient(end)
        restore(self.model, end)
        for module, flag in zip(self.model.modules(), flags, strict=True):
            module.training = flag
        for name, p in self.model.named_parameters():
            p.grad = saved[name]
        set_random_states(rng)
        self.rows.append(row)
        self.calls = []

    def gradient(self, point):
        total, losses = dict.fromkeys(self.names, 0.0), 0.0
        for closure, state in self.calls:
            restore(self.model, state)
            own = {name: point["parameters"][name] for name in self.names}
            restore(self.model, {"parameters": own, "buffers": state["buffers"]})
            set_random_states(state["random"])
            self.model.zero_grad(set_to_none=True)
            with contextlib_stack(state["autocast"]):
                returned = closure()
                loss = returned[0] if isinstance(returned, tuple) else returned
                loss.backward()
            losses += loss.item()
            for name, p in self.model.named_parameters():
                if name in total and p.grad is not None:
                    total[name] = total[name] + p.grad.double()
        return losses, {
            name: value if torch.is_tensor(value) else torch.zeros(()).double() for name, value in total.items()
        }


def random_states():
    return (
        torch.get_rng_state(),
        np.random.get_state(),
        random.getstate(),
        torch.cuda.get_rng_state() if on_gpu() else None,
    )


def set_random_states(states):
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
    if states[3] is not None:
        torch.cuda.set_rng_state(states[3])


def snapshot(model):
    return {
        "parameters": {name: p.detach().clone() for name, p in model.named_parameters()},
        "buffers": {name: b.detach().clone() for name, b in model.named_buffers()},
        "random": random_states(),
        "training": [module.training for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "autocast": (torch.is_autocast_enabled(device_type()), torch.get_autocast_dtype(device_type())),
    }


def restore(model, state):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in state["parameters"]:
                p.copy_(state["parameters"][name])
        for name, b in model.named_buffers():
            if "buffers" in state:
                b.copy_(state["buffers"][name])
    if "training" in state:
        for module, flag in zip(model.modules(), state["training"], strict=True):
            module.training = flag
        for p, flag in zip(model.parameters(), state["requires_grad"], strict=True):
            p.requires_grad_(flag)


@contextmanager
def contextlib_stack(autocast):
    with torch.autocast(device_type(), enabled=autocast[0], dtype=autocast[1]):
        torch.clear_autocast_cache()
        yield


@contextmanager
def no_trace():
    with torch.enable_grad():
        yield


def seed_all(seed=0):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def not_put_back(**attributes):
    """Return an object that evaluations can count in: replays leave alone what the standard library's objects hold."""
    return optparse.Values(attributes)


def classify(model, x, y):
    return nn.functional.cross_entropy(model(x), y)


class Drawn:
    """Numbers that are the same on every device."""

    def __init__(self, seed):
        self.generator = torch.Generator("cpu").manual_seed(seed)

    def normal(self, *shape):
        return torch.randn(shape, generator=self.generator, device="cpu").to(torch.get_default_device())

    def classes(self, count, *shape):
        return torch.randint(count, shape, generator=self.generator, device="cpu").to(torch.get_default_device())


def batches(count, size=8, features=6, classes=3, seed=1):
    drawn = Drawn(seed)
    return [(drawn.normal(size, features), drawn.classes(classes, size)) for _ in range(count)]


def simple(model, optimizer, watch, *, between=None, steps=6, context=None, dtype=None, scheduler=None):
    """The usual loop; `between` is what happens between backward and step."""
    watch.attach(model, optimizer)
    for i, (x, y) in enumerate(batches(steps)):
        if dtype is not None:
            x = x.to(dtype)
        optimizer.zero_grad()
        if context is not None:
            with context():
                watch.backward(lambda x=x, y=y: classify(model, x, y))
        else:
            watch.backward(lambda x=x, y=y: classify(model, x, y))
        if between is not None:
            between(i)
        watch.before_step()
        optimizer.step()
        watch.after_step()
        if scheduler is not None:
            scheduler.step()
    watch.end()
    return model, optimizer


def mlp(*extra, dtype=torch.float32):
    return nn.Sequential(nn.Linear(6, 8), *extra, nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def sgd(model, lr=0.3, **arguments):
    return torch.optim.SGD(model.parameters(), lr=lr, **arguments)


def plain(watch):
    model = mlp()
    return simple(model, torch.optim.Adam(model.parameters(), lr=0.05), watch)


def dropout(watch):
    model = mlp(nn.Dropout(0.4))
    return simple(model, sgd(model), watch)


def numpy_and_random_draws(watch):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            return self.inner(x * float(np.random.rand()) + random.random())

    model = Noisy()
    return simple(model, sgd(model), watch)


def draws_between_backward_and_step(watch):
    class Langevin(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.grad.add_(torch.randn_like(p) * float(np.random.rand()) * random.random())
            return super().step(closure)

    model = mlp(nn.Dropout(0.4))
    return simple(model, Langevin(model.parameters(), lr=0.1), watch, between=lambda i: torch.rand(3))


def batch_norm(watch):
    model = mlp(nn.BatchNorm1d(8))
    return simple(model, sgd(model), watch)


def eval_between(watch):
    model = mlp(nn.BatchNorm1d(8), nn.Dropout(0.3))
    return simple(model, sgd(model), watch, between=lambda i: model.train(i % 2 == 0))


def spectral_norm(watch):
    model = mlp()
    nn.utils.parametrizations.spectral_norm(model[0])
    return simple(model, sgd(model), watch)


def weight_norm(watch):
    model = mlp()
    nn.utils.parametrizations.weight_norm(model[0])
    return simple(model, sgd(model), watch)


def buffer_rebound(watch):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()
            self.register_buffer("mean", torch.zeros(6))

        def forward(self, x):
            y = self.inner(x - self.mean)
            self.mean = 0.5 * self.mean + 0.5 * x.mean(0)
            return y

    model = Counting()
    return simple(model, sgd(model), watch)


def rnn_hidden(watch):
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(6, 5, batch_first=True)
            self.head = nn.Linear(5, 3)

        def forward(self, x, state):
            out, state = self.rnn(x, state)
            return self.head(out), state

    model = Tagger()
    optimizer = sgd(model, 0.5)
    watch.attach(model, optimizer)
    hidden, cell = torch.zeros(1, 4, 5), torch.zeros(1, 4, 5)
    drawn = Drawn(3)
    for _ in range(6):
        x, y = drawn.normal(4, 7, 6), drawn.classes(3, 4, 7)

        def closure(x=x, y=y, state=(hidden, cell)):
            out, (h, c) = model(x, state)
            return nn.functional.cross_entropy(out.flatten(0, 1), y.flatten()), h, c

        optimizer.zero_grad()
        _, hidden, cell = watch.backward(closure)
        watch.before_step()
        optimizer.step()
        watch.after_step()
    watch.end()
    return model, optimizer


def accumulation(watch):
    model = mlp(nn.Dropout(0.2), nn.BatchNorm1d(8))
    optimizer = sgd(model)
    watch.attach(model, optimizer)
    for step in range(5):
        optimizer.zero_grad()
        parts = [batches(1, size, seed=10 * step + size)[0] for size in (8, 3, 5)]
        for x, y in parts:
            watch.backward(lambda x=x, y=y: classify(model, x, y) * len(x) / 16)
        watch.before_step()
        optimizer.step()
        watch.after_step()
    watch.end()
    return model, optimizer


def accumulation_with_an_incomplete_end(watch):
    """Three microbatches a step, of which the last step has only what is left."""
    model = mlp(nn.BatchNorm1d(8))
    optimizer = sgd(model)
    watch.attach(model, optimizer)
    stream = batches(10)
    for i, (x, y) in enumerate(stream):
        watch.backward(lambda x=x, y=y: classify(model, x, y) / 3)
        if (i + 1) % 3 == 0 or i + 1 == len(stream):
            watch.before_step()
            optimizer.step()
            watch.after_step()
            optimizer.zero_grad()
    watch.end()
    return model, optimizer


def clip_norm(watch):
    model = mlp()
    return simple(model, sgd(model), watch, between=lambda i: nn.utils.clip_grad_norm_(model.parameters(), 0.05))


def clip_value(watch):
    model = mlp()
    return simple(model, sgd(model), watch, between=lambda i: nn.utils.clip_grad_value_(model.parameters(), 0.01))


def clip_past_the_version_counter(watch):
    model = mlp()

    def clip(_):
        for p in model.parameters():
            p.grad.data.mul_(0.1)

    return simple(model, sgd(model), watch, between=clip)


def l2_decay(watch):
    model = mlp()
    return simple(model, sgd(model, momentum=0.9, weight_decay=0.1), watch)


def decoupled_decay(watch):
    model = mlp()
    return simple(model, torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.2), watch)


def groups_and_scheduler(watch):
    model = mlp()
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[2].parameters(), "lr": 0.05}], lr=0.1
    )
    return simple(model, optimizer, watch, scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5))


def scheduler_of_every_step(watch):
    """A schedule of lr and momentum, made after the recorder was attached: it wraps `optimizer.step` itself."""
    model = mlp()
    optimizer = sgd(model, 0.1, momentum=0.9)
    watch.attach(model, optimizer)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=9)
    for x, y in batches(6):
        watch.backward(lambda x=x, y=y: classify(model, x, y))
        watch.before_step()
        optimizer.step()
        watch.after_step()
        optimizer.zero_grad()
        scheduler.step()
    watch.end()
    return model, optimizer


def averaged_weights(watch):
    """An exponential moving average of the weights, updated after every step and evaluated in between."""
    model = mlp(nn.BatchNorm1d(8))
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    optimizer = sgd(model)
    watch.attach(model, optimizer)
    seen = []
    for x, y in batches(5):
        optimizer.zero_grad()
        watch.backward(lambda x=x, y=y: classify(model, x, y))
        watch.before_step()
        optimizer.step()
        watch.after_step()
        average.update_parameters(model)
        with torch.no_grad():
            seen.append(average(x))
    watch.end()
    model.register_buffer("seen", torch.stack(seen))
    for i, p in enumerate(average.parameters()):
        model.register_buffer(f"average_{i}", p.detach())
    return model, optimizer


def frozen_and_unfrozen_on_the_way(watch):
    """What is trained changes between backward and step, and so do the flags that a replay finds."""
    model = mlp(nn.Linear(8, 8))
    model[0].requires_grad_(False)
    return simple(model, sgd(model), watch, between=lambda i: model[0].requires_grad_(i in (2, 3, 4)))


def parametrized(watch):
    """Weights that are computed from others, one of them through a matrix exponential."""

    class Symmetric(nn.Module):
        def forward(self, x):
            return x.triu() + x.triu(1).transpose(-1, -2)

    model = mlp(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    nn.utils.parametrize.register_parametrization(model[1], "weight", Symmetric())
    nn.utils.parametrizations.orthogonal(model[3])
    return simple(model, sgd(model), watch)


def gradient_penalty(watch):
    """A loss that contains a gradient, so that the closure runs a backward pass of its own."""
    model = mlp()
    optimizer = sgd(model)
    watch.attach(model, optimizer)
    for x, y in batches(5):

        def closure(x=x, y=y):
            x = x.requires_grad_()
            loss = classify(model, x, y)
            (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
            return loss + gradient.square().sum()

        optimizer.zero_grad()
        watch.backward(closure)
        watch.before_step()
        optimizer.step()
        watch.after_step()
    watch.end()
    return model, optimizer


def zeroed_not_dropped(watch):
    model = mlp()
    optimizer = sgd(model)
    original = optimizer.zero_grad
    optimizer.zero_grad = lambda: original(set_to_none=False)
    return simple(model, optimizer, watch)


def autocast_outside(watch):
    model = mlp(nn.Linear(8, 8))
    return simple(model, sgd(model), watch, context=lambda: torch.autocast(device_type(), dtype=torch.bfloat16))


def autocast_inside(watch):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp(nn.Linear(8, 8))

        def forward(self, x):
            with torch.autocast(device_type(), dtype=torch.bfloat16):
                return self.inner(x).float()

    model = Mixed()
    return simple(model, sgd(model), watch)


def autocast_around_everything(watch):
    model = mlp(nn.Linear(8, 8))
    optimizer = sgd(model)
    watch.attach(model, optimizer)
    for x, y in batches(5):
        with torch.autocast(device_type(), dtype=torch.bfloat16):
            optimizer.zero_grad()
            watch.backward(lambda x=x, y=y: classify(model, x, y))
            watch.before_step()
            optimizer.step()
            watch.after_step()
    watch.end()
    return model, optimizer


def double_precision(watch):
    model = mlp(dtype=torch.float64)
    return simple(model, sgd(model), watch, dtype=torch.float64)


def half_precision(watch):
    model = mlp(dtype=torch.bfloat16)
    return simple(model, sgd(model, 4.0), watch, dtype=torch.bfloat16)


def compiled(watch):
    model = mlp(nn.Dropout(0.2))
    fast = torch.compile(model, backend="aot_eager")
    optimizer = sgd(model)
    watch.attach(model, optimizer)
    for x, y in batches(5):
        optimizer.zero_grad()
        watch.backward(lambda x=x, y=y: classify(fast, x, y))
        watch.before_step()
        optimizer.step()
        watch.after_step()
    watch.end()
    return model, optimizer


def compiled_in_place(watch):
    model = mlp(nn.Dropout(0.2), nn.Linear(8, 8))
    model.compile(backend="aot_eager")
    return simple(model, torch.optim.Adam(model.parameters(), lr=0.05, fused=True), watch, steps=4)


def checkpointed(reentrant):
    def loop(watch):
        class Deep(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.shared, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
                self.drop = nn.Dropout(0.3)

            def block(self, x):
                return self.drop(torch.tanh(self.shared(x)))

            def forward(self, x):
                x = self.first(x)
                # The same weight in two checkpoints: its gradient arrives in two parts.
                x = torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=reentrant)
                x = torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=reentrant)
                return self.last(x)

        model = Deep()
        return simple(model, sgd(model), watch)

    return loop


def tied(watch):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(3, 6), nn.Linear(6, 3)
            self.out.weight = self.embed.weight

        def forward(self, x):
            return self.out(torch.tanh(x + self.embed((x[:, 0] > 0).long())))

    model = Tied()
    return simple(model, sgd(model), watch)


def frozen_and_unreached(watch):
    model = mlp(nn.Linear(8, 8))
    model[0].requires_grad_(False)
    model.register_module("unused", nn.Identity())
    model.unused.weight = nn.Parameter(torch.ones(4))

    class Front(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(*[layer for layer in model if not isinstance(layer, nn.Identity)])
            self.unused = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return self.net(x)

    front = Front()
    return simple(front, sgd(front), watch)


def other_optimizer(first):
    def loop(watch):
        model = mlp()
        mine, other = torch.optim.SGD(model[0].parameters(), lr=0.5), torch.optim.SGD(model[2].parameters(), lr=0.5)
        watch.attach(model, mine)
        for x, y in batches(5):
            mine.zero_grad()
            other.zero_grad()
            watch.backward(lambda x=x, y=y: classify(model, x, y))
            if first:
                other.step()
            watch.before_step()
            mine.step()
            watch.after_step()
            if not first:
                other.step()
        watch.end()
        return model, mine

    return loop


def optimizer_edits_gradients(watch):
    class Centred(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.grad.sub_(p.grad.mean())
            return super().step(closure)

    model = mlp()
    return simple(model, Centred(model.parameters(), lr=0.3), watch)


def optimizer_gives_new_memory(watch):
    class Rebinding(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.data = p.data - group["lr"] * p.grad

    model = mlp()
    return simple(model, Rebinding(model.parameters(), {"lr": 0.3}), watch)


def stepping_without_gradients(watch):
    model = mlp()
    optimizer = sgd(model, momentum=0.9)
    watch.attach(model, optimizer)
    for x, y in batches(4):
        optimizer.zero_grad()
        watch.backward(lambda x=x, y=y: classify(model, x, y))
        watch.before_step()
        with torch.no_grad():
            optimizer.step()
        watch.after_step()
    watch.end()
    return model, optimizer


def channels_last(watch):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model = model.to(memory_format=torch.channels_last)
    optimizer = sgd(model, 0.5)
    watch.attach(model, optimizer)
    drawn = Drawn(4)
    for _ in range(4):
        x, y = drawn.normal(5, 3, 8, 8).to(memory_format=torch.channels_last), drawn.classes(3, 5)
        optimizer.zero_grad()
        watch.backward(lambda x=x, y=y: classify(model, x, y))
        watch.before_step()
        optimizer.step()
        watch.after_step()
    watch.end()
    return model, optimizer


def foreign_leaf(watch):
    """A learned input that is in neither model nor optimizer: its gradient must not grow with the replays."""
    model = mlp()
    optimizer = sgd(model)
    prompt = torch.zeros(6, requires_grad=True)
    watch.attach(model, optimizer)
    for x, y in batches(4):
        optimizer.zero_grad()
        watch.backward(lambda x=x, y=y: classify(model, x + prompt, y))
        watch.before_step()
        optimizer.step()
        watch.after_step()
    watch.end()
    model.register_buffer("prompt_grad", prompt.grad)
    return model, optimizer


LOOPS = {
    function.__name__: function
    for function in (
        plain,
        dropout,
        numpy_and_random_draws,
        draws_between_backward_and_step,
        batch_norm,
        eval_between,
        spectral_norm,
        weight_norm,
        buffer_rebound,
        rnn_hidden,
        accumulation,
        accumulation_with_an_incomplete_end,
        clip_norm,
        clip_value,
        clip_past_the_version_counter,
        l2_decay,
        decoupled_decay,
        groups_and_scheduler,
        scheduler_of_every_step,
        averaged_weights,
        frozen_and_unfrozen_on_the_way,
        parametrized,
        gradient_penalty,
        zeroed_not_dropped,
        autocast_outside,
        autocast_inside,
        autocast_around_everything,
        double_precision,
        half_precision,
        compiled,
        compiled_in_place,
        tied,
        frozen_and_unreached,
        optimizer_edits_gradients,
        optimizer_gives_new_memory,
        stepping_without_gradients,
        channels_last,
        foreign_leaf,
    )
} | {
    "checkpoint_reentrant": checkpointed(True),
    "checkpoint_non_reentrant": checkpointed(False),
    "other_optimizer_steps_first": other_optimizer(True),
    "other_optimizer_steps_after": other_optimizer(False),
}


def train(recorder, model, optimizer, steps, between=None):
    """Train on so many batches with a recorder; `between` runs between backward and step."""
    for i, (x, y) in enumerate(batches(steps)):
        optimizer.zero_grad()
        recorder.backward(lambda x=x, y=y: classify(model, x, y))
        if between is not None:
            between(i)
        optimizer.step()


class Function(nn.Module):
    """A function of one parameter, as a model."""

    def __init__(self, start, f):
        super().__init__()
        self.x = nn.Parameter(start.clone())
        self.f = f

    def forward(self):
        return self.f(self.x)


def one_step(path, model, optimizer, closure, between=None, **arguments):
    """Measure a single step, and return its trace; `between` runs between backward and step."""
    with lsmooth.Recorder(model, optimizer, path, **arguments) as recorder:
        optimizer.zero_grad()
        recorder.backward(closure)
        if between is not None:
            between()
        optimizer.step()
    return lsmooth.Trace(path)
