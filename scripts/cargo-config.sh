#!/usr/bin/env bash
# Writes .cargo/config.toml, so that plain `cargo build` and `cargo test` find libtorch too.
# It is written only when it changes, and a LIBTORCH in the environment wins over it.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
libtorch=$(scripts/libtorch.sh)
config=.cargo/config.toml
mark='# Written by `make`; not committed.'

case $libtorch in
*[\"\\]*) echo "make: libtorch lies in $libtorch; choose a path without quotes and backslashes" >&2 && exit 1 ;;
esac
wanted=$(printf '%s\n[env]\nLIBTORCH = { value = "%s", force = false }\n' "$mark" "$libtorch")

if [ -e "$config" ]; then
    [ "$(cat "$config")" != "$wanted" ] || exit 0
    if ! grep -qF "$mark" "$config"; then
        if grep -qE "^\s*LIBTORCH\s*=" "$config"; then
            exit 0
        fi
        echo "make: $config is your own: add  LIBTORCH = \"$libtorch\"  under [env] in it" >&2
        exit 1
    fi
fi
mkdir -p .cargo
printf '%s\n' "$wanted" >"$config.$$"
mv "$config.$$" "$config"
