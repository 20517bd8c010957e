"""What objects and containers hold is in replays what the first forward pass found, and afterwards what it was."""

from collections import Counter, OrderedDict, UserDict, defaultdict, deque
from types import SimpleNamespace
from weakref import WeakKeyDictionary

import pytest
import torch
from loops import batches, classify, mlp, seed_all, sgd

import lsmooth
from lsmooth.replay.objects import ObjectState
from lsmooth.replay.reach import reached


class Guarded(OrderedDict):
    """Refuses the ways of a dict, as Hugging Face's outputs do."""

    def update(self, *args, **kwargs):
        raise TypeError

    def pop(self, *args):
        raise TypeError


CONTAINERS = {
    "dict": ({"a": 1, "b": 2, "c": 3}, lambda it: (it.pop("a"), it.__setitem__("d", 4))),
    "replaced": ({"a": 1, "b": 2}, lambda it: it.__setitem__("a", 1000)),
    "reordered": ({"a": 1, "b": 2}, lambda it: it.__setitem__("a", it.pop("a"))),
    "ordered": (OrderedDict(a=1, b=2), lambda it: it.move_to_end("a")),
    "guarded": (Guarded(a=1, b=2), lambda it: OrderedDict.__delitem__(it, "a")),
    "default": (defaultdict(list, a=[1]), lambda it: it["new"].append(1)),
    "counter": (Counter("aab"), lambda it: it.update("abc")),
    "list": ([1, 2, 3], lambda it: (it.pop(0), it.append(5))),
    "emptied": ([1, 2, 3], lambda it: it.clear()),
    "long list": (list(range(10_000)), lambda it: it.extend(range(3))),
    "set": ({1, 2}, lambda it: it.add(3)),
    "deque": (deque([1, 2, 3], maxlen=3), lambda it: it.append(4)),
    "mapping": (UserDict(a=1, b=2), lambda it: it.pop("a")),
    "weak": (WeakKeyDictionary({Guarded: 1}), lambda it: it.__setitem__(OrderedDict, 2)),
    "object": (SimpleNamespace(a=1, b=2), lambda it: (delattr(it, "a"), setattr(it, "c", 3))),
    "nested": ({"a": [1, {"b": 2}]}, lambda it: it["a"][1].pop("b")),
}


def written_out(value):
    """Return a text of a value that shows the order of its items, and what it is made of."""
    if isinstance(value, SimpleNamespace):
        return repr(sorted(vars(value).items()))
    return repr(list(value.items()) if hasattr(value, "items") else value)


@pytest.mark.parametrize("name", CONTAINERS)
def test_what_a_container_holds_is_put_back_in_the_same_container(name):
    container, change = CONTAINERS[name]
    before = written_out(container)
    state = ObjectState.capture(reached(lambda: container).holders)
    change(container)
    after = written_out(container)
    assert after != before
    now = state.now()
    state.restore()
    assert written_out(container) == before
    now.restore()
    assert written_out(container) == after


def test_variables_of_functions_that_the_closure_calls_are_put_back():
    names = {"x": 1000}
    exec("def count():\n    global x, y\n    x += 1\n    y = x\n    return x", names)
    total = 2000

    def add():
        nonlocal total
        total += 1
        return names["count"]() + total

    state = ObjectState.capture(reached(lambda: (add(), count()), names["count"]).holders)
    count = names["count"]
    add()
    assert (names["x"], names["y"], total) == (1001, 1001, 2001)
    state.restore()
    assert (names["x"], "y" in names, total) == (1000, False, 2000)


def test_machinery_is_left_alone():
    optimizer = sgd(mlp())
    state = ObjectState.capture(reached(lambda: optimizer).holders)
    optimizer.param_groups[0]["lr"] = 7.0
    state.restore()
    assert optimizer.param_groups[0]["lr"] == 7.0


class Trainer:
    """Keeps the present batch, and counts, as trainers do."""

    def __init__(self, model):
        self.model, self.tokens, self.history, self.metrics = model, 0, [], {"train": defaultdict(list)}
        self.batch = None

    def loss(self):
        loss = classify(self.model, self.batch["x"], self.batch.pop("y"))
        self.tokens += self.batch["x"].numel()
        self.history.append(loss.item())
        self.metrics["train"]["loss"].append(loss.item())
        return loss


@pytest.mark.parametrize("way", ["bound method", "lambda", "watch"])
def test_a_trainer_that_counts_and_rebinds_its_batch_is_measured_and_counts_the_same(way, tmp_path):
    def run(path):
        seed_all()
        model = mlp()
        optimizer, trainer = sgd(model), Trainer(model)
        recorder = lsmooth.Recorder(model, optimizer, path) if path else None
        compute = recorder.watch(trainer.loss) if recorder and way == "watch" else trainer.loss
        for i in range(3):
            optimizer.zero_grad()
            # Two microbatches, of which the second is bound when the step is replayed.
            for x, y in batches(2, seed=i + 1):
                trainer.batch = {"x": x, "y": y}
                if recorder is None or way == "watch":
                    compute().backward()
                else:
                    recorder.backward(trainer.loss if way == "bound method" else lambda: trainer.loss())
            optimizer.step()
        if recorder:
            recorder.close()
        weights = [p.detach().clone() for p in model.parameters()]
        return weights, (trainer.tokens, trainer.history, dict(trainer.metrics["train"]), list(trainer.batch))

    def reference(path):
        seed_all()
        model = mlp()
        optimizer = sgd(model)
        with lsmooth.Recorder(model, optimizer, path) as recorder:
            for i in range(3):
                optimizer.zero_grad()
                for x, y in batches(2, seed=i + 1):
                    recorder.backward(lambda x=x, y=y: classify(model, x, y))
                optimizer.step()

    bare, recorded = run(None), run(tmp_path / "run.h5")
    assert all(torch.equal(a, b) for a, b in zip(bare[0], recorded[0], strict=True))
    assert bare[1] == recorded[1]
    reference(tmp_path / "own.h5")
    got, want = lsmooth.Trace(tmp_path / "run.h5"), lsmooth.Trace(tmp_path / "own.h5")
    assert got.status_counts() == {"measured": 3}
    torch.testing.assert_close(torch.tensor(got.read("grad_diff")), torch.tensor(want.read("grad_diff")))


def test_attributes_and_hooks_of_modules_leave_no_trace(tmp_path):
    class Annealed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls, self.seen = mlp(), 0, [[0]]
            self.total = torch.zeros(())

        def forward(self, x):
            self.calls += 1
            self.seen[0].append(self.calls)
            self.total.add_(1)
            self.last = x * self.calls
            return self.inner(x) / (1 + self.calls)

    def run(path):
        seed_all()
        model, norms = Annealed(), []
        optimizer = sgd(model)
        model.inner[0].register_forward_hook(lambda module, args, out: norms.append(out.detach().norm().item()))
        model.inner[0].weight.register_hook(lambda gradient: norms.append(gradient.norm().item()))
        model.inner[0].bias.register_post_accumulate_grad_hook(lambda p: norms.append(p.grad.norm().item()))
        recorder = lsmooth.Recorder(model, optimizer, path) if path else None
        for x, y in batches(4):
            optimizer.zero_grad()
            closure = lambda: classify(model, x, y)  # noqa: E731, B023
            recorder.backward(closure) if recorder else closure().backward()
            optimizer.step()
        if recorder:
            recorder.close()
        weights = torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()
        return weights, norms, model.calls, model.seen, model.total.item(), model.last.tolist()

    assert run(None) == run(tmp_path / "run.h5")
    assert lsmooth.Trace(tmp_path / "run.h5").status_counts() == {"measured": 4}


def test_containers_nested_ten_thousand_deep_are_no_harm(tmp_path):
    deep = []
    for _ in range(10_000):
        deep = [deep]
    model = mlp()
    optimizer = sgd(model)
    (x, y), *_ = batches(1)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        recorder.backward(lambda: classify(model, x, y) + 0 * len(deep))
        optimizer.step()
    assert lsmooth.Trace(tmp_path / "run.h5").status_counts() == {"measured": 1}


def test_a_variable_that_the_closure_sets_and_a_function_it_calls_reads_is_one_variable(tmp_path):
    model = mlp()
    optimizer = sgd(model)
    factor = 1.0
    (x, y), *_ = batches(1)

    def scaled(loss):
        return loss * factor

    def closure():
        nonlocal factor
        factor = factor + 1
        return scaled(classify(model, x, y))

    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", gammas=(1e-3,)) as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            recorder.backward(closure)
            optimizer.step()
    assert factor == 4.0
    trace = lsmooth.Trace(tmp_path / "run.h5")
    torch.testing.assert_close(
        torch.tensor(trace.read("loss")), torch.tensor(trace.read("loss_along")[:, 0]), rtol=1e-2, atol=0
    )


class Doubles(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        COUNTS["forward"] += 1
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        COUNTS["backward"] += 1
        return 2 * gradient


class Counting(torch.nn.Module):
    """Counts its calls in a variable of its Python module, on which its output depends."""

    def __init__(self):
        super().__init__()
        self.inside = mlp()

    def forward(self, x):
        COUNTS["module"] += 1
        return Doubles.apply(self.inside(x)) / COUNTS["module"]


COUNTS = Counter()


@pytest.mark.parametrize("watched", [False, True])
def test_what_classes_count_in_variables_of_their_python_module_is_counted_once(watched, tmp_path):
    def run(path):
        COUNTS.clear()
        seed_all()
        model = Counting()
        optimizer = sgd(model)
        of_all = torch.nn.modules.module.register_module_forward_hook(lambda *_: COUNTS.update(["every module"]))
        recorder = lsmooth.Recorder(model, optimizer, path) if path else None
        inputs = [(x.requires_grad_(), y) for x, y in batches(3)]
        compute = recorder.watch(lambda x, y: classify(model, x, y)) if recorder and watched else None
        for x, y in inputs:
            x.register_hook(lambda _: COUNTS.update(["input"]))
            optimizer.zero_grad()
            if compute is not None:
                compute(x, y).backward()
            elif recorder is not None:
                recorder.backward(lambda: classify(model, x, y))  # noqa: B023
            else:
                classify(model, x, y).backward()
            optimizer.step()
        of_all.remove()
        if recorder:
            recorder.close()
        return dict(COUNTS), [p.tolist() for p in model.parameters()]

    alone = run(None)
    assert alone == run(tmp_path / "run.h5")
    assert alone[0]["forward"] == alone[0]["backward"] == alone[0]["module"] == alone[0]["input"] == 3
    assert lsmooth.Trace(tmp_path / "run.h5").status_counts() == {"measured": 3}
