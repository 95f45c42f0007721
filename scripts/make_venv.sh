#!/bin/sh
# Make the virtual environment: sh scripts/make_venv.sh PYTHON FOLDER
# A torch >= 2.11 that PYTHON already has is kept (GPU images); otherwise the tested set is installed.
set -eu
python=$1
venv=$2
here=$(cd "$(dirname "$0")/.." && pwd)

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "$python is older than 3.11; run make with PYTHON=/path/to/python3.11 or newer" >&2
    exit 2
}
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
own_torch='import sys, torch; sys.exit(tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) < (2, 11))'
if "$python" -c "$own_torch" 2>/dev/null; then
    echo "keeping the torch that $python has"
    "$python" -m venv --system-site-packages "$venv"
    grep -v '^torch==' "$here/constraints.txt" > "$constraints"
else
    "$python" -m venv "$venv"
    cp "$here/constraints.txt" "$constraints"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$constraints" --editable "$here[test]"
touch "$venv/.done"
