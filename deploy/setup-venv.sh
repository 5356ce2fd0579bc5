#!/bin/sh
# Make .venv hold the locked dependencies and this checkout. Run by `make setup`.
#
# Usage: deploy/setup-venv.sh
#
#   PYTHON   the interpreter to make .venv with: 3.11 or newer, by default python3
#   LIBVIRT  "no" leaves libvirt-python out, so VMs can only be simulated; by default it is built where libvirt is
#            installed. It is the one dependency without a ready-made package.
#
# It may be run any number of times: while nothing it depends on has changed, it only compares a checksum.

set -eu

python=${PYTHON:-python3}
cd "$(dirname "$0")/.."
venv=$PWD/.venv

say() {
    printf 'setup-venv: %s\n' "$*"
}

fail() {
    say "$*" >&2
    exit 1
}

wants_libvirt() {
    [ "${LIBVIRT:-auto}" != no ] && pkg-config --exists libvirt 2>/dev/null
}

# What .venv was made from: when this changes, it is brought up to date.
fingerprint() {
    {
        cat requirements/dev.lock requirements/libvirt.lock pyproject.toml deploy/setup-venv.sh
        # The venv names both absolutely.
        printf '%s\n' "$venv"
        "$venv/bin/python" -V
        wants_libvirt && printf 'libvirt %s\n' "$(pkg-config --modversion libvirt)"
    } 2>/dev/null | sha256sum | cut -d ' ' -f 1
}

make_venv() {
    command -v "$python" >/dev/null || fail "there is no $python; install Python 3.11 or newer, or name one: PYTHON=..."
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$("$python" -V) is too old, 3.11 is needed; name a newer one: make setup PYTHON=python3.12"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"
    say "making .venv with $("$python" -V)"
    "$python" -m venv --clear "$venv"
}

install() {
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input --root-user-action=ignore "$@"
}

# Two set-ups at once would install over each other; the second waits, then finds nothing to do.
exec 9<requirements
flock 9

stamp=$venv/limiquantix-stamp
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint)" ]; then
    exit 0
fi
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || make_venv
rm -f "$stamp"
say 'installing the locked dependencies'
install --require-hashes --requirement requirements/dev.lock
if wants_libvirt; then
    say 'building libvirt-python'
    # Its build needs setuptools, which the line above installed, and must not fetch an unpinned one.
    install --require-hashes --no-build-isolation --requirement requirements/libvirt.lock ||
        fail 'libvirt-python did not build: it needs gcc, pkg-config, libvirt-dev and the headers of this Python' \
            '(python3-dev). To go on without real VMs: make setup LIBVIRT=no'
fi
install --no-deps --no-build-isolation --editable .
fingerprint >"$stamp"
