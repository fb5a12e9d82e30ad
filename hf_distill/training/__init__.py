"""Networks that methods learn from: experts, teachers, projectors, a small CLIP."""
