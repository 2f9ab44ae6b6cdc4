#!/bin/sh
# Screenshots of the chat page in Chromium, desktop and phone, light and dark. Usage: screenshots.sh DIR
set -eu
cd "$(dirname "$0")/.."
SHOTS=${1:?wanted a folder for the screenshots} python3 tests/http/page.py
