"""Students on a set and beside it on baselines, under the papers' protocols, and reports of what they reach."""
