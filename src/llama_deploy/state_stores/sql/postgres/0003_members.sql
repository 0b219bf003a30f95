-- Who the owners are, for each other: control planes that share the store find one another here.

-- `shared`: it takes its share of the shards and leaves the others theirs. `seat`: a small number that no other living
-- member has. `url`: where it is reached.
ALTER TABLE {schema}.owners
    ADD COLUMN shared boolean NOT NULL DEFAULT false,
    ADD COLUMN name   text    NOT NULL DEFAULT '',
    ADD COLUMN url    text    NOT NULL DEFAULT '',
    ADD COLUMN seat   integer;

-- Since when a shard has been led by its owner.
ALTER TABLE {schema}.shards ADD COLUMN since timestamptz;
