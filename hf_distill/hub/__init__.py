"""Folders that are repositories: files, publishing, cards, results and plots. Nothing here imports torch.

`folder`: artifacts saved, pushed and loaded. `repository`: the network; downloads, commits, tags.
"""
