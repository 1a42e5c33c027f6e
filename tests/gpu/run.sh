#!/usr/bin/env bash
# What DP-SGD costs beside plain LoRA on one GPU, in at most eight minutes once everything is
# installed: build/gpu/gpu.json and gpu.md. From a clone:
#
#   bash tests/gpu/run.sh [--dry] [--out FOLDER] [--only "8b 4bit"]
#
# --dry runs every row on the CPU in tiny shapes, in under a minute, and measures nothing.
#
# PYTHON names the interpreter (otherwise .venv's, or python3). What it lacks is installed from the
# package index into build/gpu-venv, above what it has; LADA_WHEELS names a folder of wheels to take
# instead, where no index can be reached. Without bitsandbytes the rows of 4 bits are skipped.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
needed="torch transformers peft opacus cryptography pydantic accelerate jinja2 scipy"
case " $* " in *" --dry "*) ;; *) needed="$needed bitsandbytes" ;; esac

missing() {
  "$1" -c 'import importlib.util as i, sys; print(*(n for n in sys.argv[1:] if not i.find_spec(n)))' \
    $needed
}

if [ -n "$(missing "$python")" ]; then
  echo "run.sh: $python lacks $(missing "$python"); using build/gpu-venv" >&2
  [ -x build/gpu-venv/bin/python ] || "$python" -m venv build/gpu-venv
  # Above what the interpreter has, itself a virtual environment or not.
  "$python" -c 'import sys; print(*(p for p in sys.path if p.endswith("-packages")), sep="\n")' \
    > "$(build/gpu-venv/bin/python -c 'import sysconfig as s; print(s.get_path("purelib"))')/outer.pth"
  python=build/gpu-venv/bin/python
  if [ -n "$(missing "$python")" ] && [ -n "${LADA_WHEELS:-}" ]; then
    "$python" -m pip install -q --no-index --no-deps "$LADA_WHEELS"/*.whl ||
      echo "run.sh: could not install the wheels of $LADA_WHEELS" >&2
  fi
  for one in $(missing "$python"); do
    [ -z "${LADA_WHEELS:-}" ] || break
    # The tested version where it is known; what is there already stays as it is.
    version=$(sed -n "s/^$one\(==.*\)/\1/p" constraints.txt)
    timeout 240 "$python" -m pip install -q "$one$version" ||
      echo "run.sh: could not install $one" >&2
  done
fi
exec timeout --kill-after=5 470 "$python" -u tests/gpu/measure.py "$@"
