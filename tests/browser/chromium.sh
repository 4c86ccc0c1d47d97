#!/bin/sh
# Make sure that a Chromium is there for the browser tests: $CHROMIUM, one on the PATH, one from the system's packages, or playwright's own.
bin="$1"
if [ -n "${CHROMIUM:-}" ]; then
  [ -x "$CHROMIUM" ] && exit 0
  echo "CHROMIUM=$CHROMIUM is not an executable" >&2; exit 1
fi
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null && exit 0
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null && exit 0
fi
"$bin/python" -m playwright install chromium && exit 0
echo "The browser tests need Chromium. Install it (Debian, Ubuntu: apt-get install chromium) or say where it is: CHROMIUM=/path make test" >&2
exit 1
