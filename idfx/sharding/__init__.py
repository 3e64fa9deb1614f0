"""Models whose parameters are DTensors: where a shard lies in the whole, and the whole from its shards."""
