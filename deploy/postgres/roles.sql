-- The administrator's part, once per cluster, as a superuser:
--
--   SHOP_PASSWORD=... WALFERRY_PASSWORD=... psql -f roles.sql
--
-- Postgres must run with wal_level = logical. The outbox itself comes from
-- `walferry init`, or from outbox.sql beside this file.

\set ON_ERROR_STOP on
\getenv shop_password SHOP_PASSWORD
\getenv walferry_password WALFERRY_PASSWORD

-- The application, which owns its database.
CREATE ROLE shop LOGIN PASSWORD :'shop_password';
CREATE DATABASE shop OWNER shop;

-- The bridge. A role with REPLICATION can read the whole cluster, whatever the
-- grants say: guard its password like a superuser's, and let pg_hba.conf admit
-- it from walferry's hosts only.
CREATE ROLE walferry LOGIN REPLICATION CONNECTION LIMIT 10 PASSWORD :'walferry_password';

\connect shop
GRANT CONNECT ON DATABASE shop TO walferry;

-- What the role that runs this file creates in schema public from now on, such
-- as the outbox, belongs to it, and the application may write to it. The bridge
-- needs no right on any table.
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, DELETE ON TABLES TO shop;
