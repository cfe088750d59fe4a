"""What the command line reads and says before any work is done."""

import re

import pytest

from bmscale.cli import main
from bmscale.commands.training import CHECKPOINT_ACTIONS


def test_each_action_of_checkpoint_has_its_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["checkpoint", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for action in CHECKPOINT_ACTIONS:
        assert re.search(rf"^  {action} +\w+ .+$", said, re.MULTILINE), said


@pytest.mark.parametrize(
    "words", [["--force", "data.x=1"], ["data.x=1", "--force"], ["a.b=2", "--workers", "1", "data.x=1"]]
)
def test_overrides_stand_before_and_behind_options(words, capsys):
    assert main(["prepare", "toy", *words]) == 2
    assert "data.x: unknown key" in capsys.readouterr().err


def test_other_words_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["prepare", "toy", "--force", "data.x"])
    assert "unrecognized arguments: data.x" in capsys.readouterr().err
