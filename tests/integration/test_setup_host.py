"""The script that installs what a machine lacks, without letting it install anything."""

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "setup-host.sh"


def run(*words: str, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(SCRIPT), *words], env={"PATH": path}, capture_output=True, text=True, timeout=120, check=False
    )


def pretend_installed(directory: Path, *packages: str) -> str:
    """Put programs into `directory` that stand for a Debian with only `packages`; return the PATH to find them."""
    lines = "".join(f"echo installed {package}\n" for package in packages)
    # As the real one does: half-removed packages are listed too, and not knowing one is a failure.
    (directory / "dpkg-query").write_text(f"#!/bin/sh\n{lines}echo config-files qemu-utils\nexit 1\n")
    (directory / "apt-get").write_text("#!/bin/sh\nexit 99\n")
    for name in ("dpkg-query", "apt-get"):
        (directory / name).chmod(0o755)
    return f"{directory}:/usr/bin:/bin"


ALL_BUT_GENISOIMAGE_AND_QEMU_UTILS = (
    "qemu-system-x86",
    "ovmf",
    "swtpm",
    "swtpm-tools",
    "libvirt-daemon-system",
    "libvirt-daemon-driver-qemu",
    "libvirt-clients",
    "libvirt-dev",
    "postgresql",
    "etcd-server",
    "gcc",
    "pkgconf",
    "python3-venv",
    "python3-dev",
    "busybox",
    "iproute2",
    "ipmitool",
    "ca-certificates",
    "zstd",
)


def test_setup_host_check_names_what_is_missing_and_accepts_alternatives(tmp_path: Path) -> None:
    done = run("--check", path=pretend_installed(tmp_path, *ALL_BUT_GENISOIMAGE_AND_QEMU_UTILS))

    assert (done.returncode, done.stdout.split()) == (1, ["qemu-utils", "genisoimage"])


@pytest.mark.parametrize("words", [[], ["--check"]])
def test_setup_host_nothing_missing_is_silent_and_0(tmp_path: Path, words: list[str]) -> None:
    path = pretend_installed(tmp_path, *ALL_BUT_GENISOIMAGE_AND_QEMU_UTILS, "qemu-utils", "genisoimage")

    done = run(*words, path=path)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_setup_host_without_apt_is_0_and_says_that_the_demo_runs_on_the_mock() -> None:
    done = run(path="/nonexistent")

    assert done.returncode == 0
    assert "the demo runs on the mock" in done.stdout


@pytest.mark.parametrize("words", [["--chekc"], ["--check", "twice"], [""]])
def test_setup_host_wrong_usage_is_2_with_the_usage(words: list[str]) -> None:
    done = run(*words, path="/nonexistent")

    assert done.returncode == 2
    assert "usage:" in done.stderr
