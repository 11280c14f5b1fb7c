"""Processes that share a run, over loopback."""

import os
import socket
import subprocess
import sys
import time

from support.python import WITH_TWO
from support.runs import RANDOM, SMALL


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return str(listening.getsockname()[1])


def start(program, environment=None):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    return subprocess.Popen([sys.executable, *program], env={**os.environ, **(environment or {})}, **pipes)


def ends(started, within=300):
    """Returns each process's exit status and output, and leaves none behind."""
    until = time.monotonic() + within
    try:
        said = [process.communicate(timeout=max(1, until - time.monotonic()))[0] for process in started]
        return [(process.returncode, text) for process, text in zip(started, said)]
    finally:
        for process in started:
            process.kill()
            process.communicate()


def command_of(scans, tmp_path, out, *flags):
    given = ["--scans", str(scans), *SMALL, *RANDOM, "--cache", str(tmp_path / "cache")]
    return ["table", "quick", *given, "--rows", "cnn", "fe_two", "--out", str(tmp_path / out), *flags]


def start_two(command, *flags):
    port = free_port()
    shared = ["--distributed", "--coordinator", f"127.0.0.1:{port}", "--processes", "2", *flags]
    devices = {"JAX_NUM_CPU_DEVICES": "4", "NPROC": "16"}
    return [start(["-c", WITH_TWO, *command, *shared, "--process", str(k)], devices) for k in (0, 1)]


def wait_for(there, started):
    """Until something is there; no process may end before."""
    while not there():
        assert all(process.poll() is None for process in started), ends(started)
        time.sleep(0.05)
