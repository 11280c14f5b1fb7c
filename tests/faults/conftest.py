"""Every test here plants a fault of a row of `matrix.py`; the table of them all is printed at the end."""

import time
from collections import Counter
from pathlib import Path

import pytest
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from faults.matrix import ROWS

RIGHT, WRONG, NOT_RUN = "right", "WRONG", "NOT RUN"
STARTED = time.monotonic()
_HERE = Path(__file__).parent


def pytest_addoption(parser):
    parser.addoption("--matrix", action="store_true", help="fail where a row of the matrix has no test that ran")


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marker
def pytest_collection_modifyitems(items):
    for item in items:
        if _HERE not in item.path.parents:
            continue
        item.add_marker("faults")
        marker = item.get_closest_marker("fault")
        if marker is None or marker.args[0] not in ROWS:
            raise pytest.UsageError(f"{item.nodeid}: mark it with `fault(row)`, of a row of matrix.py")
        item.user_properties.append(("fault", marker.args[0]))


def pytest_terminal_summary(terminalreporter, config):
    faults = _faults(terminalreporter)
    if not faults:
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_lines=True)
    for name, width in (("", 9), ("fault", 46), ("behaviour", 46), ("verdict", 18)):
        table.add_column(name, width=width, overflow="fold")
    inputs = Counter()
    for name, row in ROWS.items():
        if name not in faults and not config.option.matrix:
            continue
        verdict, found = _verdict(faults.get(name, []))
        inputs[name] = found
        table.add_row(row.group, row.fault, row.behaviour, verdict)
    console = Console(width=130, highlight=False, markup=False, file=terminalreporter._tw)
    console.print(table)
    injected = sum(len(outcomes) for outcomes in faults.values())
    wrong = sum(not right for outcomes in faults.values() for right, _ in outcomes)
    seconds = time.monotonic() - STARTED
    console.print(
        f"{injected} faults injected, {injected - wrong} right, {wrong} wrong; {inputs.total():,} inputs fuzzed; "
        f"{seconds:.0f} seconds"
    )


def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if (
        reporter is None
        or hasattr(session.config, "workerinput")
        or not getattr(session.config.option, "matrix", False)
    ):
        return
    if exitstatus == 0 and ROWS.keys() - _faults(reporter).keys():
        session.exitstatus = 1


def _faults(reporter):
    """By row, each fault's outcome and the inputs that it stands for."""
    faults = {}
    for outcome in ("passed", "failed", "error"):
        for report in reporter.getreports(outcome):
            if outcome == "passed" and report.when != "call":
                continue
            told = dict(getattr(report, "user_properties", ()))  # a file that cannot be collected has none
            if "fault" in told:
                faults.setdefault(told["fault"], []).append((outcome == "passed", told.get("inputs", 0)))
    return faults


def _verdict(outcomes):
    if not outcomes:
        return NOT_RUN, 0
    right, inputs = sum(right for right, _ in outcomes), sum(inputs for _, inputs in outcomes)
    counted = f"{right} of {len(outcomes)}" + (f", {inputs:,} inputs" if inputs else "")
    return f"{RIGHT if right == len(outcomes) else WRONG}: {counted}", inputs
