"""The report: checks that cannot end each other, exit code, text and JSON."""

from __future__ import annotations

import argparse
import json

import pytest

from mmfuse_ros.cli import doctor
from mmfuse_ros.cli.checks.finding import FAIL, OK, WARN, Finding, as_text, examine, exit_code


def test_a_check_that_raises_is_a_warning_and_keeps_what_it_found():
    def check():
        yield Finding("disk", OK, "first")
        raise PermissionError("no access")

    first, second = examine("disk", check)
    assert first == Finding("disk", OK, "first")
    assert (second.check, second.level) == ("disk", WARN)
    assert second.found == "cannot be checked: PermissionError: no access"


@pytest.mark.parametrize(
    ("levels", "code"), [([], 0), ([OK, WARN], 0), ([FAIL, OK], 1), ([WARN, FAIL], 1)]
)
def test_exit_code_is_1_where_something_failed(levels, code):
    assert exit_code([Finding("c", level, "") for level in levels]) == code


def test_text_names_level_check_finding_and_remedy():
    lines = as_text([Finding("rmw", OK, "fine"), Finding("disk", FAIL, "full", "free\nsome")])
    assert lines.splitlines() == [
        "OK    rmw   fine",
        "FAIL  disk  full",
        "            -> free",
        "               some",
    ]


def parse(*words):
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    return parser.parse_args(words)


def test_a_wrong_parameter_fails_and_hides_nothing(capsys):
    args = parse("-p", "audio.window_s:=99", "--no-probe", "--wait", "0", "--json")
    assert doctor.run(args) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    first = report["findings"][0]
    assert (first["check"], first["level"]) == ("parameters", FAIL)
    assert "audio.window_s must be at most 30, got 99" in first["found"]
    seen = {f["check"] for f in report["findings"]}
    assert {"python", "packages", "torch", "weights vision", "disk", "discovery"} <= seen
    for finding in report["findings"]:
        assert finding["level"] in (OK, WARN, FAIL)
        assert finding["level"] == OK or finding["remedy"] or "cannot be" in finding["found"]
