#!/usr/bin/env bash
# Prints the path of a Chromium for the console's test: the machine's own. Where there is none, root on Debian gets Debian's
# first; anybody else gets nothing printed, and a line that says what to do. Debian keeps its newest Chromium alone, so none
# can be pinned.
set -euo pipefail

say() { printf 'chromium: %s\n' "$*" >&2; }

present() {
    local name
    for name in chromium chromium-browser google-chrome; do
        command -v "$name" && return
    done
    return 1
}

if present; then
    exit
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing Debian's chromium, once (about a minute)"
    export DEBIAN_FRONTEND=noninteractive
    # With a font: without any, a page is read as boxes.
    { apt-get update -q && apt-get install -q -y --no-install-recommends chromium fonts-dejavu-core; } >&2 ||
        say "apt-get could not install it (it says why above)"
    present || true
else
    say "none here: sudo apt-get install chromium"
fi
