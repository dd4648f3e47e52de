"""The self-test finds a working installation working, and each planted fault."""

import runpy

import pytest
from control_script import SCRIPT

from diffusers_ext.control import previews, self_test
from diffusers_ext.data.pairs import Pairs
from diffusers_ext.engine import loop
from diffusers_ext.errors import InputError


@pytest.fixture
def train(monkeypatch):
    monkeypatch.setattr(previews, "STEPS", 2)
    script = runpy.run_path(str(SCRIPT))
    return lambda **settings: script["main"](script["Options"](**settings))


def unexpected(**settings):
    raise AssertionError("this check trains nothing")


@pytest.mark.launch
def test_every_check_holds_on_a_small_base(untrained, train, capfd):
    assert self_test.self_test(train, str(untrained)) == 0
    printed = capfd.readouterr()
    *lines, last = printed.out.splitlines()
    assert last.startswith("7 checks, 0 failed") and len(lines) == 7 and all(line.startswith("ok ") for line in lines)
    assert "14, " in lines[1] and "6 of 6 losses equal, weights byte for byte" in lines[3]
    assert printed.err == ""


def said(check, train, untrained, capsys) -> str:
    failed = self_test.self_test(train, str(untrained), [check])
    line, last = capsys.readouterr().out.splitlines()
    assert failed == 1 and line.startswith("failed ") and last.startswith("1 checks, 1 failed")
    return line


def test_a_convolution_that_is_not_zero_is_reported(untrained, capsys, monkeypatch):
    def spoilt(*arguments):
        controlnet = whole(*arguments)
        controlnet.controlnet_mid_block.bias.data += 1e-3
        return controlnet

    whole = self_test.new_controlnet
    monkeypatch.setattr(self_test, "new_controlnet", spoilt)
    assert "largest difference 0 " not in said(self_test.zero_init, unexpected, untrained, capsys)


def test_prompts_dropped_once_for_all_epochs_are_reported(untrained, capsys, monkeypatch):
    """As where they are dropped before they are cached."""
    live = Pairs.caption
    monkeypatch.setattr(Pairs, "caption", lambda self, key: live(self, (0, key[1])))
    assert "64 of 64 always or never" in said(self_test.live_dropping, unexpected, untrained, capsys)


def test_data_that_start_over_when_resuming_are_reported(untrained, train, capsys, monkeypatch):
    """As where only weights and optimiser are restored."""
    real = loop.data_loader
    monkeypatch.setattr(loop, "data_loader", lambda *given: real(*given[:3], 0, given[4]))
    assert "3 of 6 losses equal, weights not" in said(self_test.resume_equality, train, untrained, capsys)


def test_a_check_that_breaks_is_reported(untrained, capsys):
    def broken(bench):
        """nothing in particular"""
        raise OSError("no space left")

    assert "OSError: no space left" in said(broken, unexpected, untrained, capsys)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="takes one process"):
        self_test.self_test(unexpected)


def test_the_scripts_flag_ends_with_the_number_that_programs_read(monkeypatch):
    script = runpy.run_path(str(SCRIPT))
    for failed, code in ((0, 0), (3, 1)):
        monkeypatch.setattr(self_test, "self_test", lambda train, failed=failed: failed)
        with pytest.raises(SystemExit) as ended:
            script["main"](script["Options"](self_test=True))
        assert ended.value.code == code
