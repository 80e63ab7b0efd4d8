"""Where and how a run is computed: shards, and the engine that solves them."""
