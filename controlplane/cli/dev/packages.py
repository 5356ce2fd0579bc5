"""Fetch and unpack distribution packages without installing anything, as any user.

Downloads go through apt, with its signatures and the machine's own sources. Where the machine's package lists lack a
package or are so old that it is no longer to be had, lists of our own are fetched into the working directory.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

_QUERY_DEADLINE_S: Final = 60.0
_DOWNLOAD_DEADLINE_S: Final = 600.0
_UNPACK_DEADLINE_S: Final = 120.0


class PackageError(Exception):
    """A package cannot be had; the text says why and what to do."""


class PackageSource:
    """The machine's apt, working below `directory`, which must exist and may be deleted afterwards."""

    def __init__(self, directory: Path) -> None:
        for program in ("apt-get", "apt-cache", "dpkg"):
            if shutil.which(program) is None:
                raise PackageError(f"this machine has no {program}: packages come from Debian or Ubuntu's apt only")
        self._directory = directory
        self._options: list[str] = []
        if os.geteuid() == 0:
            # apt's download user cannot write to a directory of ours, and says so at length.
            self._options += ["-o", "APT::Sandbox::User=root"]
        self._has_own_lists = False

    def depends(self, package: str) -> list[str]:
        """Return the names `package` depends on, first alternatives only; empty when it is not known."""
        text = self._apt_cache("show", "--no-all-versions", package)
        for line in text.splitlines():
            if line.startswith("Depends:"):
                return [item.split("|")[0].split("(")[0].strip() for item in line[8:].split(",")]
        return []

    def is_known(self, package: str) -> bool:
        """Tell whether apt's lists have the package."""
        return bool(self._apt_cache("show", "--no-all-versions", package))

    def unpack(self, package: str, target: Path) -> None:
        """Download the package and unpack its files below `target`. Raises `PackageError`."""
        downloads = self._directory / "packages" / package
        downloads.mkdir(parents=True, exist_ok=True)
        failure = self._download(package, downloads)
        if failure is not None and not self._has_own_lists:
            self.refresh()
            failure = self._download(package, downloads)
        archive = next(iter(sorted(downloads.glob("*.deb"))), None)
        if failure is not None or archive is None:
            raise PackageError(f"apt-get cannot download {package}: {failure or 'it left no file'}")
        target.mkdir(parents=True, exist_ok=True)
        failure = _run(["dpkg", "-x", str(archive), str(target)], self._directory, _UNPACK_DEADLINE_S)[1]
        if failure is not None:
            raise PackageError(f"dpkg cannot unpack {archive.name}: {failure}")
        shutil.rmtree(downloads)

    def refresh(self) -> None:
        """Fetch package lists into our own directory; the machine's stay untouched. Raises `PackageError`."""
        self._has_own_lists = True
        state, cache = self._directory / "apt-state", self._directory / "apt-cache"
        (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (cache / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        self._options += ["-o", f"Dir::State::Lists={state / 'lists'}", "-o", f"Dir::Cache={cache}"]
        failure = _run(
            ["apt-get", "-qq", *self._options, "-o", "Acquire::Retries=2", "update"],
            self._directory,
            _DOWNLOAD_DEADLINE_S,
        )[1]
        if failure is not None:
            raise PackageError(f"apt-get cannot fetch the package lists; is there a network? {failure}")

    def _download(self, package: str, directory: Path) -> str | None:
        words = ["apt-get", "-qq", *self._options, "-o", "Acquire::Retries=2", "download", package]
        return _run(words, directory, _DOWNLOAD_DEADLINE_S)[1]

    def _apt_cache(self, *words: str) -> str:
        return _run(["apt-cache", *self._options, *words], self._directory, _QUERY_DEADLINE_S)[0]


def _run(words: list[str], directory: Path, deadline_s: float) -> tuple[str, str | None]:
    """Run a command there; return its output, and what it complained of when it failed."""
    try:
        done = subprocess.run(
            words,
            cwd=directory,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=deadline_s,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
        )
    except subprocess.TimeoutExpired:
        return "", f"{words[0]} did not end in {deadline_s:.0f} s"
    complaint = "; ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
    return done.stdout, None if done.returncode == 0 else complaint or f"exit status {done.returncode}"
