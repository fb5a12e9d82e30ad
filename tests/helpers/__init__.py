"""What several test modules share; none of them imports another."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
