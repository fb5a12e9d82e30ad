"""What runs a method: the contract of every method, the loop, the blocks, shards, and memory."""
