"""The reaper with real processes: what it hands on, what it collects, and that nothing outlives it."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest

from controlplane.cli.dev.reaper import reaper_command
from tests.support.private_libvirt_host import descendants, is_running, wait_until_gone

# A process that leaves its parent, as daemons do, and says who it is. The parent then reads on, or ends.
ORPHAN_THAT_IGNORES_SIGTERM = """
    import os, signal, sys
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print(os.getpid(), flush=True)
            signal.pause()
        os._exit(0)
    os.wait()
"""


def run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def python(text: str) -> list[str]:
    return [sys.executable, "-S", "-E", "-c", textwrap.dedent(text)]


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137), ("kill -TERM $$", 143)]
)
def test_reaper_command_that_ends_hands_on_its_status(script: str, status: int) -> None:
    assert run(reaper_command(["sh", "-c", script])).returncode == status


def test_reaper_command_that_does_not_exist_is_127_with_its_name() -> None:
    done = run(reaper_command(["no-such-program"]))

    assert done.returncode == 127
    assert "cannot run no-such-program" in done.stderr


@pytest.mark.parametrize("words", [[], ["--"], ["--parent", "x", "--", "true"], ["--finally", "x", "--", "true"]])
def test_reaper_wrong_usage_is_2_with_the_usage(words: list[str]) -> None:
    program = reaper_command(["true"])[:-2]

    done = run([*program, *words])

    assert done.returncode == 2
    assert "usage:" in done.stderr


def test_reaper_as_module_runs_the_command() -> None:
    done = run([sys.executable, "-m", "controlplane.cli.dev.reaper", "--", "echo", "hello"])

    assert (done.returncode, done.stdout) == (0, "hello\n")


def test_reaper_stopped_ends_an_orphan_that_ignores_sigterm_and_cleans_up_last(tmp_path: Path) -> None:
    cleaned = tmp_path / "cleaned"
    command = python(ORPHAN_THAT_IGNORES_SIGTERM + "\n    sys.stdin.read()")
    words = reaper_command(command, cleanup=["touch", str(cleaned)])
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reaper:
        assert reaper.stdout is not None
        orphan = int(reaper.stdout.readline())
        assert is_running(orphan)

        reaper.terminate()

        assert reaper.wait(timeout=60) == 128 + signal.SIGTERM
    assert not is_running(orphan)
    assert cleaned.exists()


@pytest.mark.parametrize(
    ("sent", "received"),
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT), (signal.SIGHUP, signal.SIGTERM)],
)
def test_reaper_told_to_stop_tells_the_command(sent: signal.Signals, received: signal.Signals) -> None:
    script = "trap 'exit 42' " + received.name.removeprefix("SIG") + "; echo ready; while :; do sleep 0.01; done"
    with subprocess.Popen(reaper_command(["sh", "-c", script]), stdout=subprocess.PIPE, text=True) as reaper:
        assert reaper.stdout is not None
        assert reaper.stdout.readline() == "ready\n"

        reaper.send_signal(sent)

        assert reaper.wait(timeout=60) == 42


def test_reaper_command_gone_without_a_request_to_stop_leaves_its_orphans_running() -> None:
    words = reaper_command(python(ORPHAN_THAT_IGNORES_SIGTERM))
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as reaper:
        assert reaper.stdout is not None
        orphan = int(reaper.stdout.readline())
        assert orphan in descendants(reaper.pid)

        os.kill(orphan, signal.SIGKILL)

        assert reaper.wait(timeout=60) == 0


def test_reaper_parent_killed_takes_everything_along() -> None:
    parent = python(
        f"""
        import os, subprocess, sys
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from controlplane.cli.dev.reaper import reaper_command
        words = reaper_command(["sleep", "600"], parent=os.getpid())
        child = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        print(child.pid, flush=True)
        child.wait()
        """
    )
    with subprocess.Popen(parent, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        reaper = int(process.stdout.readline())
        process.kill()

    wait_until_gone(reaper)
    assert not is_running(reaper)


def test_reaper_killed_takes_its_command_along() -> None:
    words = reaper_command(["sh", "-c", "echo $$; exec sleep 600"])
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as reaper:
        assert reaper.stdout is not None
        command = int(reaper.stdout.readline())
        reaper.kill()
        wait_until_gone(command)
    assert not is_running(command)


def test_reaper_whose_parent_is_gone_already_does_not_start_the_command(tmp_path: Path) -> None:
    started = tmp_path / "started"

    done = run(reaper_command(["touch", str(started)], parent=1))

    assert done.returncode == 128 + signal.SIGTERM
    assert not started.exists()
