"""`DistilledSet`: the small set, its tables, its labels, and what they cost."""
