"""The help of commands."""

import re

import pytest

from bmscale.cli import CHECKPOINT_ACTIONS, main


def test_each_action_of_checkpoint_has_its_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["checkpoint", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for action in CHECKPOINT_ACTIONS:
        assert re.search(rf"^  {action} +\w+ .+$", said, re.MULTILINE), said
