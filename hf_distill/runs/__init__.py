"""What a run is: its folder and checkpoints, its processes, how a recipe starts, publishes and ends."""
