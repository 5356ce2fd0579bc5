"""Programs for a guest's POSIX shell: what the agent's own commands cannot do, or not safely.

They are fixed texts. Everything of a caller's reaches them as arguments, which a shell does not interpret.
"""

from __future__ import annotations

from typing import Final

SHELL: Final = "/bin/sh"
NAME: Final = "limiquantix"
"""What the shell calls itself in its complaints."""
DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MARK: Final = "LIMIQUANTIX_EXEC"
"""Variable in the environment of everything that a command starts, by which it is found to be killed."""

BOUNDED: Final = """\
n=$1 d=$2 i=$3; shift 3
if [ -n "$i" ]; then exec <"$i" || exit 126; rm -f -- "$i"; fi
if [ -n "$d" ]; then cd -- "$d" || exit 126; fi
keep() { head -c "$n"; cat >/dev/null; }
exec 3>&1 4>&2
r=$({ { { "$@" 3>&- 4>&- 5>&- 6>&-; echo $? >&5; } 2>&6 | keep >&3; } 6>&1 | keep >&4; } 5>&1)
exit "$r"
"""
"""Run a command in a directory and keep the beginning of its outputs; arguments: bytes, directory, a file to be its
input or "", the command.

The agent has no bound but 16 MiB, and sends all of it at once. libvirt drops an agent for good that sends more than
10 MiB in one piece.
"""

DETACHED: Final = """\
d=$1 i=$2; shift 2
if [ -n "$i" ]; then exec <"$i" || exit 126; rm -f -- "$i"; fi
if [ -n "$d" ]; then cd -- "$d" || exit 126; fi
exec "$@" >/dev/null 2>&1
"""
"""Run a command in a directory and forget it; arguments: directory, input as above, the command."""

KILL: Final = """\
for try in 1 2 3 4 5; do
    found=$(grep -lF -- "$1" /proc/[0-9]*/environ 2>/dev/null)
    [ -n "$found" ] || exit 0
    for each in $found; do each=${each#/proc/}; kill -KILL "${each%/environ}" 2>/dev/null; done
done
exit 1
"""
"""Kill everything that has a text in its environment."""

APPEND: Final = """\
umask 077
cat >>"$1"
"""
"""Append standard input to a file that nobody else may read."""

WRITE: Final = """\
p=$1 m=$2
if [ -n "$3" ]; then mkdir -p -- "$(dirname -- "$p")" || exit 1; fi
if [ -L "$p" ]; then p=$(readlink -f -- "$p") || exit 1; fi
if [ -e "$p" ] && [ ! -f "$p" ]; then echo "$p is not a regular file" >&2; exit 1; fi
t=$p.$4
drop() { rm -f -- "$t"; exit 1; }
umask 077
cat >>"$t" || drop
[ -n "$5" ] || { printf %s "$t"; exit 0; }
if o=$(stat -c %u:%g -- "$p" 2>/dev/null); then chown "$o" "$t"; fi
chmod "$m" "$t" && mv -f -- "$t" "$p" || drop
"""
"""Replace a file, all or nothing; arguments: path, mode, "" or 1 to make parents, a free suffix for the file until it
is complete, "" or 1 with the last piece, which is standard input. Before that it says where to append others."""

DROP: Final = 'rm -f -- "$1"'
"""Remove a file that was not completed."""

SHUT_DOWN: Final = """\
if [ "$1" -gt 0 ]; then
    if [ -n "$3" ] && command -v wall >/dev/null; then echo "$3" | wall; fi
    sleep "$1"
fi
exec /sbin/shutdown -h "$2" +0 "$3"
"""
"""Shut down after some seconds; arguments: seconds, -P or -r, a message to users."""
