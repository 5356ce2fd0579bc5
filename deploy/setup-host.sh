#!/bin/sh
# Install what LimiQuantix needs from the distribution: QEMU, libvirt, what building libvirt's Python binding takes,
# PostgreSQL and etcd.
#
# Usage: deploy/setup-host.sh [--check]
#
#   (no option)  install what is missing; asks for root, by sudo, only if something is
#   --check      print what is missing, one package a line, and change nothing
#
# Exit status:
#   0  everything is there, or nothing can be installed here (no apt, or no root): then a message says that the demo
#      runs on the mock hypervisor. With --check: nothing is missing.
#   1  installing failed. With --check: something is missing.
#   2  wrong usage.
#
# It may be run any number of times; when nothing is missing it only asks dpkg. It upgrades nothing. libvirt comes as
# libvirt-daemon-system, since that package alone makes the user libvirt-qemu, without whom libvirt's QEMU driver does not
# start, whoever it shall run QEMU as; where systemd runs, the package starts libvirt as a service. So does PostgreSQL, with
# an empty cluster, and etcd; both listen on this machine only. The demo leaves them alone, the tests start servers of
# their own, and docs/operations.md says how a control plane uses them. Debian and Ubuntu only.

set -eu

# Each line is one need: packages of which any serves, the first being the one to install. (The guest image takes
# busybox-static; where the other busybox is installed, which it would replace, it is downloaded only.)
needs='qemu-system-x86
qemu-utils
ovmf
swtpm
swtpm-tools
libvirt-daemon-system
libvirt-daemon-driver-qemu
libvirt-clients
libvirt-dev
postgresql
etcd-server
gcc
pkg-config pkgconf
python3-venv
python3-dev
genisoimage
busybox-static busybox
iproute2
ipmitool
ca-certificates
zstd'

say() {
    printf 'setup-host: %s\n' "$*"
}

# Print the first package of each need that no installed package meets.
print_missing() {
    # dpkg-query fails when it does not know a package, and prints the others all the same.
    # shellcheck disable=SC2086 # the words of the list are wanted
    dpkg-query --show --showformat='${db:Status-Status} ${Package}\n' $needs 2>/dev/null | {
        installed=' '
        while read -r status package; do
            [ "$status" = installed ] && installed="$installed$package "
        done
        printf '%s\n' "$needs" | while read -r need; do
            met=no
            for package in $need; do
                case $installed in *" $package "*) met=yes ;; esac
            done
            [ "$met" = yes ] || printf '%s\n' "${need%% *}"
        done
    }
}

# Succeeds when package lists were fetched within the last day. The files carry the server's dates; the directory ours.
lists_are_fresh() {
    [ -n "$(find /var/lib/apt/lists -maxdepth 0 -mtime -1 2>/dev/null)" ] &&
        [ -n "$(find /var/lib/apt/lists -maxdepth 1 -name '*_Packages*' 2>/dev/null | head -n 1)" ]
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif [ -t 0 ]; then
        sudo -- "$@"
    else
        sudo -n -- "$@"
    fi
}

may_become_root() {
    [ "$(id -u)" -eq 0 ] && return 0
    command -v sudo >/dev/null || return 1
    # At a terminal sudo can ask for the password; without one, only a sudo that does not ask helps.
    [ -t 0 ] || sudo -n true 2>/dev/null
}

update_lists() {
    say 'fetching package lists'
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update
}

install_packages() {
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -q -y --no-install-recommends --no-upgrade -o Dpkg::Use-Pty=0 install "$@"
}

# Install the packages named. Lists of this morning may name files that are gone by now: then once more with new lists.
install_with_lists() {
    if lists_are_fresh && install_packages "$@"; then
        return 0
    fi
    update_lists && install_packages "$@"
}

check_only=no
case $#-${1-} in
    0-) ;;
    1---check) check_only=yes ;;
    *)
        printf 'usage: %s [--check]\n' "$0" >&2
        exit 2
        ;;
esac

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    say 'this is neither Debian nor Ubuntu: install QEMU and libvirt yourself for real VMs; without them the demo runs on the mock'
    exit 0
fi
missing=$(print_missing)
if [ "$check_only" = yes ]; then
    [ -z "$missing" ] || printf '%s\n' "$missing"
    [ -z "$missing" ]
    exit
fi
[ -n "$missing" ] || exit 0

# One line, for messages and for a command to copy.
missing=$(printf '%s' "$missing" | tr '\n' ' ')
if ! may_become_root; then
    say "missing: $missing"
    say 'installing them needs root; until then the demo runs on the mock. As root:'
    say "  apt-get update && apt-get install --no-install-recommends $missing"
    exit 0
fi
say "installing: $missing"
# shellcheck disable=SC2086 # the words of the list are wanted
if ! install_with_lists $missing; then
    say 'installing failed; see above. Check the network and the sources in /etc/apt, then run this again' >&2
    exit 1
fi
