#!/bin/sh
# Run a command with a PostgreSQL server of its own: scripts/with-postgres.sh COMMAND...
# The server (Debian package: postgresql) lives in a temporary folder, listens on a Unix socket only, and is gone
# afterwards. The command finds it at CVARS_TEST_POSTGRES, and how to restart it at CVARS_TEST_POSTGRES_RESTART.
set -eu
[ $# -gt 0 ] || { echo "usage: $0 COMMAND..." >&2; exit 2; }

bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1)
if [ -z "$bin" ] && command -v pg_config >/dev/null; then bin=$(pg_config --bindir); fi
[ -x "${bin:-}/initdb" ] || { echo "no PostgreSQL server: apt-get install postgresql" >&2; exit 4; }

folder=$(mktemp -d "${TMPDIR:-/tmp}/cvars-postgres.XXXXXX")
as=""
if [ "$(id -u)" = 0 ]; then # the server refuses to run as root
    chown postgres "$folder"
    as="runuser -u postgres --"
fi
stop() {
    $as "$bin/pg_ctl" -D "$folder/data" -m immediate stop >/dev/null 2>&1 || true
    rm -rf "$folder"
}
trap stop EXIT
trap 'exit 130' INT TERM

$as "$bin/initdb" -D "$folder/data" -U postgres -A trust -E UTF8 --locale=C >/dev/null
cat >>"$folder/data/postgresql.conf" <<CONF
listen_addresses = ''
unix_socket_directories = '$folder'
max_connections = 200
CONF
$as "$bin/pg_ctl" -D "$folder/data" -w -l "$folder/log" start >/dev/null
$as "$bin/createdb" -h "$folder" -U postgres cvars

cat >"$folder/restart" <<RESTART
#!/bin/sh
exec $as "$bin/pg_ctl" -D "$folder/data" -m immediate -w -l "$folder/log" restart
RESTART
chmod 755 "$folder" "$folder/restart"
export CVARS_TEST_POSTGRES="postgresql+psycopg://postgres@/cvars?host=$folder"
export CVARS_TEST_POSTGRES_RESTART="$folder/restart"
"$@"
