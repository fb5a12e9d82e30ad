"""What comes with the package and is no module of it: recipes with their presets, and templates of cards."""

from pathlib import Path


def shipped(name: str) -> Path:
    """The folder `recipes` or `model_cards`: inside an installed package, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / name
    # An editable install is the checkout itself, where these folders lie beside the package.
    return inside if inside.is_dir() else package.parent / name
