"""Long searches for what the tests and the guards miss; not part of the suite. Each prints the seed that repeats it."""
