"""A power controller that speaks IPMI, of a host that is a network; see `power_fronts`.

Runs in the environment of `power_emulators`, which has pyghmi, and so uses nothing else but the standard library.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from tests.support.namespaces import kill_all_in, processes_in


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("namespace", "address", "port", "username", "password", "disobeys"):
        parser.add_argument(name)
    given = parser.parse_args()

    def power_off(_: Any) -> None:
        if not Path(given.disobeys).exists():
            kill_all_in(given.namespace)

    def power_state(_: Any) -> str:
        return "on" if processes_in(given.namespace) else "off"

    library = importlib.import_module("pyghmi.ipmi.bmc")
    controller = type("Controller", (library.Bmc,), {"power_off": power_off, "get_power_state": power_state})
    controller({given.username: given.password}, port=int(given.port), address=given.address)
    print("serves", flush=True)
    library.Bmc.listen()


if __name__ == "__main__":
    main()
