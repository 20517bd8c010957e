"""Groups of parameters."""

import pytest
from rows import MODULES_OF_NETWORK, NETWORK

from lsmooth.errors import InvalidArgumentError
from lsmooth.trace.grouping import group_parameters, module_of


def test_groups_follow_the_networks_order_and_errors_name_the_mend():
    assert module_of("a.parametrizations.weight.original0") == "a"
    assert module_of("bias") == "(root)"
    assert list(group_parameters(NETWORK, "module")) == list(MODULES_OF_NETWORK)
    with pytest.raises(InvalidArgumentError, match="not a valid regular expression"):
        group_parameters(NETWORK, "layers.(")
    with pytest.raises(InvalidArgumentError, match=r"No parameter falls into a group .* embedding.weight"):
        group_parameters(NETWORK, "blocks")
