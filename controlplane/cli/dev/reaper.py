"""Run one command so that nothing it started outlives whoever asked for it.

libvirtd, and other daemons, fork twice: their children are adopted by process 1, which in a container may collect the
dead only every second or two, and which lets them run on after a kill -9. This program stands between: it becomes
the "child subreaper" of everything below it, collects the dead at once, and when told to stop, or when its parent
dies in whatever way, it ends every descendant.

It is run as a file, by an isolated interpreter, because it must start in milliseconds: standard library only, and no
import of our own packages. `reaper_command` gives the words to run it with.

Exit status: that of CMD, 128 + N when signal N ended it, 2 for wrong usage, 126 or 127 when CMD could not be run.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36  # Source: prctl(2)

COMMAND_GRACE_S = 10.0
"""What CMD gets to end by itself; libvirtd needs well under a second."""
DESCENDANT_GRACE_S = 5.0
"""What its orphans get after SIGTERM; QEMU flushes its disks meanwhile."""
FINALLY_GRACE_S = 10.0
"""What the clean-up command gets."""

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_WATCHED = frozenset((*_STOP_SIGNALS, signal.SIGCHLD))
_USAGE = "usage: reaper.py [--parent PID] [--finally WORD... ;] -- CMD...\n"


def reaper_command(command: Sequence[str], *, parent: int | None = None, cleanup: Sequence[str] = ()) -> list[str]:
    """Return the words that run `command` under a reaper.

    parent: the process id whose death stops everything, usually `os.getpid()`. The kernel watches the *thread* that
        started the reaper, so start it from one that lives as long as the process, such as the main thread.
    cleanup: a command run once, after the last descendant is gone, also after a kill -9 of the parent.
    """
    words = [sys.executable, "-I", "-S", "-E", os.path.abspath(__file__)]
    if parent is not None:
        words += ["--parent", str(parent)]
    if cleanup:
        words += ["--finally", *cleanup, ";"]
    return [*words, "--", *command]


def main(arguments: Sequence[str]) -> int:
    """Run the command of `arguments` and return the exit status described above."""
    try:
        parent, cleanup, command = _parse(list(arguments))
    except ValueError as error:
        sys.stderr.write(f"reaper: {error}\n{_USAGE}")
        return 2
    libc = ctypes.CDLL(None, use_errno=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    _prctl(libc, PR_SET_CHILD_SUBREAPER, 1)
    _prctl(libc, PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent is not None and os.getppid() != parent:
        sys.stderr.write("reaper: the parent was gone before the command was started\n")
        return _finish(cleanup, 128 + signal.SIGTERM)
    _keep_descriptors_to_ourselves()
    pid = _start(libc, command)
    status, asked_to_stop = _watch(pid)
    if asked_to_stop:
        _end_descendants()
    return _finish(cleanup, status)


def _parse(words: list[str]) -> tuple[int | None, list[str], list[str]]:
    parent: int | None = None
    cleanup: list[str] = []
    while words and words[0] != "--":
        option = words.pop(0)
        if option == "--parent" and words and words[0].isdecimal():
            parent = int(words.pop(0))
        elif option == "--finally" and ";" in words:
            end = words.index(";")
            cleanup, words = words[:end], words[end + 1 :]
        else:
            raise ValueError(f"do not understand {option!r}")
    if len(words) < 2:
        raise ValueError("no command after --")
    return parent, cleanup, words[1:]


def _prctl(libc: ctypes.CDLL, option: int, value: int) -> None:
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def _keep_descriptors_to_ourselves() -> None:
    """Close inherited descriptors in the command: a lock passed to the reaper lasts as long as the reaper."""
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor > 2:
            try:
                os.set_inheritable(descriptor, False)
            except OSError:  # the descriptor of the listing itself, closed by now
                continue


def _start(libc: ctypes.CDLL, command: Sequence[str]) -> int:
    """Fork `command` and return its process id; it dies with us even if we are killed with SIGKILL."""
    reaper = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 127
    try:
        _prctl(libc, PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == reaper:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
            os.execvp(command[0], list(command))  # noqa: S606 - a list of words, and no shell is wanted
    except OSError as error:
        status = 127 if isinstance(error, FileNotFoundError) else 126
        sys.stderr.write(f"reaper: cannot run {command[0]}: {error.strerror}\n")
        sys.stderr.flush()
    finally:
        os._exit(status)


def _watch(pid: int) -> tuple[int, bool]:
    """Collect the dead until the command has ended and either a stop was asked for or nothing is left.

    Without a request to stop, orphans of a dead command live on: a crashed libvirtd must not take the VMs along.
    Returns the exit status of the command and whether a stop was asked for.
    """
    status: int | None = None
    stop_at: float | None = None
    while True:
        ended, any_left = _collect(pid)
        status = ended if ended is not None else status
        if status is not None and (stop_at is not None or not any_left):
            return status, stop_at is not None
        if stop_at is not None and time.monotonic() >= stop_at:
            os.kill(pid, signal.SIGKILL)
            stop_at += COMMAND_GRACE_S
        wait_s = 3600.0 if stop_at is None else max(0.0, stop_at - time.monotonic())
        received = signal.sigtimedwait(_WATCHED, wait_s)
        if received is not None and received.si_signo != signal.SIGCHLD:
            if status is None:
                # To a daemon, SIGHUP says "read your configuration again"; what is meant here is an end.
                os.kill(pid, signal.SIGTERM if received.si_signo == signal.SIGHUP else received.si_signo)
            if stop_at is None:
                stop_at = time.monotonic() + COMMAND_GRACE_S


def _collect(pid: int) -> tuple[int | None, bool]:
    """Reap what is dead; return the exit status of `pid` if it was among them, and whether children are left."""
    status: int | None = None
    while True:
        try:
            dead, wait_status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status, False
        if dead == 0:
            return status, True
        if dead == pid:
            code = os.waitstatus_to_exitcode(wait_status)
            status = code if code >= 0 else 128 - code


def _end_descendants() -> None:
    """End what the command left: SIGTERM, then SIGKILL until none is left, so that forking on the way is no escape."""
    _signal_descendants(signal.SIGTERM)
    kill_at = time.monotonic() + DESCENDANT_GRACE_S
    while _collect(0)[1]:
        if time.monotonic() >= kill_at:
            _signal_descendants(signal.SIGKILL)
        signal.sigtimedwait((signal.SIGCHLD,), 0.05)


def _signal_descendants(number: int) -> None:
    for pid in list(_descendants(os.getpid())):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _descendants(root: int) -> Iterator[int]:
    """Yield the process ids below `root` as /proc tells them now."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as stat:
                    # The second field is a name in brackets that may hold anything; the parent follows two later.
                    parent = int(stat.read().rpartition(b")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(name))
    todo = children.get(root, [])
    while todo:
        pid = todo.pop()
        yield pid
        todo.extend(children.get(pid, []))


def _finish(cleanup: Sequence[str], status: int) -> int:
    """Run the clean-up command, within its time, and hand on `status`: what was run counts, not the tidying up."""
    if not cleanup:
        return status
    pid = os.posix_spawnp(cleanup[0], list(cleanup), os.environ, setsigmask=())
    give_up_at = time.monotonic() + FINALLY_GRACE_S
    while _collect(0)[1]:
        if time.monotonic() >= give_up_at:
            sys.stderr.write(f"reaper: {cleanup[0]} took longer than {FINALLY_GRACE_S:.0f} s and was ended\n")
            os.kill(pid, signal.SIGKILL)
            give_up_at += FINALLY_GRACE_S
        signal.sigtimedwait((signal.SIGCHLD,), 0.1)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
