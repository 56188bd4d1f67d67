"""A `python` that starts emotune in a moment, such a `dvc` and `torchrun`: they ask a server of all libraries to fork.

A stage of a clone takes some twelve seconds to import torch, transformers, TRL and MLflow, and two to do its work. Here
emotune alone is imported anew, from where PYTHONPATH says, with the environment, folder and files of whoever asked.
"""

import gc
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

# Nothing of ours, which each clone has another copy of.
IMPORTED = (
    "skops.io",  # which searches every module that is loaded: before torch
    "accelerate.commands.launch",
    "datasets",
    "dvc.cli.parser",
    "dvc.repo",
    "mlflow.store.tracking.sqlalchemy_store",
    "peft",
    "psutil",
    "scipy.stats",
    "sklearn.linear_model",
    "sklearn.pipeline",
    "torch.distributed.launcher.api",
    "transformers.models.llama.modeling_llama",
    "trl.trainer.dpo_trainer",
    "trl.trainer.sft_trainer",
)
SOCKET = "socket"
# By the id of a process that was forked: for which one.
FOR = "for"
SHIM = """#!{python} -IS
import os, sys
words = {words}
if {apart}:
    os.execv("{python}", ["{python}", *words])
sys.path.append("{here}")
import warm
warm.ask("{folder}", words)
"""
# What each was called with as words of `python`, and which of these a python of its own runs: of DVC what lives in the
# background and is looked for there.
SHIMS = {
    "python": (
        '[word for word in sys.argv[1:] if word != "-u"]',
        '"queue-worker" in words or words[:1] != ["-m"] and not "".join(words[:1]).endswith(".py")',
    ),
    "dvc": ('["-m", "dvc", *sys.argv[1:]]', '"queue-worker" in words'),
    "torchrun": ('["-m", "torch.distributed.run", *sys.argv[1:]]', "False"),
    "accelerate": ('["-m", "accelerate.commands.accelerate_cli", *sys.argv[1:]]', "False"),
}


def ask(folder: str, words: list[str]) -> None:
    """Have the server run what python would be called with, hand on what it is told, and end as that ended.

    Killed, it takes that along.
    """
    said = {"cwd": str(Path.cwd()), "environ": dict(os.environ), "words": words, "pid": os.getpid()}
    with socket.socket(socket.AF_UNIX) as server:
        # The name of a socket is short, which that of a folder need not be.
        os.chdir(folder)
        server.connect(SOCKET)
        message = json.dumps(said).encode()
        socket.send_fds(server, [len(message).to_bytes(4, "big")], [0, 1, 2])
        server.sendall(message)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: server.sendall(bytes([number])))
        answer = server.recv(4)
    # No answer is a server that has ended.
    code = int.from_bytes(answer, "big", signed=True) if answer else 1
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)


def serve(folder: str, session: int) -> None:
    """Answer until the session of tests is over."""
    os.chdir(folder)
    # Where it is installed peft imports it, and with it torch's compiler; no clone quantises.
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    for name in IMPORTED:
        import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # Which is never garbage, and takes half a second to be looked through.
    gc.freeze()
    assert threading.active_count() == 1, "a thread does not outlive a fork"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(SOCKET)
        server.listen(16)
        server.settimeout(2)
        Path("ready").touch()
        while Path(f"/proc/{session}").exists():
            try:
                asking, _ = server.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:
                server.close()
                answer(asking, folder)
            asking.close()


def answer(asking: socket.socket, folder: str) -> None:
    """In a process of its own: fork what was asked for, and tell how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asking.settimeout(None)
    length, files, _, _ = socket.recv_fds(asking, 4, 3)
    message = b""
    while len(message) < int.from_bytes(length, "big"):
        message += asking.recv(1 << 16)
    run = os.fork()
    if run == 0:
        asking.close()
        os._exit(child(json.loads(message), files, folder))
    for file in files:
        os.close(file)
    ended = os.pidfd_open(run)
    while ended not in select.select([ended, asking], [], [])[0]:
        told = asking.recv(1)
        os.kill(run, told[0] if told else signal.SIGKILL)
        if not told:
            break
    code = os.waitstatus_to_exitcode(os.waitpid(run, 0)[1])
    Path(folder, FOR, str(run)).unlink(missing_ok=True)
    with suppress(BrokenPipeError):  # whoever asked has been killed
        asking.sendall(code.to_bytes(4, "big", signed=True))
    os._exit(0)


def child(said: dict[str, Any], files: list[int], folder: str) -> int:
    """What `python -m MODULE ...` or `python SCRIPT ...` does; returns the exit code."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(said["cwd"])
    os.environ.clear()
    os.environ.update(said["environ"])
    module = said["words"][1] if said["words"][0] == "-m" else None
    sys.argv = ["-m", *said["words"][2:]] if module else said["words"]
    # Whatever it starts or becomes starts as soon.
    sys.executable = f"{folder}/bin/python"
    sys.orig_argv[:] = [sys.executable, *said["words"]]
    first = said["cwd"] if module else str(Path(sys.argv[0]).absolute().parent)
    sys.path[:] = [first, *os.environ.get("PYTHONPATH", "").split(os.pathsep), *sys.path[1:]]
    sys.dont_write_bytecode, sys.pycache_prefix = False, f"{folder}/bytecode"
    random.seed()
    stand_in_for(said["pid"], Path(folder, FOR))
    try:
        if module:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
        code: Any = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    sys.stdout.flush()
    sys.stderr.flush()
    if isinstance(code, str):
        print(code, file=sys.stderr, flush=True)
    return code if isinstance(code, int) else int(code is not None)


def stand_in_for(pid: int, forked: Path) -> None:
    """Let psutil find above a process that was forked the one that asked for it: so a stage knows its `dvc repro`."""
    import psutil

    (forked / str(os.getpid())).write_text(str(pid))
    ppid = psutil.Process.ppid

    def asked(process: Any) -> int:
        known = forked / str(process.pid)
        return int(known.read_text()) if known.exists() else ppid(process)

    psutil.Process.ppid = asked  # type: ignore[method-assign]


def start(folder: Path, session: int) -> None:
    """Start a server in a new folder, whose `bin` has the python that asks it; wait until it answers."""
    (folder / "bin").mkdir(parents=True)
    (folder / FOR).mkdir()
    for name, (words, apart) in SHIMS.items():
        shim = folder / "bin" / name
        told = {"python": sys.executable, "here": Path(__file__).parent, "folder": folder}
        shim.write_text(SHIM.format(words=words, apart=apart, **told))
        shim.chmod(0o755)
    settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_LOGGING_LEVEL": "ERROR"}
    with (folder / "said").open("w") as said:
        server = subprocess.Popen(
            [sys.executable, __file__, str(folder), str(session)],
            env=os.environ | settings,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    while not (folder / "ready").exists():
        assert server.poll() is None, (folder / "said").read_text()
        select.select([], [], [], 0.05)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
