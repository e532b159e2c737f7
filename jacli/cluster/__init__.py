"""Many processes, one run: shards, and the batch system that starts them.  No torch, no h5py."""

from __future__ import annotations

from jacli.cluster.shards import (
    ShardName,
    local_rank,
    name_of_shard,
    shard_of_environment,
    shard_path,
    shard_rows,
    shards_beside,
)

__all__ = [
    "ShardName",
    "local_rank",
    "name_of_shard",
    "shard_of_environment",
    "shard_path",
    "shard_rows",
    "shards_beside",
]
