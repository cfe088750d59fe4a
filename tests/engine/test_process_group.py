"""What launchers say, and what is refused."""

import pytest

from bmscale.engine.process_group import launched_rank, launched_world_size
from bmscale.errors import BadInput


def test_without_a_launcher_there_is_one_rank():
    assert (launched_world_size({}), launched_rank({})) == (1, 0)


def test_with_one_it_says_how_many():
    environment = {"MASTER_ADDR": "host", "WORLD_SIZE": "16", "RANK": "3"}
    assert (launched_world_size(environment), launched_rank(environment)) == (16, 3)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"MASTER_ADDR": "127.0.0.1"}, "MASTER_ADDR but no WORLD_SIZE"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a number; got 'two'"),
    ],
)
def test_half_launched_is_refused(environment, message):
    with pytest.raises(BadInput, match=message):
        launched_world_size(environment)
