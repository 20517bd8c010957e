"""Operations between a model and its criterion, done again with another output: the same as doing them by hand."""

import pytest
import torch
from torch import nn

from lsmooth.replay.redone import CannotBeRedone, Output, calls_of, made_of, make, rebuilt, tensors_in

CHOICE = torch.tensor([[[0, 2, 1, 0]], [[1, 1, 2, 0]]])
OPERATIONS = {
    "view": lambda h: h.view(-1, 4),
    "reshape of a transpose": lambda h: h.transpose(0, -1).reshape(-1),
    "flatten": lambda h: h.flatten(1),
    "squeeze": lambda h: h[:, :1].squeeze(1),
    "squeeze everything": lambda h: h[:1, :1].squeeze(),
    "unsqueeze": lambda h: h.unsqueeze(-1).unsqueeze(0),
    "transposed": lambda h: h.mT,
    "t": lambda h: h[1].t(),
    "permute": lambda h: h.permute(2, 0, 1),
    "select": lambda h: h[:, 1],
    "last": lambda h: h[:, -1],
    "slice": lambda h: h[:, :-1, 1:],
    "with a step": lambda h: h[..., ::2],
    "narrow": lambda h: h.narrow(-1, 1, 2),
    "mask": lambda h: h[torch.tensor([[True, False, True], [False, True, True]])],
    "indices": lambda h: h[[0, 1], :, [1, 3]],
    "index_select": lambda h: h.index_select(1, torch.tensor([2, 0])),
    "gather": lambda h: h.gather(1, CHOICE),
    "expand": lambda h: h[:1].expand(5, 3, 4),
    "unbind": lambda h: h.unbind(1)[2],
    "chunk": lambda h: h.chunk(2, -1)[1],
    "double": lambda h: h.double(),
    "bfloat16": lambda h: h.bfloat16().float(),
    "contiguous": lambda h: h.transpose(0, 1).contiguous(),
    "sigmoid": lambda h: h.sigmoid(),
    "tanh of relu": lambda h: h.relu().tanh(),
    "log of exp": lambda h: h.exp().log(),
    "square": lambda h: h.square(),
    "softmax": lambda h: h.softmax(-1),
    "log_softmax": lambda h: nn.functional.log_softmax(h, 1, dtype=torch.float64),
    "mean": lambda h: h.mean((0, -1), keepdim=True),
    "mean of all": lambda h: h.mean(),
    "sum": lambda h: h.sum(-1),
    "scaled": lambda h: 2 * h / 3,
    "one over": lambda h: torch.ones(4) / h,
    "weighted": lambda h: torch.arange(4.0) * h,
    "scalar": lambda h: h.mean() * 0.5,
    "combined": lambda h: torch.add(h, h.exp(), alpha=3) - h * h.tanh(),
    "negative": lambda h: -h,
    "cat": lambda h: torch.cat([h, h.exp(), h], -1),
    "stack": lambda h: torch.stack([h, -h]),
    "categorical": lambda h: torch.distributions.Categorical(logits=h).log_prob(torch.tensor([[0, 3, 1], [2, 2, 0]])),
    "in place": lambda h: h.clone().div_(2).sigmoid_(),
}


def outputs(seed):
    weights = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    return weights, weights * 1.5


def recipe_of(made, output):
    node, position = output.grad_fn, output.output_nr
    return made_of(made, lambda n, p: Output("call", 0) if (n, p) == (node, position) else None)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_done_again(name):
    operation = OPERATIONS[name]
    _, first = outputs(0)
    recipe = recipe_of(operation(first), first)
    assert calls_of(recipe) == ["call"]
    weights, second = outputs(1)
    expected = operation(second)
    (gradient,) = torch.autograd.grad(expected.sum(), weights, retain_graph=True)
    made = make(recipe, lambda call: [second], {})
    assert made.dtype == expected.dtype
    assert torch.equal(made.nan_to_num(), expected.nan_to_num())
    (again,) = torch.autograd.grad(made.sum(), weights)
    assert torch.equal(gradient.nan_to_num(), again.nan_to_num())


def test_parameters_on_the_way_are_read_again():
    temperature = torch.tensor(2.0, requires_grad=True)
    _, first = outputs(0)
    recipe = recipe_of(first / temperature, first)
    with torch.no_grad():
        temperature.fill_(4.0)
    _, second = outputs(1)
    assert torch.equal(make(recipe, lambda call: [second], {}), second / 4)


def test_arguments_that_the_loop_overwrites_are_those_of_then():
    weights = torch.arange(4.0)
    index = torch.tensor([0, 1])
    _, first = outputs(0)
    recipe = recipe_of((first * weights).index_select(1, index), first)
    weights.zero_()
    index.zero_()
    _, second = outputs(1)
    assert torch.equal(make(recipe, lambda call: [second], {}), (second * torch.arange(4.0))[:, :2])


@pytest.mark.parametrize(
    ("operation", "node"),
    [
        (lambda h: h + 1, "AddBackward0"),
        (lambda h: nn.functional.dropout(h, 0.5, training=True).view(-1) - 2, "SubBackward0"),
        (lambda h: h @ torch.ones(4, 2), "UnsafeViewBackward0|MmBackward0"),
        (lambda h: h.clamp(min=0), "ClampBackward1"),
        (lambda h: h.clone()[:, 0].add_(h[:, 1]).sin(), "SinBackward0"),
    ],
)
def test_any_other_operation_is_named(operation, node):
    _, first = outputs(0)
    with pytest.raises(CannotBeRedone) as caught:
        recipe_of(operation(first), first)
    assert str(caught.value) in node.split("|")


def test_tensors_are_found_and_replaced_in_containers_and_objects():
    class Thing:
        def __init__(self, tensor):
            self.tensor = tensor
            self.name = "mine"

    Pair = type(torch.nn.utils.rnn.pack_sequence([torch.ones(2)]))
    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    thing = Thing(c)
    value = {"a": [a, (b, 7)], "c": thing, "pack": Pair(a, torch.tensor([1]), None, None)}
    assert [tensor.numel() for tensor in tensors_in(value)] == [1, 2, 3, 1, 1]
    doubled = rebuilt(value, torch.Tensor, lambda tensor: 2 * tensor)
    assert doubled["a"][1][0].tolist() == [2, 2]
    assert doubled["c"].tensor.tolist() == [2, 2, 2]
    assert doubled["c"].name == "mine"
    assert thing.tensor is c
    assert value["a"][0] is a
    assert rebuilt(value, str, lambda text: text) is value
