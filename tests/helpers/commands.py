"""Running the repository's scripts in processes of their own.

A process needs seconds to import torch and Detectron2, far longer than what most tests do with them. These
are therefore forked from a server that has imported them once, with everything else that is not of this
project: our own code is read anew by each of them.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("torch", "torchvision", "torch.utils.data", "torch.utils.tensorboard"),
        *("detectron2.checkpoint", "detectron2.engine", "detectron2.evaluation", "detectron2.model_zoo"),
        *("detectron2.modeling", "filelock", "matplotlib.pyplot", "pycocotools", "psutil", "scipy.optimize"),
    ]
)


def torchrun(script, *arguments) -> list:
    """The command that runs a script in two ranks, which torchrun forks in its turn."""
    folder = str(Path(script).parent)  # where a script finds modules
    main = f"import sys; sys.path.insert(0, {folder!r}); from torch.distributed.run import main; main()"
    options = ["--standalone", "--nproc_per_node", 2, "--start-method", "fork", "--run-path"]
    return ["-c", main, *options, script, *arguments]


def run_tool(*command, cwd=None, check=True, env=()) -> subprocess.CompletedProcess:
    """Run a Python command of the repository to its end."""
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        with started(stdout, *command, stderr=stderr, cwd=cwd, env=env) as process:
            process.join()
        code, output, errors = process.exitcode, stdout.read_text(), stderr.read_text()
    if check and code:
        raise AssertionError(f"exit code {code}\n{output[-2000:]}\n{errors[-3000:]}")
    return subprocess.CompletedProcess(command, code, output, errors)


@contextmanager
def started(stdout: Path, *command, stderr=None, cwd=None, env=(), ignored=()):
    """A Python command under way, in a session of its own; what is left of that at the end is killed.

    Args:
        stdout, stderr: files for the output; without the second both are in the first.
        command: arguments of Python: a script, -c CODE or -m MODULE, and what follows.
        env: variables that it gets beside those of this process.
        ignored: signals that it ignores. All others do what they do by default, however the suite was
            started: a background shell and nohup let what they start ignore some.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE", **dict(env)}
    words = [str(word) for word in command]
    arguments = (words, [str(stdout), str(stderr or stdout)], cwd or os.getcwd(), environment, ignored)
    for path in arguments[1]:
        Path(path).touch()
    process = SERVER.Process(target=become, args=arguments)
    process.start()
    try:
        yield process
    finally:
        if process.exitcode is None:
            process.kill()
            with suppress(ProcessLookupError):  # it has no session yet
                os.killpg(process.pid, signal.SIGKILL)
            process.join()


def become(words: list[str], outputs: list[str], cwd: str, environment: dict[str, str], ignored) -> None:
    """Make this process what `python WORDS` would be in that folder, with that environment."""
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # that of the system, for what it starts in its turn
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in ignored else default)
    for number, path in enumerate(outputs, 1):
        with open(path, "a") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(cwd)
    ours = {str(ROOT / "tests"), str(ROOT / "tools")}  # where pytest and not Python looks for modules
    paths = [*environment["PYTHONPATH"].split(os.pathsep), *(path for path in sys.path if path not in ours)]
    kind, *arguments = words
    if kind == "-c":
        sys.argv, sys.path = ["-c", *arguments[1:]], ["", *paths]
        sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(arguments[0], "<string>", "exec"), vars(sys.modules["__main__"]))
    elif kind == "-m":
        sys.argv, sys.path = arguments, [cwd, *paths]
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path = words, [str(Path(kind).parent), *paths]
        runpy.run_path(kind, run_name="__main__")
