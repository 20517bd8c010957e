"""Groups of parameters."""

import pytest

from lsmooth.errors import InvalidArgumentError
from lsmooth.trace.grouping import group_parameters, module_of

NAMES = (
    "embedding.weight",
    "layers.0.weight",
    "layers.0.bias",
    "layers.1.weight",
    "layers.1.bias",
    "head.weight",
    "scale",
)


MODULES = {
    "embedding": NAMES[:1],
    "layers.0": NAMES[1:3],
    "layers.1": NAMES[3:5],
    "head": NAMES[5:6],
    "(root)": NAMES[6:],
}


def test_groups_follow_the_networks_order_and_errors_name_the_mend():
    assert module_of("a.parametrizations.weight.original0") == "a"
    assert module_of("bias") == "(root)"
    assert list(group_parameters(NAMES, "module")) == list(MODULES)
    with pytest.raises(InvalidArgumentError, match="not a valid regular expression"):
        group_parameters(NAMES, "layers.(")
    with pytest.raises(InvalidArgumentError, match=r"No parameter falls into a group .* embedding.weight"):
        group_parameters(NAMES, "blocks")
