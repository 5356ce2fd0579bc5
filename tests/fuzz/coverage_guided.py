"""Fuzz one reader with inputs that are kept when they reach code which none reached before.

    python -m tests.fuzz.coverage_guided                    list the readers
    python -m tests.fuzz.coverage_guided "qcow2 image" 60   for 60 s; exits with 1, and says the input, if it fails
    python -m tests.fuzz.coverage_guided all 600            all of them, each in a process, within 600 s

It takes atheris, which this project's extra `fuzz` brings; there are packages of it for Linux only.
"""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SLOWEST_S = 10
_OURS = ["controlplane", "nodedaemon", "hypervisor", "limiquantix"]


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one reader; ends the process."""
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore] # noqa: PLC0415 - optional

    with atheris.instrument_imports(include=_OURS):
        from tests.support.fuzz_targets import MAX_BYTES, TARGETS  # noqa: PLC0415 - instrumented on import
    target = next(each for each in TARGETS if each.name == name)
    logging.getLogger("controlplane").setLevel(logging.CRITICAL)  # it complains of every input
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(target.seeds):
            (Path(corpus) / str(number)).write_bytes(seed)
        longest = min(MAX_BYTES, 2 * max(map(len, target.seeds)) + 4_096)
        options = [f"-max_total_time={seconds}", f"-timeout={SLOWEST_S}", f"-max_len={longest}", "-rss_limit_mb=2048"]
        atheris.Setup(
            [sys.argv[0], *options, "-print_final_stats=1", f"-artifact_prefix={tempfile.gettempdir()}/fuzz-", corpus],
            target.run,
        )
        atheris.Fuzz()


def fuzz_all(seconds: int) -> int:
    """Fuzz each reader in a process of its own, and print what was done; returns how many fail."""
    from tests.support.fuzz_targets import TARGETS  # noqa: PLC0415 - not where atheris instruments it

    failed_count = 0
    for target in TARGETS:
        words = [sys.executable, "-m", "tests.fuzz.coverage_guided", target.name, str(max(seconds // len(TARGETS), 1))]
        done = subprocess.run(words, check=False, capture_output=True, text=True, errors="replace")
        counts = {
            key: re.search(rf"stat::{key}:\s+(\d+)", done.stderr)
            for key in ("number_of_executed_units", "average_exec_per_sec")
        }
        executed, rate = (int(found[1]) if found else 0 for found in counts.values())
        verdict = "well" if done.returncode == 0 else "FAILS"
        print(f"{target.name:16} {executed:9} inputs, {rate:6} a second: {verdict}", flush=True)
        if done.returncode != 0:
            failed_count += 1
            print(done.stderr[-4_000:])
    return failed_count


def main() -> int:
    """See the module."""
    match sys.argv[1:]:
        case ["all", seconds]:
            return 1 if fuzz_all(int(seconds)) else 0
        case [name, seconds]:
            fuzz(name, int(seconds))
        case _:
            from tests.support.fuzz_targets import TARGETS  # noqa: PLC0415 - see above

            print("\n".join(target.name for target in TARGETS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
