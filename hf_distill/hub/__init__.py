"""Folders that are repositories: files, publishing, cards, results and plots. Nothing here imports torch."""
