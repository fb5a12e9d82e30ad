"""What methods learn from: experts, teachers, projectors, a small CLIP, and features of real images."""
