#!/bin/sh
# Fetches the real servers of the integration tests (see pom.xml) into <repo root>/.cache/servers:
#   postgres/<major>/*.jar   kafka/lib/*.jar
# Needs Maven and Java 17 or newer. Does nothing when everything is there. Concurrent calls wait for each other.
set -eu
umask 022

fail() {
	echo "fetch.sh: $1" >&2
	exit 1
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cache=$(CDPATH='' cd -- "$here/../.." && pwd)/.cache
dest=$cache/servers

# complete: everything that was fetched is still there, and it was fetched by this pom.xml.
# The manifest is written last, so that an interrupted run counts as nothing.
complete() {
	[ -f "$dest/manifest" ] && cmp -s "$here/pom.xml" "$dest/pom.xml" || return 1
	while read -r jar; do
		[ -s "$dest/$jar" ] || return 1
	done <"$dest/manifest"
}

if complete; then
	exit 0
fi

other='or let the tests use running servers: set WALFERRY_TEST_POSTGRES and WALFERRY_TEST_KAFKA'
case $(uname -s)-$(uname -m) in
Linux-x86_64) arch=amd64 ;;
Linux-aarch64) arch=arm64v8 ;;
*) fail "there are Postgres binaries for Linux on x86_64 and aarch64 only, this is $(uname -s) on $(uname -m); $other" ;;
esac
command -v flock >/dev/null 2>&1 || fail 'flock not found: install util-linux'
command -v mvn >/dev/null 2>&1 || fail "mvn not found: install Maven (Debian and Ubuntu: apt-get install maven), $other"

# Maven and the tests both prefer JAVA_HOME's java to the one on PATH.
java=${JAVA_HOME:+$JAVA_HOME/bin/}java
command -v "$java" >/dev/null 2>&1 ||
	fail "$java not found: install a Java 17 runtime or newer, or correct JAVA_HOME; $other"
version=$("$java" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)
[ "${version:-0}" -ge 17 ] ||
	fail "$java is version ${version:-unknown}, Kafka needs 17 or newer: install it or set JAVA_HOME; $other"

mkdir -p "$dest"
exec 9>"$dest/lock"
flock 9 # released by the kernel when this process and its Maven are gone, however they end
if complete; then
	exit 0 # another call has done it meanwhile
fi

echo "fetching Postgres 14-18 and Kafka with Maven into $dest (about 125 MB, once)"
new=$dest/new
rm -rf "$new"
# The local repository is given explicitly: Java takes the home directory from the password database, not from HOME.
mvn --quiet --batch-mode --file "$here/pom.xml" "-Dmaven.repo.local=$cache/m2" \
	"-Dservers.dir=$new" "-Dpostgres.arch=$arch" package ||
	fail 'Maven failed (see above): check the network and ~/.m2/settings.xml, then run again'

rm -rf "$dest/manifest" "$dest/postgres" "$dest/kafka"
mv "$new/postgres" "$new/kafka" "$dest"
rmdir "$new"
cp "$here/pom.xml" "$dest/pom.xml"
(cd "$dest" && find postgres kafka -name '*.jar') >"$dest/manifest.new"
mv "$dest/manifest.new" "$dest/manifest"
