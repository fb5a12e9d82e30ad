"""`RealImages`: any image-classification dataset, decoded once, and what a network sees of it."""
