#!/bin/sh
# What a new node of the cluster is told once: the password by which the nodes log in to each other. Run by the image after
# it has made the database and the extension.
set -eu

psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" <<'SQL'
\getenv role POSTGRES_USER
\getenv password POSTGRES_PASSWORD
-- Node 0 stands for all of them. In a connection string a quote and a backslash stand behind a backslash.
INSERT INTO pg_dist_authinfo (nodeid, rolename, authinfo)
VALUES (0, :'role', format('password=''%s''', regexp_replace(:'password', $$(['\\])$$, $$\\\1$$, 'g')));
SQL
