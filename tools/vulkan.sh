#!/bin/sh
# Makes sure that a Vulkan software driver is here that ManiSkill's renderer accepts: `sh tools/vulkan.sh [python]`.
#
# Does nothing if one works. Installs Mesa's where it may (root, on Debian or Ubuntu; on Debian 12 from backports,
# because bookworm's own Mesa 22.3 is too old), and else says what to install. Never fails the build.
set -u
cd "$(dirname "$0")/.." || exit 0
python=${1:-.venv/bin/python}
[ -x "$python" ] || python=python3

works() { "$python" -m par_jax.sim.vulkan 2>/dev/null; }

give_up() {
  echo "vulkan: $1"
  echo "vulkan: ManiSkill cannot draw until this is mended; training needs no Vulkan. What is missing:"
  "$python" -m par_jax.sim.vulkan
  exit 0
}

# URI and keyring option of a suite, from the machine's own apt sources (one-line and deb822 style).
source_of() {
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [ -f "$file" ] && sed -n 's/^deb *\(\[[^]]*\]\)* *\([^ ]*\) *'"$1"' .*main.*/deb \1 \2/p' "$file"
  done | head -n 1
  for file in /etc/apt/sources.list.d/*.sources; do
    [ -f "$file" ] && awk -v suite="$1" '
      function done_() { if (uri != "" && fits) print "deb" (key != "" ? " [signed-by=" key "]" : ""), uri; uri = key = ""; fits = 0 }
      /^$/ { done_() }
      /^#/ { next }
      $1 == "URIs:" { uri = $2 }
      $1 == "Signed-By:" && $2 ~ /^\// { key = $2 }
      $1 == "Suites:" { for (i = 2; i <= NF; i++) if ($i == suite) fits = 1 }
      END { done_() }' "$file"
  done | head -n 1
}

if name=$(works); then
  echo "vulkan: $name works; nothing to install"
  exit 0
fi
[ -r /etc/os-release ] && . /etc/os-release
case " ${ID:-} ${ID_LIKE:-} " in
  *" debian "* | *" ubuntu "*) ;;
  *) give_up "this is neither Debian nor Ubuntu, so nothing was installed" ;;
esac
[ "$(id -u)" = 0 ] || give_up "not root, so nothing was installed"
command -v apt-get >/dev/null || give_up "no apt-get, so nothing was installed"

suite=
if [ "${ID:-}" = debian ] && [ "${VERSION_CODENAME:-}" = bookworm ]; then
  suite=bookworm-backports
  if [ -z "$(source_of $suite)" ]; then
    line=$(source_of bookworm | head -n 1)
    [ -n "$line" ] || give_up "found no apt source of Debian 12 to derive its backports from"
    echo "$line $suite main" >/etc/apt/sources.list.d/$suite.list
    echo "vulkan: wrote /etc/apt/sources.list.d/$suite.list"
  fi
fi
echo "vulkan: installing mesa-vulkan-drivers and libvulkan1 ${suite:+from $suite}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q >/dev/null 2>&1 || echo "vulkan: apt-get update reported errors; going on"
apt-get install -q -y --no-install-recommends ${suite:+-t $suite} mesa-vulkan-drivers libvulkan1 >/tmp/vulkan-apt.log 2>&1 ||
  give_up "apt-get could not install them (its messages: /tmp/vulkan-apt.log)"
name=$(works) || give_up "installed, but the driver is still not good enough"
echo "vulkan: installed; $name works"
