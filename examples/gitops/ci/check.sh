#!/bin/sh
# Validates all overlays of a pull request and plans what they run, for the comment in plan.md.
#
#   check.sh BEFORE AFTER [FORMAT]
#
# BEFORE and AFTER are two checkouts of the folder with overlays/. FORMAT is that of `edgetune validate`. Needs kubectl and
# edgetune on the PATH.
set -eu

render() {
  for overlay in "$1"/overlays/*/; do
    if [ -f "$overlay/kustomization.yaml" ]; then
      kubectl kustomize "$overlay" || return 1
      echo "---"
    fi
  done
}

render "$1" > before.yaml
render "$2" > after.yaml
edgetune validate -f after.yaml -o "${3:-text}"
edgetune plan -f after.yaml --from before.yaml -o markdown > plan.md
