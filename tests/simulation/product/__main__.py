"""Runs histories of whole clusters of the product, in the order asked for; a line of JSON for each. See `runs`.

Each history is a process that branches off from this one after everything is imported and was used once: so all begin
alike, and nobody has to end what was left half done by processes that died in it.
"""
# ruff: noqa: PLC0415 - the product is imported once its outside world is replaced

from __future__ import annotations

import faulthandler
import gc
import json
import os
import sys
from dataclasses import asdict

from tests.simulation.product import outside

LIMIT_S = 600.0
"""A history that takes longer goes round without waiting for anything; where, is written to the standard error."""
WARM_UP_SEED = 0


def main() -> None:
    """Take seeds from the standard input, one a line, and write outcomes to the standard output."""
    outside.replace()
    from tests.simulation.product.broken import break_rule
    from tests.simulation.product.history import listen_to_logs, run_history

    outside.replace_calendar()
    listen_to_logs()
    gc.disable()
    kept = run_history(WARM_UP_SEED, is_short=True)
    if len(sys.argv) > 1:
        break_rule(sys.argv[1])
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            faulthandler.dump_traceback_later(LIMIT_S, exit=True)
            outcome = run_history(int(line))
            _write(json.dumps(asdict(outcome)) + "\n")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            outcome = type(kept)(int(line), violation=f"its process ended with status {status}")
            _write(json.dumps(asdict(outcome)) + "\n")
    os._exit(0)  # without any clean-up of what the history before left


def _write(text: str) -> None:
    data = text.encode()
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]


if __name__ == "__main__":
    main()
