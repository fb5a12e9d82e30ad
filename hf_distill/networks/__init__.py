"""Networks and their repositories: architectures, teachers, trajectories, CLIP priors, the label projector."""
