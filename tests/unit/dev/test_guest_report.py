"""The guest's own line, as it stands among what else a serial line carries."""

import pytest

from controlplane.cli.dev.guest_image import READY_MARKER, GuestReport, find_guest_report

LINE = f"{READY_MARKER} hostname=hello memory_mib=92 vcpus=1 kernel=6.1.0-56-cloud-amd64 uptime_s=1.75"


def test_find_guest_report_line_among_others_is_read() -> None:
    text = f"[    0.9] i8042: ready\r\n{LINE}\r\n\r\n/ # "

    assert find_guest_report(text) == GuestReport("hello", 92, 1, "6.1.0-56-cloud-amd64", 1.75)


def test_find_guest_report_after_a_reboot_the_latest_counts() -> None:
    text = f"{LINE}\r\n{LINE.replace('1.75', '2.50')}\r\n"

    report = find_guest_report(text)

    assert report is not None
    assert report.uptime_s == 2.5


@pytest.mark.parametrize("text", ["", READY_MARKER, LINE, LINE[:-3], "login:\r\n"])
def test_find_guest_report_line_not_complete_is_none(text: str) -> None:
    assert find_guest_report(text) is None
