#!/usr/bin/env bash
# What DP-SGD costs beside plain LoRA on one GPU, in at most eight minutes: build/gpu/gpu.json and
# gpu.md. Usage, from a clone:
#
#   bash tests/gpu/run.sh [--dry] [--out FOLDER] [--only "8b 4bit"]
#
# --dry runs every row on the CPU in tiny shapes, in under a minute, and measures nothing.
#
# PYTHON names the interpreter (otherwise .venv's, or python3). What it lacks is installed from the
# package index into build/gpu-venv, above what it has; LADA_WHEELS names a folder of wheels to take
# instead, where no index can be reached.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
declare -A package=(
  [torch]=torch [transformers]=transformers [peft]=peft [opacus]=opacus
  [cryptography]=cryptography [dp_accounting]=dp-accounting [pydantic]=pydantic
  [accelerate]=accelerate [jinja2]=jinja2 [scipy]=scipy
)
case " $* " in *" --dry "*) ;; *) package[bitsandbytes]=bitsandbytes ;; esac

missing() {
  for module in "${!package[@]}"; do
    "$1" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$module') is None)" ||
      echo "${package[$module]}"
  done
}

lacking=$(missing "$python")
if [ -n "$lacking" ]; then
  echo "not installed: $(echo $lacking); making build/gpu-venv" >&2
  [ -x build/gpu-venv/bin/python ] || "$python" -m venv --system-site-packages build/gpu-venv
  # A virtual environment's own virtual environment sees the outermost packages alone.
  "$python" -c 'import site; print("\n".join(site.getsitepackages()))' \
    > "$(build/gpu-venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/outer.pth"
  lacking=$(missing build/gpu-venv/bin/python)
  if [ -n "$lacking" ]; then
    where=(--constraint constraints.txt)
    [ -z "${LADA_WHEELS:-}" ] || where=(--no-index --find-links "$LADA_WHEELS")
    # bitsandbytes is an extra: without it the rows of 4 bits are skipped.
    for one in $lacking; do
      timeout 150 build/gpu-venv/bin/python -m pip install -q "${where[@]}" "$one" ||
        echo "run.sh: could not install $one" >&2
    done
  fi
  python=build/gpu-venv/bin/python
fi
exec timeout --kill-after=5 470 "$python" -u tests/gpu/measure.py "$@"
