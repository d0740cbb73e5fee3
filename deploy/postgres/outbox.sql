-- What `walferry init` creates, for those who keep such things in migrations;
-- `walferry init --print` prints it for other names. Needs the rights to create a
-- table and a publication, and REPLICATION for the slot. Not in one transaction:
-- Postgres refuses to create a slot in a transaction that has written.
--
-- The order counts. Postgres looks the publication up as of each change, so a
-- slot that is older than its publication can stop forever, or skip events.

CREATE TABLE public.outbox (
    id            uuid         PRIMARY KEY DEFAULT gen_random_uuid(),
    aggregatetype varchar(255) NOT NULL, -- names the topic
    aggregateid   varchar(255) NOT NULL, -- the record's key: order is kept per key
    type          varchar(255) NOT NULL,
    payload       jsonb                  -- the record's value
);

-- Only inserts are events: deleting old rows costs nothing on the wire.
CREATE PUBLICATION walferry FOR TABLE public.outbox
    WITH (publish = 'insert', publish_via_partition_root = true);

-- From here on Postgres keeps the WAL until walferry has confirmed it.
SELECT pg_create_logical_replication_slot('walferry', 'pgoutput');
